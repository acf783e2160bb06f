"""A run's folder: bit for bit there and back, all or nothing on any disk, and no file that can do harm.

Every refusal is a `CheckpointError` or a `SaveError` that names the path and the reason; any other exception is a bug.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import icl_interp as icl
from icl_interp.errors import CheckpointError, ConfigError, SaveError
from icl_interp.formats import load, load_run, save_run
from icl_interp.formats.files import write_file
from icl_interp.formats.native import check_target
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, Prompt, UnavailableTask, kms
from icl_interp.testing import plant

RUN, WEIGHTS, DYNAMICS = "run.json", "weights.safetensors", "dynamics.safetensors"
SIGMA = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])


class Sines:
    """A task of a user's own."""

    dim, length, n_outputs = 3, np.int64(6), 1  # a length from np.arange, say

    def sample(self, batch, *, length=None, generator=None, device=None):
        x = torch.randn(batch, int(length or self.length) + 1, 3, generator=generator, device=device)
        y = x.sum(-1, keepdim=True).sin()
        return Prompt(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])

    def __repr__(self):
        return "Sines()"


TASKS = {
    "plain": LinearRegression(3, 6),
    "kms": LinearRegression(3, 6, covariance=kms(0.5), mean=1.5),
    "matrix": LinearRegression(3, 6, noise_var=1 / 3, covariance=SIGMA, mean=[1.0, 0.1, -2.0], query_noise=False),
    "own": Sines(),
}


def trained(task, **kwargs):
    return icl.train(task, n_heads=2, steps=30, n_records=20, progress=False, **kwargs)


@pytest.fixture(scope="module")
def run():
    return trained(TASKS["kms"])


@pytest.fixture(scope="module")
def other():
    return plant(TASKS["plain"], omega=[0.4], mu=[1.4]).run


@pytest.fixture
def saved(run, tmp_path):
    return save_run(run, tmp_path / "run")


def assert_same(a, b):
    assert (a.model_config, a.training, a.task) == (b.model_config, b.training, b.task)
    assert (a.step, a.seed, a.versions) == (b.step, b.seed, b.versions)
    assert_same_tensors(a.weights, b.weights)
    assert (a.dynamics is None) == (b.dynamics is None)
    if a.dynamics is not None:
        for name in ("steps", "loss", "omega", "mu", "snapshot_steps"):
            x, y = getattr(a.dynamics, name), getattr(b.dynamics, name)
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        assert_same_tensors(a.dynamics.snapshots, b.dynamics.snapshots)


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name])


def assert_refused(path, reason, named=None):
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_run(path)
    assert str(caught.value).startswith(f"{named or path}: ")


def edit_json(folder, change):
    data = json.loads((folder / RUN).read_text())
    change(data)
    (folder / RUN).write_text(json.dumps(data))


