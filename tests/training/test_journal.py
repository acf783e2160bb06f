"""A training goes on after whatever stopped it, and ends where it would have ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError, SaveError, TrainingError
from icl_interp.formats import files
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression
from icl_interp.training import journal

TASK = LinearRegression(dim=3, length=12)
CONFIGS = [
    TrainConfig(TASK, ModelConfig(3, n_heads=1 + seed % 2), steps=3000, seed=seed, data_seed=0, n_records=30)
    for seed in range(4)
]
# Forked from a server that only imported, never from here: a thread of an earlier test may hold a lock, for good there.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["icl_interp.training"])
TORCH = {"engine": "torch", "batch_size": 8, "steps": 600}


def assert_equal(a: icl.Run, b: icl.Run) -> None:
    assert a.step == b.step
    assert a.dynamics is not None
    assert b.dynamics is not None
    for name in ("steps", "loss", "omega", "mu", "snapshot_steps"):
        np.testing.assert_array_equal(getattr(a.dynamics, name), getattr(b.dynamics, name))
    for name in a.weights:
        assert torch.equal(a.weights[name], b.weights[name])
        assert torch.equal(a.dynamics.snapshots[name], b.dynamics.snapshots[name])


def state_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.training")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is saved at every look at the clock, and there are many."""
    monkeypatch.setattr("icl_interp.training.population.BREATH", 1e-3)


class StoppedError(Exception):
    """As sudden as a test can be without ending itself."""


@contextmanager
def stopped_at(saves: int) -> Iterator[pytest.MonkeyPatch]:
    """The training inside ends right after so many saves of its state."""
    save, count = journal.Journal.save, iter(range(1, saves + 1))

    def saving(self: journal.Journal, *arguments: Any) -> bool:
        done = save(self, *arguments)
        if next(count) == saves:
            raise StoppedError
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "save", saving)
        with pytest.raises(StoppedError):
            yield patch


