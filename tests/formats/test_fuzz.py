"""Thousands of damaged checkpoints of every format, each opened in a child of its own with little memory and time.

Whatever a file holds, the outcome is a result or one of our errors, and nothing is written anywhere.
"""

import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.errors import ICLError
from icl_interp.formats import Given, load_run
from icl_interp.model import ICLTransformer
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant

CASES = 5_200
SECONDS, MEMORY = 10, 2**30
TASK = LinearRegression(dim=3, length=6)
GIVEN = Given(dim=3, n_outputs=1, n_heads=2)
OPENED, REFUSED, WRONG = 10, 11, 12


# ---- what is damaged


def torch_file(held: object) -> bytes:
    file = io.BytesIO()
    torch.save(held, file)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def published() -> dict[str, object]:
    shapes = {"q": (8, 4), "k": (8, 4), "v": (8, 4), "o": (1, 8)}
    model = {f"attention_layer.{name}_proj.weight": torch.randn(shape) for name, shape in shapes.items()}
    dynamics = [[0.1 * step for step in range(6)] for _ in range(2)]
    losses = [1.0 / (1 + step) for step in range(6)]
    return {
        "final_loss": 0.2,
        "training_losses": losses,
        "validation_losses": losses,
        "qk_dynamics": dynamics,
        "ov_dynamics": [[3 * value for value in head] for head in dynamics],
        "qk_matrices": [torch.randn(4, 4) for _ in range(2)],
        "model": model,
    }


def hooked() -> dict[str, torch.Tensor]:
    state = ICLTransformer(ModelConfig(dim=3, n_heads=2, n_layers=2), seed=0).state_dict()
    return {**state, "blocks.0.attn.mask": torch.ones(4, 4, dtype=torch.bool), "blocks.0.attn.b_O": torch.zeros(4)}


def multihead() -> dict[str, torch.Tensor]:
    return torch.nn.MultiheadAttention(4, 2, bias=True, batch_first=True).state_dict()


STATES: dict[str, Callable[[], dict[str, object]]] = {
    "published": published,
    "hooked": hooked,
    "multihead": multihead,
    "circuits": lambda: {"KQ": torch.randn(2, 4, 4), "OV": torch.randn(2, 1, 4)},
    "numbers": lambda: {"omega": torch.randn(2), "mu": torch.randn(2)},
}


def flat(state: dict[str, object]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


# ---- damage


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, parts cut out, put in, repeated or zeroed."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, size = rng.randrange(len(out) + 1), rng.randrange(1, 64)
        kind = rng.randrange(6)
        if kind == 0 and out:
            at = min(at, len(out) - 1)
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = rng.randbytes(size)
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at : at + size] = bytes(len(out[at : at + size]))
        else:
            out[at : at + 8] = rng.choice([b"\xff" * 8, struct.pack("<Q", rng.getrandbits(62)), b"\x7f" * 8])
    return bytes(out)