def files_of(folder):
    """Everything beneath, hidden or not, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# --- There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_a_trained_run_comes_back_bit_for_bit(kind, tmp_path):
    task = TASKS[kind]
    run = trained(task, seed=3, out=tmp_path / "run")
    back = load_run(tmp_path / "run")
    if kind == "own":
        stand_in = UnavailableTask(3, 6, 1, "Sines()")
        assert back.task == back.training.task == stand_in
        run = dataclasses.replace(run, task=stand_in, training=dataclasses.replace(run.training, task=stand_in))
        with pytest.raises(ConfigError, match=r"Sines\(\): pass it as task="):
            back.task.sample(2)
    assert_same(back, run)
    assert back.origin == str(tmp_path / "run")
    assert_same(load_run(save_run(back, tmp_path / "again")), run)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "run")


def test_every_way_to_open_a_run(run, saved, monkeypatch):
    assert_same(Run.load(saved), run)
    assert_same(load_run(str(saved)), run)
    assert_same(load_run(saved / WEIGHTS), run)
    prompt = run.task.sample(4, generator=torch.Generator().manual_seed(0))
    for model in (load(saved), icl.load(str(saved)), Run.load(saved).model()):
        assert torch.equal(model.predict(prompt), run.model().predict(prompt))
    monkeypatch.chdir(saved)
    for path in (".", WEIGHTS, f"../run/./{WEIGHTS}"):
        assert_same(load_run(path), run)


def test_a_run_of_unknown_origin(other, tmp_path):
    bare = Run(other.model_config, other.weights)
    assert_same(load_run(bare.save(tmp_path / "bare")), bare)
    assert sorted(files_of(tmp_path / "bare")) == [RUN, WEIGHTS]
    assert_same(load_run(other.save(tmp_path / "planted")), other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_kept(other, dtype, tmp_path):
    run = dataclasses.replace(other, weights={name: w.to(dtype) for name, w in other.weights.items()})
    assert_same(load_run(run.save(tmp_path / "run")), run)


def test_weights_as_they_come(run, tmp_path):
    def awkward(tensor):
        return tensor.mT.contiguous().mT.requires_grad_()  # strided, and in the midst of a graph

    tied = run.weights["W_Q"].clone()
    weights = {name: awkward(tensor) for name, tensor in run.weights.items()} | {"W_Q": tied, "W_K": tied}
    records = {name: np.asfortranarray(getattr(run.dynamics, name)) for name in ("omega", "mu")}
    records["loss"] = run.dynamics.loss.copy()
    for array in records.values():
        array.setflags(write=False)
    odd = dataclasses.replace(run, weights=weights, dynamics=dataclasses.replace(run.dynamics, **records))
    back = load_run(odd.save(tmp_path / "run"))
    assert_same(back, odd)
    assert not any(w.requires_grad for w in back.weights.values())
    assert back.weights["W_Q"].data_ptr() != back.weights["W_K"].data_ptr()


def test_numbers_that_are_not_plain_are_written_as_numbers(other, tmp_path):
    run = dataclasses.replace(other, step=np.int64(7), seed=np.int32(3))
    back = load_run(run.save(tmp_path / "run"))
    assert (back.step, back.seed) == (7, 3)


def test_a_large_covariance_matrix_can_be_read_again(tmp_path):
    dim = 300
    sigma = np.eye(dim) + 1 / 3
    big = plant(LinearRegression(dim, 6, covariance=sigma), omega=[0.4], mu=[1.4]).run
    back = load_run(big.save(tmp_path / "run"))
    assert back.task == big.task


def test_anyone_can_read_the_folder(run, saved):
    assert sorted(files_of(saved)) == [DYNAMICS, RUN, WEIGHTS]
    data = json.loads((saved / RUN).read_text(encoding="utf-8"))
    assert list(data) == ["schema_version", "model", "task", "training", "step", "seed", "versions", "assumed"]
    assert data["schema_version"] == 1
    assert data["model"]["n_heads"] == 2
    assert data["task"] == {
        "kind": "LinearRegression",
        "dim": 3,
        "length": 6,
        "noise_var": 0.1,
        "covariance": {"rho": 0.5},
        "mean": 1.5,
        "query_noise": True,
        "signal_var": 1.0,
    }
    assert data["training"]["steps"] == 30
    assert data["versions"]["torch"] == torch.__version__
    assert_same_tensors(load_file(saved / WEIGHTS), run.weights)
    assert load_file(saved / DYNAMICS)["steps"].tolist() == run.dynamics.steps.tolist()


def test_the_users_umask_decides_who_may_read(run, tmp_path):
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            folder = run.save(tmp_path / f"{umask:o}")
            report = write_file(tmp_path / f"{umask:o}.html", "report")
        finally:
            os.umask(before)
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
        for file in (*folder.iterdir(), report):
            assert file.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    "name",
    ["with space", "ünï — 中文 😀", "a'b\"c", "-rf", "x.tmp", ".hidden", "run.json", "%s{}\\", "a\nb", "n" * 200],
)
def test_odd_names(run, name, tmp_path):
    folder = run.save(tmp_path / "deep" / "er" / name)
    assert_same(load_run(folder), run)
    run.save(folder, overwrite=True)
    assert [p.name for p in folder.parent.iterdir()] == [name]


def test_relative_paths_and_links(run, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.save("run")
    os.symlink("run", "link")
    assert_same(load_run("link"), run)
    other.save("link", overwrite=True)  # writes through it
    assert Path("link").is_symlink()
    assert_same(load_run("run"), other)
    os.symlink("nowhere", "dangling")
    run.save("dangling")
    assert_same(load_run("nowhere"), run)
    run.save("run/../sub/./run")
    assert_same(load_run("sub/run"), run)
    os.mkdir("empty")
    monkeypatch.chdir("empty")
    run.save(".")
    assert_same(load_run(tmp_path / "empty"), run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "empty", "link", "nowhere", "run", "sub"]


# --- What is there already -------------------------------------------------------------------------------------------


def test_a_run_is_not_replaced_unasked(run, other, saved):
    before = files_of(saved.parent)
    with pytest.raises(
        SaveError, match=re.escape(f"{saved} already holds a run; choose another place, or overwrite it")
    ) as caught:
        other.save(saved)
    assert caught.value.run is other
    with pytest.raises(SaveError, match="already holds a run"):
        trained(TASKS["plain"], out=saved)
    assert files_of(saved.parent) == before


def test_a_run_is_replaced_whole(other, saved):
    (saved / "report.html").write_text("about the older run")
    other.save(saved, overwrite=True)
    assert_same(load_run(saved), other)
    assert sorted(files_of(saved.parent)) == ["run", f"run/{RUN}", f"run/{WEIGHTS}"]


def test_an_empty_folder_is_filled(run, tmp_path):
    (tmp_path / "run").mkdir()
    assert_same(load_run(run.save(tmp_path / "run")), run)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [["notes.txt"], [RUN], [WEIGHTS], [".git/config"], None])
def test_nothing_but_a_run_is_ever_replaced(run, overwrite, content, tmp_path):
    # A lone run.json may be anybody's: other tools write one too.
    target = tmp_path / "mine"
    for name in content or ():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("dear")
    if content is None:
        target.write_text("dear")
    before = files_of(tmp_path)
    with pytest.raises(
        SaveError, match=re.escape(f"{target} exists and is not a run of ours; choose another place")
    ) as caught:
        run.save(target, overwrite=overwrite)
    assert caught.value.run is run
    assert files_of(tmp_path) == before


# --- Disks that refuse -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unprivileged():
    """As nobody, if we are root: root may write anywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def shared():
    """A folder that others may enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_place_that_may_not_be_written_to_is_found_out_before_training(run, shared):
    closed = shared / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    with unprivileged():
        for target in (closed / "run", closed / "deep" / "run"):
            reason = re.escape(f"{target} cannot be written: {closed} is not a folder that may be written to")
            with pytest.raises(SaveError, match=reason) as caught:
                run.save(target)
            assert caught.value.run is run
            with pytest.raises(SaveError, match=reason):
                check_target(target, overwrite=True)
    assert files_of(shared) == {"closed": None}


def test_a_run_in_a_closed_folder_is_not_half_replaced(run, other, shared):
    run.save(shared / "run")
    shared.chmod(0o555)
    with unprivileged(), pytest.raises(SaveError, match="cannot be written"):
        other.save(shared / "run", overwrite=True)
    assert_same(load_run(shared / "run"), run)


def test_what_may_not_be_read(run, shared):
    folder = run.save(shared / "run")
    for path, mode in ((folder / WEIGHTS, 0o644), (folder / RUN, 0o644), (folder, 0o755)):
        path.chmod(0)
        with unprivileged():
            assert_refused(folder, "Permission denied")
        path.chmod(mode)
    assert_same(load_run(folder), run)


@pytest.mark.parametrize("make_parent", [lambda p: p.write_text("a file"), lambda p: p.symlink_to(p)])
def test_parents_that_are_not_folders(run, make_parent, tmp_path):
    make_parent(tmp_path / "parent")
    for target in (tmp_path / "parent" / "run", tmp_path / "parent" / "deep" / "run"):
        with pytest.raises(SaveError, match=re.escape(str(target))) as caught:
            run.save(target)
        assert caught.value.run is run
        with pytest.raises(CheckpointError):
            load_run(target)


@pytest.mark.parametrize(
    "path", ["n" * 300, "nul\0byte", "/", "", "/proc/self/nothing/run", "/dev/null", "/dev/null/run"]
)
def test_paths_that_cannot_be(run, path, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("so that the current folder is not empty")
    monkeypatch.chdir(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(SaveError) as caught:
            run.save(path, overwrite=overwrite)
        assert caught.value.run is run
        with pytest.raises(SaveError):
            check_target(Path(path), overwrite=overwrite)
    with pytest.raises(CheckpointError):
        load_run(path)
    with pytest.raises(CheckpointError):
        icl.load(path)
    assert list(files_of(tmp_path)) == ["occupied"]


def test_a_run_that_cannot_be_written_down_is_handed_back(other, tmp_path):
    for broken in ({"versions": {"torch": object()}}, {"versions": {"torch": "\ud800"}}, {"seed": 1j}):
        run = dataclasses.replace(other, **broken)
        with pytest.raises(SaveError, match=re.escape(f"could not save the run to {tmp_path / 'run'}: ")) as caught:
            run.save(tmp_path / "run")
        assert caught.value.run is run
    assert files_of(tmp_path) == {}


def test_dynamics_that_could_not_be_opened_are_not_written(run, tmp_path):
    torn = dataclasses.replace(run, dynamics=dataclasses.replace(run.dynamics, loss=run.dynamics.loss[:-1]))
    with pytest.raises(
        SaveError, match=r"could not save the run to .*dynamics: loss must be floats of shape"
    ) as caught:
        torn.save(tmp_path / "run")
    assert caught.value.run is torn
    assert files_of(tmp_path) == {}


# Saves one run over and over, in a process of its own, under limits that this one must not have.
SAVE_UNDER_LIMITS = """
import resource, signal, sys
from pathlib import Path
from icl_interp.errors import SaveError
from icl_interp.formats import load_run
from icl_interp.formats.files import write_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
older, target = Path(sys.argv[1]), Path(sys.argv[2])
run = load_run(older)
for size in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for path, overwrite in ((target / "new", False), (older, True)):
        try:
            run.save(path, overwrite=overwrite)
        except SaveError as error:
            assert error.run is run
            print(error)
        else:
            sys.exit(f"a file of more than {size} bytes was written")
    try:
        write_file(target / "report.html", "x" * 100_000)
    except SaveError as error:
        print(error)
    else:
        sys.exit("100,000 bytes were written")