@pytest.mark.parametrize("options", [{"steps": 4000}, TORCH], ids=["numba", "torch"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(options: dict[str, Any], tmp_path: Path, often: None) -> None:
    for saves in (1, 2, 5):
        with stopped_at(saves):
            icl.train(TASK, out=tmp_path / "run", resume=True, save_every=1e-9, **options)
        assert not (tmp_path / "run").exists()
    resumed = icl.train(TASK, out=tmp_path / "run", resume=True, **options)
    assert_equal(resumed, icl.train(TASK, **options))
    assert_equal(resumed, icl.Run.load(tmp_path / "run"))
    assert os.listdir(tmp_path) == ["run"]


def test_a_resumed_population_ends_as_an_uninterrupted_one(tmp_path: Path, often: None) -> None:
    with stopped_at(4):
        icl.train_many(CONFIGS, out=tmp_path / "runs", save_every=1e-9)
    resumed = icl.train_many(CONFIGS, out=tmp_path / "runs", resume=True)
    for run, alone in zip(resumed, icl.train_many(CONFIGS), strict=True):
        assert_equal(run, alone)
    assert_equal(resumed[2], icl.train_many(CONFIGS[2:3])[0])
    assert os.listdir(tmp_path) == ["runs"]


def killed(out: Path, after: float) -> bool:
    """Train in a process of its own and kill it after so many seconds; whether it came to its end before."""
    process = CLEAN.Process(
        target=icl.train,
        args=(TASK,),
        kwargs={"steps": 40_000, "n_records": 100, "out": out, "resume": True, "save_every": 0.01, "progress": False},
    )
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def survive(kills: int, out: Path) -> None:
    whole = icl.train(TASK, steps=40_000, n_records=100)
    patience, count, finished = random.Random(0), 0, 0
    while count < kills:
        if killed(out, patience.uniform(0, 1.5)):
            assert_equal(whole, icl.Run.load(out))
            icl.Run.load(out)
            (out / "run.json").unlink()  # begin anew
            for file in out.iterdir():
                file.unlink()
            finished += 1
        else:
            count += 1
    assert killed(out, 120)
    assert_equal(whole, icl.Run.load(out))
    left = sorted(os.listdir(out.parent))
    assert [name for name in left if not name.startswith(".icl-")] == [out.name]
    print(f"{kills} kills, {finished + 1} trainings came to their end")


def test_kills_lose_nothing(tmp_path: Path) -> None:
    survive(5, tmp_path / "run")


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    survive(100, tmp_path / "run")


def test_ctrl_c_saves_what_there_is_and_what_it_takes_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # Ctrl-C at the first look at the clock
        patch.setattr(journal.Journal, "due", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        cut = icl.train(TASK, steps=20_000, out=tmp_path / "run")
    assert cut.step is not None
    assert 0 < cut.step < 20_000
    assert_equal(cut, icl.Run.load(tmp_path / "run"))
    assert state_of(tmp_path / "run").is_dir()
    resumed = icl.train(TASK, steps=20_000, out=tmp_path / "run", resume=True)
    assert_equal(resumed, icl.train(TASK, steps=20_000))
    assert not state_of(tmp_path / "run").exists()


def test_resume_begins_where_there_is_nothing_and_opens_what_is_finished(tmp_path: Path) -> None:
    first = icl.train(TASK, steps=50, out=tmp_path / "run", resume=True)
    written = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    assert_equal(first, icl.train(TASK, steps=50, out=tmp_path / "run", resume=True))
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == written
    with pytest.raises(SaveError, match="already holds a run"):
        icl.train(TASK, steps=60, out=tmp_path / "run", resume=True)
    many = icl.train_many(CONFIGS, out=tmp_path / "runs", resume=True)
    again = icl.train_many(CONFIGS, out=tmp_path / "runs", resume=True)
    for a, b in zip(many, again, strict=True):
        assert_equal(a, b)


@pytest.fixture
def cut_short(tmp_path: Path, often: None) -> Path:
    with stopped_at(2):
        icl.train(TASK, steps=4000, out=tmp_path / "run", save_every=1e-9)
    return tmp_path / "run"


def test_a_training_that_was_cut_short_is_not_lost_by_starting_another(cut_short: Path) -> None:
    with pytest.raises(SaveError, match=r"was cut short; its state is in .*: resume it, or overwrite it"):
        icl.train(TASK, steps=4000, out=cut_short)
    assert icl.train(TASK, steps=20, out=cut_short, overwrite=True).step == 20
    assert not state_of(cut_short).exists()


def test_only_what_it_was_goes_on(cut_short: Path) -> None:
    message = r"is the state of another training: configs\[0\]\.lr was 0\.001, is 0\.01"
    with pytest.raises(ConfigError, match=message):
        icl.train(TASK, steps=4000, lr=0.01, out=cut_short, resume=True)
    with pytest.raises(ConfigError, match=r"choices\[0\]\[0\] was 'numba', is 'torch'"):
        icl.train(TASK, steps=4000, engine="torch", out=cut_short, resume=True)


@pytest.mark.parametrize("name", ["state.safetensors", "training.json", "records-0.safetensors"])
@pytest.mark.parametrize("harm", ["truncated", "empty", "gone"])
def test_a_damaged_state_is_refused(cut_short: Path, name: str, harm: str) -> None:
    file = state_of(cut_short) / name
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if harm == "truncated" else b"")
    if (name, harm) == ("state.safetensors", "gone"):  # it was killed before its first save: nothing is lost
        assert icl.train(TASK, steps=4000, out=cut_short, resume=True).step == 4000
        return
    with pytest.raises(CheckpointError, match=r"\.run\.training cannot be gone on from"):
        icl.train(TASK, steps=4000, out=cut_short, resume=True)


def test_a_state_of_other_tensors_is_refused(cut_short: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = state_of(cut_short) / "state.safetensors"
    with safe_open(path, "pt") as file:
        about, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del state["recorded"]
    save_file(state, path, about)
    with pytest.raises(CheckpointError, match=r"\.run\.training cannot be gone on from"):
        icl.train(TASK, steps=4000, out=cut_short, resume=True)


def test_a_full_disk_does_not_end_a_training(tmp_path: Path, often: None) -> None:
    """Its state cannot be saved for a while; then it can again, and nothing is missing."""
    write, count = files.write_through, iter(range(10**6))

    def full(path: Path, data: bytes) -> None:
        if 3 <= next(count) < 12:
            raise OSError(28, "No space left on device")
        write(path, data)

    with warnings.catch_warnings(record=True) as warned, stopped_at(15) as patch:
        warnings.simplefilter("always")
        patch.setattr(files, "write_through", full)
        icl.train(TASK, steps=40_000, out=tmp_path / "run", save_every=1e-9)
    assert "the training goes on, but its state could not be saved" in str(warned[0].message)
    assert "No space left on device" in str(warned[0].message)
    resumed = icl.train(TASK, steps=40_000, out=tmp_path / "run", resume=True)
    assert_equal(resumed, icl.train(TASK, steps=40_000))


def test_records_that_pile_up_go_to_disk(tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only by the clock: memory stays bounded."""
    monkeypatch.setattr(journal, "PART_BYTES", 10_000)
    seen: list[int] = []
    save = journal.Journal.save
    monkeypatch.setattr(
        journal.Journal, "save", lambda self, step, *rest: (seen.append(step), save(self, step, *rest))[1]
    )
    runs = icl.train_many(CONFIGS, out=tmp_path / "runs", save_every=1e9)
    assert len(seen) > 3
    for run, alone in zip(runs, icl.train_many(CONFIGS), strict=True):
        assert_equal(run, alone)


def test_a_kill_between_the_run_and_the_removal_of_its_state(tmp_path: Path, cut_short: Path) -> None:
    """The finished run is opened, and what is left of the state cannot be taken for one."""
    state, kept = state_of(cut_short), tmp_path / "kept"
    shutil.copytree(state, kept)
    whole = icl.train(TASK, steps=4000, out=cut_short, resume=True)
    kept.rename(state)
    assert_equal(whole, icl.train(TASK, steps=4000, out=cut_short, resume=True))
    assert not state.exists()


def test_a_run_that_diverged_leaves_nothing_to_resume(tmp_path: Path, often: None) -> None:
    with pytest.raises(TrainingError, match="try a smaller lr"):
        icl.train(TASK, steps=5000, lr=1e8, optimizer="sgd", out=tmp_path / "run", save_every=1e-9)
    assert os.listdir(tmp_path) == []


def test_the_description_is_plain_json(cut_short: Path) -> None:
    described = json.loads((state_of(cut_short) / "training.json").read_text())
    assert described["configs"][0]["task"]["kind"] == "LinearRegression"
    assert described["choices"] == [["numba", "cpu"]]