def damage_archive(data: bytes, rng: random.Random) -> bytes:
    """One member damaged, in an archive that is whole: its checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist() or ["a.npy"]
        chosen = rng.choice([name for name in names if name.endswith((".pkl", ".npy"))] + [rng.choice(names)])
        for name in names:
            part = old.read(name) if old.namelist() else b"PK"
            if name == chosen and rng.random() < 0.1:
                continue
            new.writestr(name, damage_bytes(part, rng) if name == chosen else part)
    return file.getvalue()


def junk(rng: random.Random, depth: int = 0) -> object:
    """Anything that a file may hold where something else is expected."""
    kind = rng.randrange(15 if depth < 4 else 11)
    plain = [None, True, -1, 10**30, float("nan"), float("inf"), "", "\x1b[31m</script>", "x" * 5000, b"\0", 3.5]
    if kind < len(plain):
        return plain[kind]
    if kind == 11:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 12:
        return {f"k{i}": junk(rng, depth + 1) for i in range(rng.randrange(4))}
    if kind == 13:
        return torch.randn([rng.randrange(4) for _ in range(rng.randrange(4))])
    nested: object = 1
    for _ in range(rng.choice([10, 100, 300])):
        nested = [nested]
    return nested


def damage_tensor(tensor: torch.Tensor, rng: random.Random) -> object:
    if not is_plain(tensor):
        return tensor  # it was damaged before
    kinds: list[Callable[[torch.Tensor], object]] = [
        lambda t: (
            t.clone().reshape(-1).index_fill(0, torch.zeros(1, dtype=torch.long), torch.nan).reshape(t.shape)
            if t.is_floating_point() and t.numel()
            else t
        ),
        lambda t: t.double() * 1e308 * 10,
        lambda t: t[..., :-1] if t.ndim else t,
        lambda t: t[:0] if t.ndim else t,
        lambda t: t[None],
        lambda t: t.reshape(-1),
        lambda t: t.mT.contiguous() if t.ndim >= 2 else t,
        lambda t: t.to(rng.choice([torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])),
        lambda t: t.reshape(-1)[:1].expand(rng.choice([10**3, 10**6, 10**12])) if t.numel() else t,
        lambda t: torch.cat([t, t]) if t.ndim else t,
        lambda t: t.to_sparse() if t.ndim else t,
        lambda t: t.double() * 1e-320,
    ]
    return rng.choice(kinds)(tensor)


def damage_state(state: dict[str, object], rng: random.Random) -> dict[str, object]:
    """Entries of a dict renamed, left out, added or replaced."""
    out = dict(state)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not out:
            break
        name = rng.choice(list(out))
        value, kind = out[name], rng.randrange(6)
        if kind == 0:
            del out[name]
        elif kind == 1:
            out[
                rng.choice([f"{name}x", f"x.{name}", name[1:], "\x1b[2J", "../../a", "<script>", "blocks.9.attn.W_Q"])
            ] = value
        elif kind == 2:
            out[name] = junk(rng)
        elif isinstance(value, dict):
            out[name] = damage_state(value, rng)
        elif isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            out[name] = [*value[:at], junk(rng), *value[at + rng.randrange(2) :]]
        else:
            out[name] = damage_tensor(value, rng) if isinstance(value, torch.Tensor) else junk(rng)
    return out


def damage_json(value: object, rng: random.Random) -> object:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        if rng.random() < 0.15:
            return {key: part for key, part in value.items() if key != name}
        if rng.random() < 0.1:
            return {**value, "unknown": 1}
        return {**value, name: damage_json(value[name], rng)}
    thing = junk(rng)
    try:
        json.dumps(thing)
    except (TypeError, ValueError, RecursionError):
        return 10**400
    return thing


# ---- cases


def write_case(number: int, folder: Path, run: Path) -> Path:
    """A damaged checkpoint; the same for the same number."""
    rng = random.Random(number)
    torch.manual_seed(number)
    kind = rng.choice(["native", "native", *STATES, *STATES])
    if kind == "native":
        return write_native(folder / "run", run, rng)
    state, path = STATES[kind](), folder / "a"
    container = rng.choice(["torch", "torch", "safetensors", "npz"])
    if rng.random() < 0.5:
        state = damage_state(state, rng)
    if container == "torch":
        data = torch_file(state)
    else:
        whole = {"memory_format": torch.contiguous_format}
        tensors = {name: tensor.clone(**whole) for name, tensor in flat(state).items() if is_plain(tensor)}
        data = save(tensors) if container == "safetensors" else npz(**{k: v.numpy() for k, v in tensors.items()})
    if rng.random() < 0.6:
        inside = container != "safetensors" and rng.random() < 0.6
        data = damage_archive(data, rng) if inside else damage_bytes(data, rng)
    path.write_bytes(data)
    return path


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether safetensors and numpy have room for it."""
    dense = tensor.layout == torch.strided and not tensor.is_complex() and tensor.dtype != torch.bfloat16
    return dense and tensor.numel() < 10**5


