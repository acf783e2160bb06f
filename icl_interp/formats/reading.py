"""Taking a checkpoint apart, whatever it is, without trusting it.

No code of a file's ever runs: pickles are read by torch with `weights_only=True`, and nothing else is asked of them.
Sizes are looked up before memory is taken, in the directory of an archive and in the header of an array.  What a file
holds is only ever numbers and names; names become words in a message, never paths.
"""

from __future__ import annotations

import io
import math
import pickle
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from icl_interp.errors import CheckpointError, ConfigError, NoCheckpointError
from icl_interp.formats.contents import Contents, leaves, shown
from icl_interp.formats.native import RUN, WEIGHTS, place_of

MAX_BYTES = 2**29  # of a foreign checkpoint, unpacked: these models have thousands of weights, not millions
MAX_ENTRIES = 100_000  # in an archive: torch writes one for each tensor, and a record may hold thousands
MAX_DEPTH = 16  # of dicts within dicts

# Top-level entries of a training's checkpoint that are no part of its model.
NO_MODEL = {
    "optimizer",
    "optimizer_state",
    "optimizer_state_dict",
    "optim",
    "scheduler",
    "lr_scheduler",
    "scheduler_state_dict",
}

_MAGIC = {
    b"\x80": "a bare pickle (or a file of torch before 1.6), which is not read: load it where it was made, and save "
    "the tensors again with torch.save or as safetensors",
    b"\x93NUMPY": "a single array without a name: save KQ and OV, or omega and mu, with np.savez",
    b"\x89HDF": "an HDF5 file: save its arrays with np.savez",
}


def take_apart(checkpoint: str | Path | nn.Module | Mapping[str, object]) -> Contents:
    """What a path leads to, or an object in memory holds.

    Raises:
        CheckpointError: nothing there (`NoCheckpointError`), not a kind of file that is read, damaged, or too large.
        ConfigError: neither a path nor an object that could be a checkpoint.
    """
    if isinstance(checkpoint, nn.Module):
        tensors = {name: value.detach().cpu() for name, value in checkpoint.state_dict().items()}
        kind = type(checkpoint).__name__
        return Contents("a model in memory", f"a {kind}", tensors, module=checkpoint)
    if isinstance(checkpoint, Mapping):
        return _flattened(checkpoint, "a dict in memory", "a dict of tensors", None)
    if not isinstance(checkpoint, str | Path):
        raise ConfigError(
            f"a checkpoint is a folder, a file, a Run, a module or a dict of tensors, got {type(checkpoint).__name__}"
        )
    path = Path(checkpoint)
    place = place_of(path)
    if not place.exists():
        raise NoCheckpointError("does not exist")
    mode = place.stat().st_mode
    if stat.S_ISDIR(mode):
        return Contents(str(path), "a folder", path=place)
    if not stat.S_ISREG(mode):
        raise NoCheckpointError("is neither a file nor a folder")
    return _file(path)


def _file(path: Path) -> Contents:
    if path.name == WEIGHTS and (path.parent / RUN).is_file():
        return Contents(str(path), "a file of a run", path=path)  # which is opened as a whole
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise NoCheckpointError("is an empty file")
    if size > MAX_BYTES:
        raise CheckpointError(f"has {size:,} bytes, a checkpoint of such a model at most {MAX_BYTES:,}")
    if head.startswith(b"PK"):
        return _archive(path)
    if _is_safetensors(head, size):
        try:
            tensors = load_safetensors(path.read_bytes())
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"is a safetensors file, truncated or damaged ({error})") from error
        return _flattened(tensors, str(path), "a safetensors file", path)
    for magic, said in _MAGIC.items():
        if head.startswith(magic):
            raise CheckpointError(f"is {said}")
    if path.name == RUN:
        raise NoCheckpointError("is not a run but one of its files: name the folder it is in")
    raise NoCheckpointError(
        f"is no checkpoint that is known: expected a run's folder, a file of torch.save, .npz or .safetensors, found "
        f"a file that begins with {head[:8]!r}"
    )


