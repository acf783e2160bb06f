"""Trainings on demand: each once, kept, gone on with, and never taken for whole when they are not."""

import os
import signal
import threading
import time

import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError, TrainingError
from icl_interp.records import TrainConfig
from icl_interp.reproduce import MAIN, SCHEDULES, Bench, Schedule
from icl_interp.reproduce import bench as bench_module
from icl_interp.reproduce.trainings import (
    HEADS,
    MAP_BATCH,
    PAPER_STEPS,
    RHOS,
    TASK_HEADS,
    TWO_TASKS,
    Site,
    described,
    sites,
    trainings,
)

TINY = Schedule("tiny", steps=60, seeds=2, basin_seeds=3, basin_steps=40, prompts=5_000)


@pytest.fixture
def trained(monkeypatch):
    """Which trainings were asked of the engine, by their folders' names."""
    asked = []
    ours = bench_module.train_many

    def counted(configs, **how):
        asked.append(how["out"].name)
        return ours(configs, **how)

    monkeypatch.setattr(bench_module, "train_many", counted)
    return asked


def test_a_training_is_done_once_and_opened_after_that(tmp_path, trained):
    bench = Bench(tmp_path, TINY)
    run = bench.run("h2")
    assert (run.step, run.model_config.n_heads, run.task) == (60, 2, MAIN)
    assert len(bench.runs("h2")) == 1
    assert trained == ["h2"]
    weights = (tmp_path / "runs" / "tiny" / "h2" / "0000" / "weights.safetensors").stat()
    other = Bench(tmp_path, TINY)
    assert torch.equal(other.run("h2").weights["W_Q"], run.weights["W_Q"])
    assert (tmp_path / "runs" / "tiny" / "h2" / "0000" / "weights.safetensors").stat() == weights


def test_a_population(tmp_path):
    runs = Bench(tmp_path, TINY).runs("same-sign")
    assert [run.seed for run in runs] == [0, 1, 2]
    assert {run.step for run in runs} == {40}


@pytest.mark.parametrize(("make", "said"), [("slow", "schedule must be one of 'quick', 'paper'"), ("quick", None)])
def test_a_schedule_by_name(tmp_path, make, said):
    if said is None:
        assert Bench(tmp_path, make).schedule is SCHEDULES["quick"]
    else:
        with pytest.raises(ConfigError, match=said):
            Bench(tmp_path, make)


def test_an_unknown_training(tmp_path):
    for ask in (Bench(tmp_path, TINY).runs, Bench(tmp_path, TINY).described):
        with pytest.raises(ConfigError, match="no training 'h5'; there are h1, h2, h3, h4, h8"):
            ask("h5")


def test_prompts_are_the_same_for_the_same_label(tmp_path):
    bench = Bench(tmp_path, TINY)
    first, again, other = (list(bench.prompts(label, MAIN)) for label in ("a", "a", "b"))
    assert sum(len(prompt) for prompt in first) == TINY.prompts
    assert all(torch.equal(p.x, q.x) for p, q in zip(first, again, strict=True))
    assert not torch.equal(first[0].x, other[0].x)
    assert first[0].x.dtype == torch.float64
    (short,) = bench.prompts("a", MAIN, 7, length=3)
    assert short.x.shape == (7, 3, 5)


def test_ctrl_c_is_no_end_of_a_training(tmp_path):
    """What was trained is saved, is not taken for the whole, and goes on."""
    Bench(tmp_path, TINY).runs("h1")  # compiled
    bench = Bench(tmp_path, Schedule("long", 2_000_000, 2, 3, 40, 100))
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(
        KeyboardInterrupt, match=r"the training h1 was interrupted after [1-9][0-9,]* steps; it is saved"
    ):
        bench.runs("h1")
    assert (tmp_path / "runs" / "long" / ".h1.training" / "state.safetensors").exists()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="interrupted after"):
        bench.runs("h1")
    assert time.monotonic() - begin < 30


def test_a_training_that_diverges_cannot_be_used(tmp_path):
    bench = Bench(tmp_path, TINY)
    wild = TrainConfig(MAIN, ModelConfig(5), 400, lr=1e6, optimizer="sgd")
    bench._trainings = {"wild": (wild,)}
    with (
        pytest.warns(RuntimeWarning, match="ended early"),
        pytest.raises(TrainingError, match="the training wild cannot be used: 1 of 1 runs ended early"),
    ):
        bench.runs("wild")


