"""A population's folder: opened run by run, all or nothing, and refused where it is damaged."""

import json
import os

import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, NoCheckpointError, SaveError
from icl_interp.formats import files
from icl_interp.records import Runs, TrainConfig
from icl_interp.tasks import LinearRegression

TASK = LinearRegression(dim=2, length=6)
CONFIGS = [TrainConfig(TASK, ModelConfig(2), steps=20, seed=seed, n_records=12) for seed in range(3)]


@pytest.fixture(scope="module")
def runs():
    return icl.train_many(CONFIGS)


@pytest.fixture
def saved(runs, tmp_path):
    return runs.save(tmp_path / "runs")


def same(a, b):
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_there_and_back(runs, saved):
    loaded = Runs.load(saved)
    assert len(loaded) == 3
    assert all(map(same, runs, loaded))
    assert loaded[1].origin == str(saved / "0001")
    assert repr(loaded) == f"Runs(3 runs, in {saved})"
    assert loaded.to_frame().drop(columns=[]).equals(runs.to_frame())
    assert same(icl.Run.load(saved / "0002"), runs[2])
    assert sorted(os.listdir(saved)) == ["0000", "0001", "0002", "runs.json"]


def test_a_run_is_opened_when_it_is_asked_for(saved):
    loaded = Runs.load(saved)
    (saved / "0001" / "weights.safetensors").unlink()
    assert same(loaded[0], Runs.load(saved)[0])
    with pytest.raises(CheckpointError, match=r"0001: weights.safetensors is missing"):
        loaded[1]


def test_trained_into_a_folder_it_is_the_same_population(runs, tmp_path):
    trained = icl.train_many(CONFIGS, out=tmp_path / "runs")
    assert all(map(same, runs, trained))
    assert trained[0].origin == str(tmp_path / "runs" / "0000")
    with pytest.raises(SaveError, match="already holds a run"):
        icl.train_many(CONFIGS, out=tmp_path / "runs")
    assert len(icl.train_many(CONFIGS[:1], out=tmp_path / "runs", overwrite=True)) == 1
    assert len(Runs.load(tmp_path / "runs")) == 1


def test_neither_kind_of_folder_is_the_other(runs, saved, tmp_path):
    runs[0].save(tmp_path / "run")
    with pytest.raises(NoCheckpointError, match=r"is not a population of runs: expected a folder with runs\.json"):
        Runs.load(tmp_path / "run")
    with pytest.raises(NoCheckpointError, match=r"is a population of runs: open one of them, say .*0000"):
        icl.Run.load(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "runs": 4}', "1 of 4 runs are missing: 0003"),
        ('{"schema_version": 2, "runs": 3}', "runs.json must give schema_version 1 and a number of runs"),
        ('{"schema_version": 1, "runs": -1}', "runs.json must give schema_version 1 and a number of runs"),
        ('{"schema_version": 1}', "runs.json must give schema_version 1 and a number of runs"),
        ("[]", "not a run's description"),
        ("{", "is damaged, not JSON"),
        (json.dumps({"schema_version": 1, "runs": 10**30}), "a number of runs"),
    ],
)
def test_damaged_descriptions_are_refused(saved, text, message):
    (saved / "runs.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Runs.load(saved)


def test_a_disk_that_fills_up_loses_nothing(runs, tmp_path, monkeypatch):
    write, count = files.write_through, iter(range(100))

    def full(path, data):
        if next(count) == 5:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr("icl_interp.formats.native.write_through", full)
    with pytest.raises(SaveError, match="No space left on device") as caught:
        icl.train_many(CONFIGS, out=tmp_path / "runs")
    assert all(map(same, runs, caught.value.run))
    assert os.listdir(tmp_path) == []


def test_one_that_diverges_does_not_take_the_others_with_it():
    wild = TrainConfig(TASK, ModelConfig(2), steps=200, lr=1e8, optimizer="sgd")
    with pytest.warns(RuntimeWarning, match=r"run 1 of 2 ended early: the loss became (nan|inf) between steps \d+ and"):
        runs = icl.train_many([CONFIGS[0], wild])
    assert runs[0].step == 20
    assert runs[1].step < 200
    assert same(runs[0], icl.train_many(CONFIGS[:1])[0])


@pytest.mark.parametrize("configs", [[], [TASK], "runs"])
def test_what_is_no_population_is_refused(configs):
    with pytest.raises(icl.ConfigError, match="configs must be a sequence of at least one TrainConfig, got"):
        icl.train_many(configs)