"""


def in_a_process(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_disk_that_fills_up_loses_nothing(run, tmp_path):
    older = run.save(tmp_path / "older")
    (tmp_path / "report.html").write_text("older")
    before = files_of(tmp_path)
    sizes = sorted(len(data) for data in files_of(older).values())
    limits = [0, 10, *(size - 1 for size in sizes)]  # so that each of the files is the one that does not fit
    said = in_a_process(SAVE_UNDER_LIMITS, older, tmp_path, *limits)
    for i in range(len(limits)):
        assert said[3 * i] == f"could not save the run to {tmp_path / 'new'}: File too large"
        assert said[3 * i + 1] == f"could not save the run to {older}: File too large"
        assert said[3 * i + 2] == f"could not write {tmp_path / 'report.html'}: File too large"
    assert files_of(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path):
    """24 kB of disk that is really full at the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(run, other, small_disk):
    other.save(small_disk / "other")
    before = files_of(small_disk)
    for path, overwrite in ((small_disk / "run", False), (small_disk / "other", True)):
        with pytest.raises(SaveError, match=f"could not save the run to {path}: No space left on device") as caught:
            run.save(path, overwrite=overwrite)
        assert caught.value.run is run
    with pytest.raises(SaveError, match=r"could not write .*report.html: No space left on device"):
        write_file(small_disk / "report.html", "x" * 100_000)
    assert files_of(small_disk) == before
    assert_same(load_run(small_disk / "other"), other)