def test_a_training_is_announced_where_somebody_watches(tmp_path, capsys):
    bench = Bench(tmp_path, TINY, progress=True)
    bench.run("h1")
    assert "training h1: one head, softmax; d = 5, L = 40, σ² = 0.1; 60 steps" in capsys.readouterr().err
    Bench(tmp_path, TINY, progress=True).run("h1")
    assert "training h1" not in capsys.readouterr().err


# --- What is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda schedule: schedule.name)
def test_the_trainings_are_the_papers(schedule):
    known = trainings(schedule)
    assert {f"h{heads}" for heads in HEADS} | {f"kms-{rho:g}" for rho in RHOS} | {"linear", "same-sign"} <= known.keys()
    for name, configs in known.items():
        if name.startswith("sparse-"):  # of another paper
            continue
        assert {(c.optimizer, c.lr) for c in configs} == {("adam", 1e-3)}
        assert len({c.seed for c in configs}) == len(configs)
        if not name.startswith("map-"):
            assert {c.batch_size for c in configs} == {256}
            assert {c.steps for c in configs} == {schedule.basin_steps if name == "same-sign" else schedule.steps}
        if not name.startswith(("map-", "two-tasks-")):
            assert {(c.task.dim, c.task.length, c.task.noise_var) for c in configs} == {(5, 40, 0.1)}
    assert schedule.whole == (schedule.steps == PAPER_STEPS)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda schedule: schedule.name)
def test_the_deep_trainings(schedule):
    for heads in schedule.sparse_heads:
        configs = trainings(schedule)[f"sparse-h{heads}"]
        assert [c.seed for c in configs] == list(range(schedule.sparse_seeds))
        for c in configs:
            assert (c.task, c.steps, c.schedule) == (schedule.sparse, schedule.sparse_steps, "cosine")
            assert (c.model.n_layers, c.model.n_heads, c.model.scratch) == (3, heads, c.task.dim)
    assert schedule.whole_sparse == schedule.whole


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda schedule: schedule.name)
def test_populations_that_solve_several_tasks(schedule):
    known = trainings(schedule)
    for heads in TASK_HEADS:
        configs = known[f"two-tasks-h{heads}"]
        assert {(c.task, c.model.n_heads) for c in configs} == {(TWO_TASKS, heads)}
        assert [(c.seed, c.data_seed) for c in configs] == [(seed, seed % 4) for seed in range(schedule.task_seeds)]
    for site in sites(schedule):
        configs = known[site.training]
        assert {(c.task, c.model.n_heads) for c in configs} == {(site.task, site.heads)}
        assert {(c.steps, c.batch_size) for c in configs} == {(schedule.map_steps, MAP_BATCH)}
        assert [(c.seed, c.data_seed) for c in configs] == [(seed, seed % 4) for seed in range(schedule.map_seeds)]
    assert sum(name.startswith("map-") for name in known) == len(sites(schedule))


def test_the_sites_of_the_map():
    found = sites(SCHEDULES["paper"])
    assert len(found) == len(set(found)) == 3 * (5 + 7 + 9)
    assert Site(3, "none", 4).training == "map-n3-none-h4"
    assert Site(3, "none", 4).task.supports == ((0, 1), (2, 3), (4, 5))
    assert Site(3, "some", 4).task.supports == ((0, 1), (1, 2), (2, 3))
    assert Site(3, "full", 4).task.supports == ((0, 1), (0, 1), (0, 1))
    assert [Site(3, overlap, 4).task.dim for overlap in ("none", "some", "full")] == [6, 4, 2]


def test_trainings_in_words():
    known = trainings(SCHEDULES["paper"])
    assert described(known["h2"]) == (
        "2 heads, softmax; d = 5, L = 40, σ² = 0.1; 500,000 steps of 256 prompts, adam at 0.001; seed 0"
    )
    assert "affine with C = 0.5" in described(known["affine-0.5"])
    assert "Σ = kms(0.7)" in described(known["kms-0.7"])
    assert described(known["kms-0.7"]).endswith("8 seeds from 0 to 9")
