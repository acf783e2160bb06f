"""What training leaves behind: configurations that cannot be are refused, and snapshots are the model of their step."""

import dataclasses
import inspect
import math
import re

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.records import Run, Runs, TrainConfig, check_dynamics, differing
from icl_interp.tasks import LinearRegression
from icl_interp.weights import initial_weights

TASK = LinearRegression(dim=3, length=6)
MODEL = ModelConfig(dim=3)


@pytest.fixture(scope="module")
def run():
    return icl.train(TASK, n_heads=2, steps=30, n_records=20, progress=False)


# --- TrainConfig -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers_but_for_steps():
    config = TrainConfig(TASK, MODEL)
    assert (config.batch_size, config.lr, config.optimizer, config.betas) == (256, 1e-3, "adam", (0.9, 0.999))
    assert TrainConfig(TASK, MODEL, betas=[0.9, 0.999]) == config
    assert hash(config) == hash(TrainConfig(TASK, MODEL))
    with pytest.raises(TypeError, match="learning_rate"):
        TrainConfig(TASK, MODEL, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"steps": 0}, "steps must be a whole number ≥ 1, got 0"),
        ({"steps": 1e3}, "steps must be a whole number ≥ 1, got 1000.0"),
        ({"steps": True}, "steps must be a whole number ≥ 1, got True"),
        ({"steps": np.int64(9)}, "got np.int64(9); pass a plain number, its .item()"),
        ({"batch_size": 0}, "batch_size must be a whole number ≥ 1, got 0"),
        ({"n_records": 1}, "n_records must be a whole number ≥ 2, got 1"),
        ({"seed": -1}, "seed must be a whole number ≥ 0, got -1"),
        ({"seed": None}, "seed must be a whole number ≥ 0, got None"),
        ({"lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"lr": math.nan}, "lr must be a finite number > 0, got nan"),
        ({"lr": "1e-3"}, "lr must be a finite number > 0, got '1e-3'"),
        ({"optimizer": "Adam"}, "optimizer must be one of 'adam', 'adamw', 'sgd', got 'Adam'"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number ≥ 0, got -0.1"),
        ({"betas": (0.9, 1)}, "betas[1] must be < 1, got 1"),
        ({"betas": (-0.1, 0.9)}, "betas[0] must be a finite number ≥ 0, got -0.1"),
        ({"betas": (0.9,)}, "betas must be two numbers, got (0.9,)"),
        ({"betas": (0.9, 0.99, 0.999)}, "betas must be two numbers, got (0.9, 0.99, 0.999)"),
        ({"betas": 0.9}, "betas must be two numbers, got 0.9"),
        ({"betas": "ab"}, "betas must be two numbers, got 'ab'"),
        ({"betas": None}, "betas must be two numbers, got None"),
        ({"momentum": 1.0}, "momentum must be < 1, got 1.0"),
        ({"schedule": "sudden"}, "schedule must be one of 'constant', 'cosine', got 'sudden'"),
        ({"warmup": -1}, "warmup must be a whole number ≥ 0, got -1"),
        ({"clip": 0}, "clip must be a finite number > 0, got 0"),
        ({"momentum": math.inf}, "momentum must be a finite number ≥ 0, got inf"),
        ({"task": None}, "task must have dim, length, n_outputs and sample(), got None"),
        ({"task": LinearRegression}, "task must have dim, length, n_outputs and sample(), got <class"),
        ({"task": LinearRegression(4, 6)}, "model.dim is 3, the task's is 4"),
        ({"model": ModelConfig(3, n_outputs=2)}, "model.n_outputs is 2, the task's is 1"),
        ({"model": {"dim": 3}}, "model must be a ModelConfig, got {'dim': 3}"),
    ],
)
def test_configurations_that_cannot_be(change, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        TrainConfig(**{"task": TASK, "model": MODEL, **change})


# --- Run and Dynamics ------------------------------------------------------------------------------------------------


def test_the_last_snapshot_is_the_run(run):
    assert run.step == run.dynamics.steps[-1] == run.dynamics.snapshot_steps[-1] == 30
    for name, tensor in run.dynamics.weights(30).items():
        assert torch.equal(tensor, run.weights[name])


def test_a_snapshot_is_the_model_of_its_step(run):
    shorter = icl.train(TASK, n_heads=2, steps=30, n_records=20, progress=False)
    for step in (0, int(run.dynamics.snapshot_steps[3])):
        i = list(run.dynamics.steps).index(step)
        np.testing.assert_allclose(run.circuits(step).omega, run.dynamics.omega[i])
        np.testing.assert_allclose(run.circuits(step).mu, run.dynamics.mu[i])
        for name, tensor in run.model(step).weights().items():
            assert torch.equal(tensor, shorter.dynamics.weights(step)[name])
    assert not torch.equal(run.model(0).weights()["W_Q"], run.model().weights()["W_Q"])
    assert torch.equal(run.model(30).weights()["W_Q"], run.model().weights()["W_Q"])


def test_a_step_without_a_snapshot_names_the_nearest(run):
    steps = run.dynamics.snapshot_steps
    missing = next(step for step in range(30) if step not in steps)
    nearest = sorted(sorted(steps.tolist(), key=lambda step: abs(step - missing))[:3])
    message = f"no snapshot at step {missing}; the nearest are at {', '.join(map(str, nearest))}"
    for ask in (run.model, run.circuits, run.dynamics.weights):
        with pytest.raises(ConfigError, match=message):
            ask(missing)
    with pytest.raises(ConfigError, match="no weights of step 7: this run has no record of its training"):
        dataclasses.replace(run, dynamics=None).model(7)
    assert dataclasses.replace(run, dynamics=None).model(30).config == run.model_config


def test_the_last_fifth_of_training(run):
    steps = run.dynamics.snapshot_steps
    assert run.dynamics.late_steps() == [step for step in steps.tolist() if step >= 24]
    assert run.dynamics.late_steps()[-1] == 30


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda w: {**w, "W_Q": w["W_Q"] * math.nan}, "W_Q must be finite"),
        (lambda w: {**w, "W_O": w["W_O"][..., :-1]}, "W_O must have shape"),
        (lambda w: {**w, "W_K": w["W_K"].long()}, "W_K must be floating point"),
        (lambda w: {k: v for k, v in w.items() if k != "W_V"}, "missing: W_V"),
        (lambda w: {**w, "b": w["W_Q"]}, "unexpected: b"),
    ],
)
def test_a_run_has_four_finite_weights(spoil, complaint):
    weights = initial_weights(MODEL, torch.Generator().manual_seed(0))
    assert Run(MODEL, weights, task=TASK).origin == "memory"
    with pytest.raises(CheckpointError, match=complaint):
        Run(MODEL, spoil(weights))