# Forks children that overwrite the same run for ever, and kills each at some moment.
KILLED_IN_THE_MIDST = """
import os, signal, sys, time
from pathlib import Path
from icl_interp.formats import load_run

path = Path(sys.argv[1])
run = load_run(path)
aside = 0
for i in range(20):
    child = os.fork()
    if child == 0:
        while True:
            run.save(path, overwrite=True)
    time.sleep(0.01 + 0.0014 * i)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    aside += not path.exists()
    assert load_run(path).origin == str(path)
print(aside)
run.save(path, overwrite=True)
"""


def test_a_process_killed_while_overwriting_leaves_a_run(run, tmp_path):
    path = run.save(tmp_path / "run")
    in_a_process(KILLED_IN_THE_MIDST, path)
    assert_same(load_run(path), run)
    assert [p for p in tmp_path.iterdir() if not p.name.endswith(".tmp")] == [path]


def test_a_run_between_two_renames_is_found_and_protected(run, other, tmp_path):
    path = run.save(tmp_path / "run")
    aside = path.rename(tmp_path / ".run.old")  # as far as an overwriting process came
    back = load_run(path)
    assert_same(back, run)
    assert back.origin == str(path)
    with pytest.raises(SaveError, match="already holds a run"):
        other.save(path)
    assert aside.exists()
    other.save(path, overwrite=True)
    assert_same(load_run(path), other)
    assert not aside.exists()


