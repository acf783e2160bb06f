"""Files are taken apart without trust: nothing in them runs, claims are checked, and every refusal says why."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError, NoCheckpointError
from icl_interp.formats import Contents, Given, checkpoint_format, load_run, opening, reading, registry
from icl_interp.formats.contents import shown
from icl_interp.formats.reading import take_apart
from icl_interp.model import ICLTransformer
from icl_interp.records import Run
from icl_interp.weights import initial_weights


def refused(path, said):
    with pytest.raises(CheckpointError, match=said) as caught:
        load_run(path)
    assert str(path) in str(caught.value)
    return caught.value


# ---- what is inside


def test_nested_dicts_are_named_by_path(tmp_path):
    held = {"model": OrderedDict(a=torch.ones(2), b={"c": torch.zeros(1)}), "losses": [1.0, 2.0], "step": 3, 5: "x"}
    torch.save(held, tmp_path / "a.pt")
    contents = take_apart(tmp_path / "a.pt")
    assert set(contents.tensors) == {"model.a", "model.b.c"}
    assert contents.rest == {"losses": [1.0, 2.0], "step": 3, "5": "x"}
    assert contents.container == "a file of torch.save"
    assert contents.inside("a") == contents.inside("b.c") == "model."
    assert contents.inside("d") is None


def test_parameters_and_tensors_that_need_gradients(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(3).requires_grad_()}, tmp_path / "a.pt")
    assert not any(tensor.requires_grad for tensor in take_apart(tmp_path / "a.pt").tensors.values())


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f8", "i4", "u2", "u8", "?", "f8"])
def test_arrays_of_any_plain_kind(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    np.savez_compressed(tmp_path / "a.npz", a=array, b=np.asfortranarray(array))
    for tensor in take_apart(tmp_path / "a.npz").tensors.values():
        np.testing.assert_array_equal(tensor.double().numpy(), array.astype(float))


def test_a_module_and_a_dict_in_memory():
    module = torch.nn.Linear(2, 3)
    contents = take_apart(module)
    assert contents.module is module
    assert set(contents.tensors) == {"weight", "bias"}
    assert take_apart({"a": {"b": torch.ones(1)}}).tensors["a.b"] == 1


# ---- what is refused


class Mark:
    """Unpickled by a careless reader, it leaves a mark."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["in the dict", "as the whole", "as a key", "a bare pickle", "in an npz"])
def test_no_code_of_a_files_is_run(tmp_path, where):
    mark, path = tmp_path / "mark", tmp_path / "a.pt"
    evil = Mark(mark)
    if where == "a bare pickle":
        path.write_bytes(pickle.dumps({"W_Q": evil}))
    elif where == "in an npz":
        path = tmp_path / "a.npz"
        np.savez(path, KQ=np.array([evil], dtype=object), OV=np.ones(1))
    else:
        torch.save({"in the dict": {"a": evil}, "as the whole": evil, "as a key": {evil: 1}}[where], path)
    refused(path, "which is not read|holds more than data, and no code|expected plain numbers")
    assert not mark.exists()
    if where == "in an npz":
        np.load(path, allow_pickle=True)["KQ"]
    elif where == "a bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # it would have