def test_a_runs_task_is_one_for_its_model():
    weights = initial_weights(MODEL, torch.Generator().manual_seed(0))
    with pytest.raises(CheckpointError, match="the task's dim is 5, the model's 3"):
        Run(MODEL, weights, task=LinearRegression(5, 6))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: {"steps": d.steps.astype(float)}, "steps must be ascending whole numbers"),
        (lambda d: {"steps": d.steps[::-1]}, "steps must be ascending whole numbers"),
        (lambda d: {"steps": d.steps[::-1].astype(np.uint64)}, "steps must be ascending whole numbers"),
        (lambda d: {"steps": d.steps - 1}, r"steps must be ascending whole numbers, got \[-1"),
        (lambda d: {"steps": d.steps[0]}, "steps must be ascending whole numbers, got 0"),
        (lambda d: {"steps": d.steps[:0]}, r"steps must be ascending whole numbers, got \[\]"),
        (lambda d: {"steps": np.append(d.steps[:-1], 99)}, "must be a part of steps and end with 99"),
        (lambda d: {"snapshot_steps": d.snapshot_steps[:0]}, "snapshot_steps must be ascending whole numbers"),
        (lambda d: {"snapshot_steps": d.snapshot_steps[:-1]}, "must be a part of steps and end with 30"),
        (lambda d: {"snapshot_steps": np.append(d.snapshot_steps[1:-1], [29, 30])}, "must be a part of steps"),
        (lambda d: {"loss": d.loss[:-1]}, "loss must be floats of shape"),
        (lambda d: {"loss": d.loss.astype(int)}, "loss must be floats of shape .* got int64"),
        (lambda d: {"omega": d.omega[:, :, :1]}, "omega must be floats of shape .*, 1, 2., got float"),
        (lambda d: {"mu": d.mu[..., 0]}, "mu must be floats of shape"),
        (lambda d: {"snapshots": {k: v[1:] for k, v in d.snapshots.items()}}, "every weight needs .* snapshots"),
        (
            lambda d: {"snapshots": {**d.snapshots, "b": d.snapshots["W_Q"]}},
            "at step 0 weights must be .* unexpected: b",
        ),
        (lambda d: {"snapshots": {}}, "at step 0 weights must be .* missing: W_Q"),
        (lambda d: {"snapshots": {**d.snapshots, "W_V": spoilt(d.snapshots["W_V"])}}, "at step 1 W_V must be finite"),
    ],
)
def test_dynamics_that_cannot_be(run, spoil, complaint):
    check_dynamics(run.dynamics, run.model_config)
    with pytest.raises(CheckpointError, match=f"^dynamics: .*{complaint}"):
        check_dynamics(dataclasses.replace(run.dynamics, **spoil(run.dynamics)), run.model_config)