def test_leftovers_of_a_crash_do_not_stand_in_the_way(run, other, tmp_path):
    path = run.save(tmp_path / "run")
    shutil.copytree(path, tmp_path / ".run.old")  # killed before the older run was removed
    other.save(path, overwrite=True)
    assert_same(load_run(path), other)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_overwriting_cut_short_between_two_renames_brings_the_older_run_back(run, other, tmp_path, error):
    path = run.save(tmp_path / "run")
    armed = [error]

    def cut_short(event, arguments):
        if armed and event == "os.rename" and Path(arguments[1]) == path:
            raise armed.pop()

    sys.addaudithook(cut_short)  # cannot be taken away again, but fires once only
    with pytest.raises(SaveError if isinstance(error, OSError) else KeyboardInterrupt, match=r"Input/output error|^$"):
        other.save(path, overwrite=True)
    assert not armed
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert_same(load_run(path), run)


def test_a_rename_that_fails_brings_the_older_run_back(run, other, tmp_path):
    path = run.save(tmp_path / "run")
    (tmp_path / ".run.old").write_text("a file where the older run would step aside")
    with pytest.raises(SaveError, match=re.escape(f"could not save the run to {path}: Not a directory")):
        other.save(path, overwrite=True)
    assert_same(load_run(path), run)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run.old", "run"]


# --- Files that are not what they seem -------------------------------------------------------------------------------


def test_wrong_places(saved, tmp_path):
    assert_refused(tmp_path / "nowhere", "does not exist")
    assert_refused(tmp_path / "nowhere" / WEIGHTS, "does not exist")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", f"not a run: expected a folder with {RUN} and {WEIGHTS}, found nothing")
    (tmp_path / "full").mkdir()
    for name in "ba":
        (tmp_path / "full" / name).write_text("")
    assert_refused(tmp_path / "full", "not a run: .* found a, b")
    assert_refused(saved / RUN, "is not a run but one of its files: name the folder it is in")
    assert_refused(saved.parent, "not a run: .* found empty, full, run")
    (tmp_path / WEIGHTS).write_bytes(b"")
    assert_refused(tmp_path / WEIGHTS, "is an empty file")


@pytest.mark.parametrize("name", [RUN, WEIGHTS, DYNAMICS])
@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to("/proc/self/mem")]
)
def test_files_that_are_no_files(run, saved, name, make):
    (saved / name).unlink()
    make(saved / name)
    if name == DYNAMICS and not (saved / name).exists():
        assert load_run(saved).dynamics is None  # as good as absent
    else:
        assert_refused(saved, "not a run|is missing|truncated or damaged|a link that leads out of the folder")


def test_missing_files(run, saved):
    (saved / DYNAMICS).unlink()
    assert_same(load_run(saved), dataclasses.replace(run, dynamics=None))
    (saved / WEIGHTS).unlink()
    assert_refused(saved, "weights.safetensors is missing")
    assert_refused(saved / WEIGHTS, "does not exist")