def test_a_module_saved_whole(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"save the module's state_dict\(\) and plain numbers, not the module or numpy's objects")
    torch.save({"losses": np.float64(3.0)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds more than data")


def test_a_header_that_claims_too_much(tmp_path):
    header = b'{"KQ":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(path, "a safetensors file, truncated or damaged")

    file = io.BytesIO()
    claims = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(file, claims)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("KQ.npy", file.getvalue() + b"\0" * 64)
    refused(tmp_path / "a.npz", r"KQ.npy in it claims shape \(1000000, 1000000\) of float64, but has 64 bytes")


def test_views_that_claim_too_much(tmp_path):
    torch.save({"W_Q": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "with W_Q its tensors claim 4,000,000,000,000 bytes")
    one = torch.zeros(1)
    torch.save({f"W_{i}": one.expand(10**6) for i in range(200)}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10**5
    refused(tmp_path / "a.pt", "its tensors claim 5[0-9]{2},000,000 bytes")
    torch.save({"W_Q": [one.expand(10**12)]}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "with W_Q its tensors claim")


def test_lists_of_tensors_are_not_dropped_in_silence():
    KQ, OV = torch.zeros(1, 3, 3), torch.zeros(1, 1, 3)
    assert load_run({"KQ": KQ, "OV": OV, "losses": [1.0, 2.0], "note": "x"}).model_config.dim == 2
    with pytest.raises(CheckpointError, match="it also holds more, which would be lost"):
        load_run({"KQ": KQ, "OV": OV, "more": [[torch.zeros(1)]]})
    within: list[object] = []
    within.append(within)
    assert load_run({"KQ": KQ, "OV": OV, "itself": within}).model_config.dim == 2


def test_what_training_needs_besides_a_model_is_left_out_and_said(tmp_path):
    model = ICLTransformer(ModelConfig(dim=3), seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 5, 4), return_type="loss", y_q=torch.zeros(4, 1)).backward()
    optimizer.step()
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(held, tmp_path / "a.pt")
    run = load_run(tmp_path / "a.pt")
    assert "optimizer is no part of the model, and not read" in run.assumed
    assert torch.equal(run.weights["W_Q"], model.weights()["W_Q"])


def test_a_zip_bomb(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("KQ.npy", bytes(10**7))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(reading, "MAX_BYTES", 10**6)
    refused(path, "unpacks to 10,000,000 bytes in 1 parts, a checkpoint of such a model to at most 1,000,000")
    monkeypatch.setattr(reading, "MAX_ENTRIES", 10)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(11):
            archive.writestr(f"{i}.npy", b"")
    refused(path, "in 11 parts")


def test_compressed_parts_in_a_file_of_torch(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(tmp_path / "b.pt", "with compressed parts, which torch does not write")


def test_files_that_are_too_large(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\0" * 8)
    os.truncate(path, 10**12)  # sparse: it takes no room on the disk
    refused(path, "has 1,000,000,000,000 bytes, a checkpoint of such a model at most")


def test_dicts_in_dicts(tmp_path):
    held: dict[str, object] = {"a": torch.ones(1)}
    for _ in range(300):
        held = {"a": held}
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "dicts within dicts more than 16 deep")
    with pytest.raises(CheckpointError, match="more than 16 deep"):
        load_run(held)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.eye(3).to_sparse(), "is not a dense tensor of real numbers"),
        (torch.zeros(3, dtype=torch.complex64), "is not a dense tensor of real numbers"),
        (torch.zeros(3, device="meta"), "is not a dense tensor of real numbers"),
    ],
)
def test_tensors_of_other_kinds(tensor, said):
    with pytest.raises(CheckpointError, match=said):
        load_run({"a": tensor})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is an empty file"),
        (b"hello, world, this is text", r"is no checkpoint that is known: .* begins with b'hello, w'"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': ", "a single array without a name: save KQ and OV"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "an HDF5 file"),
        (b"PK\x03\x04" + b"\0" * 40, "is an archive, truncated or damaged"),
        (b"\x80\x02}q\x00.", "a bare pickle"),
    ],
)
def test_files_of_other_kinds(tmp_path, data, said):
    (tmp_path / "a").write_bytes(data)
    refused(tmp_path / "a", said)


def test_archives_of_other_kinds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../etc/passwd", "x")
        archive.writestr("\x1b[31mred", "x")
    error = refused(tmp_path / "a.zip", r"of neither torch.save nor np.savez: it holds ../../etc/passwd, �\[31mred")
    assert isinstance(error, NoCheckpointError)
    assert "\x1b" not in str(error)


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is neither a file nor a folder")
    refused(tmp_path / "nothing", "does not exist")
    with pytest.raises(CheckpointError, match="/dev/zero: is neither a file nor a folder"):
        load_run("/dev/zero")


@pytest.mark.parametrize("name", ["run.json", "weights.safetensors", "dynamics.safetensors"])
def test_links_out_of_a_runs_folder_are_not_followed(tmp_path, name):
    config = ModelConfig(dim=2)
    folder = Run(config, initial_weights(config)).save(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    real = folder / name
    if not real.exists():
        save_file({"steps": torch.zeros(1)}, real)
    real.rename(tmp_path / "elsewhere" / name)
    real.symlink_to(tmp_path / "elsewhere" / name)
    refused(folder, f"{name} is a link that leads out of the folder, which is not followed")
    real.unlink()
    (tmp_path / "elsewhere" / name).rename(folder / "moved")
    real.symlink_to("moved")  # within it they may
    if name != "dynamics.safetensors":
        assert load_run(folder).model_config == config


# ---- what is recognised


def test_names_in_messages_are_few_short_and_harmless():
    assert shown([]) == "nothing"
    assert shown(["a\x1b[0m\u202e", "b" * 100]) == f"a�[0m�, {'b' * 60}…"
    assert shown(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_a_file_that_no_format_recognises(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "a.safetensors")
    error = refused(tmp_path / "a.safetensors", "a safetensors file that no format recognises: it holds a, b; what is")
    assert isinstance(error, ConfigError)
    for title, _ in registry.known_formats().values():
        assert title in str(error)


def test_our_own_model_in_memory_and_in_a_module_of_somebodys():
    model = ICLTransformer(ModelConfig(dim=3, n_heads=3, n_layers=2, attn_scale=0.7), seed=0)

    class Wrapper(torch.nn.Module):
        def __init__(self, extra):
            super().__init__()
            self.inner = model
            if extra:
                self.head = torch.nn.Linear(1, 1)

    for checkpoint in (model, Wrapper(False)):
        run = load_run(checkpoint)
        assert run.model_config == model.config
        assert all(torch.equal(run.weights[name], model.weights()[name]) for name in run.weights)
        assert run.format == "an ICLTransformer"
        assert run.assumed == ()
    with pytest.raises(CheckpointError, match=r"it also holds head.weight, head.bias, which would be lost"):
        load_run(Wrapper(True))


def test_a_format_of_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry.known_formats() and registry._REGISTRY))

    @checkpoint_format(name="mine", title="a checkpoint of my code")
    class Mine:
        def recognises(self, contents: Contents) -> bool:
            return set(contents.tensors) == {"mine"}

        def read(self, contents: Contents, given: Given) -> Run:
            config = ModelConfig(dim=2)
            weights = initial_weights(config, torch.Generator().manual_seed(int(contents.tensors["mine"])))
            return Run(config, weights, origin=contents.origin, assumed=("seeds mean weights",))

    torch.save({"mine": torch.tensor(3)}, tmp_path / "a.pt")
    run = load_run(tmp_path / "a.pt")
    assert (run.format, run.assumed) == ("a checkpoint of my code", ("seeds mean weights",))
    with pytest.raises(ConfigError, match="a format needs a snake_case name and a title, got 'not one' and ''"):
        checkpoint_format(name="not one", title="")


def test_formats_of_installed_packages_are_found_and_a_broken_one_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry.known_formats()))
    (tmp_path / "theirs.py").write_text(
        "from icl_interp.formats import checkpoint_format\n"
        "@checkpoint_format(name='theirs', title='a checkpoint of theirs')\n"
        "class Theirs:\n"
        "    def recognises(self, contents):\n"
        "        return 'theirs' in contents.tensors\n"
        "    def read(self, contents, given):\n"
        "        raise AssertionError\n"
    )
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [EntryPoint(name, name, registry.ENTRY_POINTS) for name in ("theirs", "broken")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with pytest.warns(
        UserWarning, match="the checkpoint format 'broken' could not be loaded: No module named 'nowhere"
    ):
        formats = registry.known_formats()
    assert list(formats) == [*registry.BUILT_IN, "theirs"]


def test_what_a_format_gets_wrong_is_told_with_file_and_format(tmp_path, monkeypatch):
    torch.save({"KQ": torch.zeros(1), "OV": torch.zeros(1)}, tmp_path / "a.pt")

    def broken(self, contents, given):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(type(registry.known_formats()["arrays"][1]), "read", broken)
    refused(tmp_path / "a.pt", "a.pt: oh")
    assert opening.load_run is load_run


def test_what_is_given_is_checked_and_must_agree(tmp_path):
    for wrong in ({"dim": 0}, {"n_heads": 2.5}, {"attn_scale": -1.0}, {"mask": "causal"}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
            Given(**wrong)
    config = ModelConfig(dim=3, attn_scale=2)
    path = Run(config, initial_weights(config)).save(tmp_path / "run")
    assert load_run(path, Given(3, 1, 2, 2.0, "demonstrations")).model_config == config
    for wrong in (Given(attn_scale=1.0), Given(mask="strict_causal"), Given(n_heads=4)):
        with pytest.raises(ConfigError, match="was given"):
            load_run(path, wrong)