def spoilt(tensor):
    tensor = tensor.clone()
    tensor[1, 0, 0, 0, 0] = math.inf
    return tensor


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population():
    configs = [
        TrainConfig(TASK, ModelConfig(3, n_heads=heads), steps=40, seed=seed, n_records=12)
        for heads in (1, 2)
        for seed in (0, 1)
    ]
    return icl.train_many(configs)


def test_runs_are_a_sequence(population):
    assert len(population) == 4
    assert [run.model_config.n_heads for run in population] == [1, 1, 2, 2]
    assert population[-1] is population[3]
    assert [run.seed for run in population[1:3]] == [1, 0]
    assert [run.seed for run in population[[3, 0]]] == [1, 0]
    assert [run.seed for run in population[np.array([True, False, False, True])]] == [0, 1]
    assert repr(population) == "Runs(4 runs)"
    assert population.folder is None
    with pytest.raises(IndexError):
        population[4]


def test_a_frame_says_what_differs_and_what_came_out(population):
    frame = population.to_frame()
    assert list(frame.columns) == ["n_heads", "seed", "step", "loss", "loss_error", "omega", "mu"]
    assert list(frame["n_heads"]) == [1, 1, 2, 2]
    assert [len(omega) for omega in frame["omega"]] == [1, 1, 2, 2]
    last = population[2]
    late = last.dynamics.loss[last.dynamics.steps >= 32]
    assert frame["loss"][2] == pytest.approx(late.mean())
    assert frame["loss_error"][2] == pytest.approx(late.std(ddof=1) / len(late) ** 0.5)
    assert list(population[2:].to_frame().columns)[:2] == ["seed", "step"]


def test_the_folder_of_runs_is_the_one_they_are_all_in(tmp_path):
    assert Runs([tmp_path / "0", tmp_path / "1"]).folder == tmp_path
    assert Runs([tmp_path / "0", tmp_path / "a" / "1"]).folder is None
    assert Runs([]).folder is None


def test_a_setting_that_a_run_lacks_counts_as_none():
    assert differing([{"a": 1, "b": None, "loss": 1.0}, {"a": 1, "loss": 2.0}]) == []
    assert differing([{"a": 1, "b": 2}, {"a": 1}]) == ["b"]
    assert differing([]) == []


def test_analysis_of_runs_takes_what_analyze_takes(population):
    own, whole = (inspect.signature(function).parameters for function in (Runs.analyze, icl.analyze))
    assert list(own.values())[1:] == list(whole.values())[1:]
    with pytest.raises(TypeError, match="probe"):
        population.analyze(probe=["circuit_pattern"])


def test_runs_are_analyzed_one_by_one(population):
    results = population[:2].analyze(probes=["circuit_pattern"])
    for run, result in zip(population, results, strict=False):
        np.testing.assert_array_equal(result.circuits.KQ, run.circuits().KQ)
        assert [outcome.probe for outcome in result] == ["circuit_pattern"]