@pytest.mark.parametrize("name", [RUN, WEIGHTS, DYNAMICS])
def test_truncated_anywhere(saved, name):
    whole = (saved / name).read_bytes()
    for length in sorted({0, 1, 7, 8, 9, *range(0, len(whole), len(whole) // 100), len(whole) - 2, len(whole) - 1}):
        (saved / name).write_bytes(whole[:length])
        assert_refused(saved, f"{name} is (truncated or )?damaged")
    (saved / name).write_bytes(whole + b"\0")
    assert_refused(saved, f"{name} is (truncated or )?damaged")


@given(st.sampled_from([RUN, WEIGHTS, DYNAMICS]), st.data())
@settings(max_examples=120)
def test_flipped_bits_are_refused_or_harmless(run, folder, name, data):
    whole = (folder / name).read_bytes()
    # Headers are where structure is: half of the flips go there.
    position = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, min(len(whole), 600) - 1))
    spoilt = bytearray(whole)
    spoilt[position] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(spoilt)
    try:
        back = load_run(folder)
        assert back.model_config.dim == 3
        back.circuits()
    except CheckpointError as error:
        assert str(error).startswith(f"{folder}: ")  # noqa: PT017
    finally:
        (folder / name).write_bytes(whole)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return run.save(tmp_path_factory.mktemp("flipped") / "run")


@given(st.binary(max_size=200), st.sampled_from([RUN, WEIGHTS, DYNAMICS]))
def test_noise_is_refused(folder, data, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(data)
    try:
        assert_refused(folder, name)
    finally:
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "run.json is not a run's description: expected an object, got a list"),
        ("null", "expected an object, got a NoneType"),
        ("{}", "schema_version None, expected 1"),
        ("[" * 100_000, "run.json is damaged, not JSON"),
        ('{"a":' * 100_000, "run.json is damaged, not JSON"),
        ('{"schema_version": ' + "9" * 5000 + "}", "run.json is damaged, not JSON"),
        ("\ufeff{}", "run.json is damaged, not JSON"),
    ],
)
def test_json_that_is_no_description(saved, text, complaint):
    (saved / RUN).write_text(text, encoding="utf-8")
    assert_refused(saved, complaint)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(schema_version=2), "written in schema version 2, this icl-interp reads up to 1"),
        (lambda d: d.update(schema_version=10**400), "written in schema version 1000"),
        (lambda d: d.update(schema_version=0), "schema_version 0, expected 1"),
        (lambda d: d.update(schema_version=True), "schema_version True, expected 1"),
        (lambda d: d.update(schema_version="1"), "schema_version '1', expected 1"),
        (lambda d: d.pop("schema_version"), "schema_version None, expected 1"),
        (lambda d: d.pop("model"), r"model is missing @ \$.model"),
        (lambda d: d.update(model=None), r"expected an object, got None @ \$.model"),
        (lambda d: d["model"].update(n_heads=0), r"n_heads must be a whole number ≥ 1, got 0 @ \$.model"),
        (lambda d: d["model"].update(n_heads=10**400), "W_Q must have shape"),
        (lambda d: d["model"].update(n_heads=3), "W_Q must have shape .* got "),
        (lambda d: d["model"].update(dim=2), "model.dim is 2, the task's is 3"),
        (lambda d: d["model"].update(mask="none"), "not in literal"),
        (lambda d: d["model"].update(attn_scale=-1.0), "attn_scale must be a finite number > 0, got -1.0"),
        (lambda d: d["model"].update(gates=1), "Extra fields in constructor for ModelConfig: gates"),
        (lambda d: d.update(task={"kind": "Sparse"}), "unknown task 'Sparse'; this version knows"),
        (lambda d: d["task"].update(dim=2), "model.dim is 3, the task's is 2"),
        (lambda d: d["task"].update(noise_var="0.1"), r"expected a number, got '0.1' @ \$.task.noise_var"),
        (lambda d: d.update(training=[]), r"expected an object, got \[\] @ \$.training"),
        (lambda d: d["training"].update(lr="NaN"), "lr must be a finite number > 0, got nan"),
        (lambda d: d["training"].update(steps=30.0), r"expected int, got 30.0 @ \$.training.steps"),
        (lambda d: d.update(step="30"), r"expected int, got '30' @ \$.step"),
        (lambda d: d.update(versions={"torch": 2}), r"expected str, got 2 @ \$.versions\['torch'\]"),
        (lambda d: d.update(versions="2"), r"expected an object, got '2' @ \$.versions"),
        (lambda d: d.update(surprise=1), "Extra fields in constructor for .*: surprise"),
        (lambda d: (d.update(training=None), d["task"].update(dim=2)), "the task's dim is 2, the model's 3"),
    ],
)
def test_descriptions_that_cannot_be(saved, change, complaint):
    edit_json(saved, change)
    assert_refused(saved, complaint)


def spoil(tensors, name, change):
    return {**tensors, name: change(tensors[name].clone())}


def with_nan(tensor):
    tensor.view(-1)[-1] = float("nan")
    return tensor