def _is_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes with the length of a header, and the header, a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _archive(path: Path) -> Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_directory(entries)
            if any(Path(entry.filename).name == "data.pkl" for entry in entries):
                return _torch_file(path, entries)
            if any(entry.filename.endswith(".npy") for entry in entries):
                arrays = {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
                return _flattened(arrays, str(path), "an npz file", path)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, OSError) as error:
        raise CheckpointError(f"is an archive, truncated or damaged ({error})") from error
    names = shown(entry.filename for entry in entries)
    raise NoCheckpointError(f"is an archive, but of neither torch.save nor np.savez: it holds {names}")


def _check_directory(entries: list[zipfile.ZipInfo]) -> None:
    """What the archive says it would unpack to."""
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES or len(entries) > MAX_ENTRIES:
        raise CheckpointError(
            f"unpacks to {total:,} bytes in {len(entries):,} parts, a checkpoint of such a model to at most "
            f"{MAX_BYTES:,} in {MAX_ENTRIES:,}"
        )


def _torch_file(path: Path, entries: list[zipfile.ZipInfo]) -> Contents:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError("is a file of torch.save with compressed parts, which torch does not write")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "is a file of torch.save that holds more than data, and no code of a file's is run: save the module's "
            f"state_dict() and plain numbers, not the module or numpy's objects ({_first_sentence(error)})"
        ) from error
    except Exception as error:  # a stranger's file may break anything
        raise CheckpointError(f"is a file of torch.save, truncated or damaged ({_first_sentence(error)})") from error
    if not isinstance(held, Mapping):
        raise CheckpointError(f"is a file of torch.save with a {type(held).__name__} in it, expected a dict")
    return _flattened(held, str(path), "a file of torch.save", path)


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return shown([text.partition(". ")[0]])


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """One array of an npz; its claims are held against what is there before numpy believes them."""
    name = shown([entry.filename])
    try:
        data = archive.read(entry)
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, columns_first, dtype = read(file)
    except (ValueError, KeyError, RuntimeError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"is an npz file, and {name} in it is damaged ({_first_sentence(error)})") from error
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise CheckpointError(f"is an npz file, and {name} in it holds {dtype}, expected plain numbers")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise CheckpointError(
            f"is an npz file, and {name} in it claims shape {shape} of {dtype}, but has {len(data) - file.tell():,} "
            "bytes"
        )
    values = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if columns_first else "C")
    wide = dtype.itemsize > 8 or dtype.kind == "u"  # torch has not all of these
    return torch.from_numpy(values.astype(np.float64 if wide else values.dtype.newbyteorder("=")))


def _flattened(held: Mapping[str, object], origin: str, container: str, path: Path | None) -> Contents:
    tensors: dict[str, Tensor] = {}
    rest: dict[str, object] = {}
    claimed = 0
    left_out = tuple(str(name) for name in held if name in NO_MODEL)
    waiting: list[tuple[str, object, int]] = [("", {k: v for k, v in held.items() if k not in NO_MODEL}, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Mapping):
            if depth > MAX_DEPTH:
                raise CheckpointError(f"is {container} with dicts within dicts more than {MAX_DEPTH} deep")
            inner = [(f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in value.items()]
            waiting += reversed(inner)
            continue
        for part in leaves(value):
            claimed += part.numel() * part.element_size() if isinstance(part, Tensor) else 0
        if claimed > MAX_BYTES:  # a view may claim any number of elements
            raise CheckpointError(f"is {container}, and with {shown([name])} its tensors claim {claimed:,} bytes")
        if isinstance(value, Tensor):
            tensors[name] = _plain(name, value, container)
        else:
            rest[name] = value
    return Contents(origin, container, tensors, rest, path, left_out=left_out)


def _plain(name: str, tensor: Tensor, container: str) -> Tensor:
    """A dense tensor on the CPU."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
        raise CheckpointError(f"is {container}, and {shown([name])} in it is not a dense tensor of real numbers")
    return tensor.detach().cpu()