def write_native(target: Path, run: Path, rng: random.Random) -> Path:
    shutil.copytree(run, target)
    path = target / rng.choice(["run.json", "run.json", "weights.safetensors", "dynamics.safetensors"])
    if path.name == "run.json" and rng.random() < 0.6:
        described = json.loads(path.read_text())
        for _ in range(rng.choice([1, 1, 3])):
            described = damage_json(described, rng)
        path.write_text(json.dumps(described))
    elif path.name == "run.json" and rng.random() < 0.1:
        path.write_text("[" * 100_000)
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return target


def attempt(path: Path, analyze: bool) -> int:
    """Open it as a user would; what came of it."""
    try:
        run = load_run(path, None if path.is_dir() else GIVEN)
        run.circuits().predict(TASK.sample(2).to(dtype=torch.float64)) if run.model_config.dim == 3 else None
        str(run), repr(run)
        if analyze:
            result = icl.analyze(run, budget=8)
            str(result), result.to_html()
    except ICLError as error:
        str(error).encode()
        return REFUSED
    return OPENED


def in_a_child(path: Path, analyze: bool, scratch: Path) -> tuple[int, str]:
    """The exit status (negative: the signal that ended it) and what it said, of opening `path` in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = WRONG
        try:
            os.chdir(scratch)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            pages = int(Path("/proc/self/statm").read_text().split()[5])
            allowed = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
            status = attempt(path, analyze)
        except BaseException:
            os.write(writing, traceback.format_exc()[-3000:].encode(errors="replace"))
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def listing(folder: Path) -> list[tuple[str, int, int]]:
    found = [(str(path), path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(name, entry.st_size, entry.st_mtime_ns) for name, entry in found]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of numbers that overflow, in what is done to them here
def test_damaged_checkpoints(tmp_path, monkeypatch):
    run = plant(TASK, roles=["positive", "negative"]).run
    trained = icl.train(TASK, n_heads=2, steps=20, n_records=5, out=tmp_path / "run", progress=False)
    assert trained.dynamics is not None
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    icl.analyze(run, budget=8).to_html()  # everything is imported before the children are born
    load_run({"KQ": torch.zeros(1, 2, 2), "OV": torch.zeros(1, 1, 2)})
    outcomes: dict[int, int] = {}
    for number in range(CASES):
        folder = tmp_path / "case"
        folder.mkdir()
        path = write_case(number, folder, tmp_path / "run")
        before = listing(folder)
        status, said = in_a_child(path, number % 25 == 0, scratch)
        assert status in (OPENED, REFUSED), f"case {number}, {path.name}: {status}\n{said}"
        assert listing(folder) == before, f"case {number} wrote beside the checkpoint"
        assert not list(scratch.iterdir()), f"case {number} wrote elsewhere"
        outcomes[status] = outcomes.get(status, 0) + 1
        shutil.rmtree(folder)
    assert min(outcomes.get(OPENED, 0), outcomes.get(REFUSED, 0)) > CASES / 20, outcomes  # neither is the rule


@pytest.mark.parametrize("fate", ["raises", "hangs", "takes memory", "dies"])
def test_what_would_be_wrong_is_seen(tmp_path, monkeypatch, fate):
    def wrong(path, analyze):
        if fate == "raises":
            raise KeyError("oh")
        if fate == "hangs":
            while True:
                pass
        if fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return OPENED if np.ones(MEMORY // 4).sum() else REFUSED

    monkeypatch.setitem(globals(), "attempt", wrong)
    monkeypatch.setitem(globals(), "SECONDS", 1)
    status, said = in_a_child(tmp_path, False, tmp_path)
    expected = {"raises": WRONG, "hangs": -signal.SIGALRM, "takes memory": WRONG, "dies": -signal.SIGKILL}[fate]
    assert status == expected
    assert {"raises": "KeyError", "takes memory": "MemoryError"}.get(fate, "") in said