@pytest.mark.parametrize("file", [WEIGHTS, DYNAMICS])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: spoil(t, "W_Q", with_nan), "W_Q must be finite, got NaN or infinity in 1 of"),
        (lambda t: spoil(t, "W_O", lambda w: w * float("inf")), "W_O must be finite"),
        (lambda t: spoil(t, "W_K", lambda w: w[..., :-1].contiguous()), "W_K must have shape"),
        (lambda t: spoil(t, "W_K", lambda w: w.to(torch.int32)), "W_K must be floating point"),
        (lambda t: spoil(t, "W_K", lambda w: w.to(torch.float8_e4m3fn)), "not implemented for 'Float8_e4m3fn'"),
        (lambda t: {k: v for k, v in t.items() if k != "W_V"}, "missing: W_V"),
        (lambda t: {**t, "b_Q": t["W_Q"].clone()}, "unexpected: b_Q"),
    ],
)
def test_tensors_that_cannot_be(saved, file, change, complaint):
    save_file(change(load_file(saved / file)), saved / file)
    assert_refused(saved, complaint)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: {k: v for k, v in t.items() if k not in ("loss", "mu")}, "dynamics.safetensors lacks loss, mu"),
        (lambda t: spoil(t, "steps", lambda s: s[0]), "steps must be ascending whole numbers, got 0"),
        (lambda t: spoil(t, "steps", lambda s: s.flip(0)), "steps must be ascending whole numbers"),
        (lambda t: spoil(t, "steps", lambda s: s.to(torch.bfloat16)), "BFloat16"),
        (lambda t: spoil(t, "loss", lambda s: s.to(torch.bfloat16)), "BFloat16"),
        (lambda t: spoil(t, "loss", lambda s: s[1:].clone()), "loss must be floats of shape"),
        (lambda t: spoil(t, "omega", lambda s: s[..., :1].clone()), "omega must be floats of shape"),
        (lambda t: spoil(t, "snapshot_steps", lambda s: s + 1), "must be a part of steps and end with 30"),
        (lambda t: {**t, "steps": t["steps"][:0], "snapshot_steps": t["steps"][:0]}, "steps must be ascending"),
    ],
)
def test_dynamics_that_cannot_be(saved, change, complaint):
    save_file(change(load_file(saved / DYNAMICS)), saved / DYNAMICS)
    assert_refused(saved, complaint)


# --- Trust -----------------------------------------------------------------------------------------------------------


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", [RUN, WEIGHTS, DYNAMICS])
def test_nothing_in_a_file_is_ever_run(saved, name, tmp_path):
    marker = tmp_path / "sprung"
    (saved / name).write_bytes(pickle.dumps(Trap(marker)))
    assert_refused(saved, "damaged")
    torch.save({"W_Q": Trap(marker)}, saved / name)
    assert_refused(saved, "damaged")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))  # the trap works
    assert marker.exists()


def test_no_module_of_ours_unpickles():
    unpickles = re.compile(r"(pickle|dill|joblib|marshal)\.loads?\b|Unpickler|import shelve|torch\.load\(|allow_pickle")
    sources = {file: file.read_text(encoding="utf-8") for file in Path(icl.__file__).parent.rglob("*.py")}
    assert len(sources) > 20
    safe = 'torch.load(path, map_location="cpu", weights_only=True)'  # of data alone, whatever a file says
    found = [file.name for file, text in sources.items() if unpickles.search(text.replace(safe, ""))]
    assert found == []
    assert sum(text.count(safe) for text in sources.values()) == 1


def test_a_run_from_a_gpu_opens_without_one(run, saved):
    edit_json(saved, lambda data: data["versions"].update(device="cuda", torch="2.9.0+cu128"))
    program = """
import sys
from icl_interp.formats import load_run
run = load_run(sys.argv[1])
assert run.versions["device"] == "cuda"
assert all(w.device.type == "cpu" for w in run.weights.values())
assert "transformer_lens" not in sys.modules
print(float(run.weights["W_Q"].sum()))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program, saved], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == run.weights["W_Q"].sum().item()


# --- Single files ----------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "report.html"
    assert write_file(path, "größer") == path
    assert path.read_bytes() == "größer".encode()
    assert write_file(str(path), b"\0\xff").read_bytes() == b"\0\xff"
    for bad in ("a lone \ud800 surrogate",):
        with pytest.raises(SaveError, match=re.escape(f"could not write {path}: ")):
            write_file(path, bad)
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "folder", path / "below", tmp_path / "nul\0byte", tmp_path / ("n" * 300)):
        with pytest.raises(SaveError, match="could not write"):
            write_file(target, "text")
    assert path.read_bytes() == b"\0\xff"
    assert sorted(files_of(tmp_path)) == ["deep", "deep/report.html", "folder"]


def test_what_was_assumed_of_a_foreign_checkpoint_stays_with_it(run, tmp_path):
    assumed = ("scores are divided by 2",)
    dataclasses.replace(run, assumed=assumed).save(tmp_path / "foreign")
    assert load_run(tmp_path / "foreign").assumed == assumed
    run.save(tmp_path / "ours")
    edit_json(tmp_path / "ours", lambda data: data.pop("assumed"))  # as it was written before there was such a thing
    assert load_run(tmp_path / "ours").assumed == ()
