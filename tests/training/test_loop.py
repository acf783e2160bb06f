from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

import icl_interp as icl
from icl_interp.errors import ConfigError, SaveError, TrainingError
from icl_interp.tasks import LinearRegression, Prompt, UnavailableTask
from icl_interp.training.numba_engine import NumbaEngine
from icl_interp.training.recording import Recorder

TASK = LinearRegression(dim=3, length=12, noise_var=0.1)


def equal(a: icl.Run, b: icl.Run) -> bool:
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_same_seed_same_run_and_other_seed_another() -> None:
    first, again, other = (icl.train(TASK, steps=30, seed=seed) for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)
    assert first.dynamics is not None
    assert again.dynamics is not None
    np.testing.assert_array_equal(first.dynamics.loss, again.dynamics.loss)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    icl.train(TASK, steps=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_recorded_belongs_to_its_step() -> None:
    run = icl.train(TASK, steps=200, n_records=20, seed=3)
    dynamics = run.dynamics
    assert dynamics is not None
    assert run.step == 200
    for i, step in enumerate(dynamics.steps):
        circuits = run.circuits(int(step))
        np.testing.assert_allclose(circuits.omega, dynamics.omega[i])
        np.testing.assert_allclose(circuits.mu, dynamics.mu[i])
    torch.testing.assert_close(run.model(step=200).weights(), run.weights)
    start = icl.train(TASK, steps=1, n_records=20, seed=3)
    torch.testing.assert_close(run.model(step=0).weights(), start.model(step=0).weights())
    with pytest.raises(ConfigError, match=r"no snapshot at step 3; the nearest are at"):
        run.model(step=3)


def test_a_record_is_made_while_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a GPU does not wait for it; the numbers are those of the record's own step all the same."""
    seen: list[tuple[str, int]] = []
    advance, record = NumbaEngine.advance, Recorder.record

    def advanced(engine: NumbaEngine, steps: int) -> None:
        advance(engine, steps)
        seen.append(("advanced", steps))

    def recorded(recorder: Recorder, step: int, *of_it: object) -> None:
        seen.append(("recorded", step))
        record(recorder, step, *of_it)  # type: ignore[arg-type]

    monkeypatch.setattr(NumbaEngine, "advance", advanced)
    monkeypatch.setattr(Recorder, "record", recorded)
    watched = icl.train(TASK, steps=3, n_records=4, seed=3, engine="numba").dynamics
    asked = ["recorded", "advanced", "advanced", "recorded", "advanced", "recorded", "recorded"]
    assert [what for what, _ in seen] == asked
    assert [step for what, step in seen if what == "recorded"] == [0, 1, 2, 3]
    monkeypatch.undo()
    for step in (1, 2, 3):
        alone = icl.train(TASK, steps=step, n_records=4, seed=3, engine="numba").dynamics
        assert watched is not None
        assert alone is not None
        np.testing.assert_array_equal(alone.omega[-1], watched.omega[list(watched.steps).index(step)])


def test_training_lowers_the_loss_to_what_the_first_steps_are_known_to_reach() -> None:
    run = icl.train(TASK, steps=1500, n_records=30)
    assert run.dynamics is not None
    assert run.dynamics.loss[0] == pytest.approx(1.1, abs=0.35)  # 1 + σ², one batch
    assert run.dynamics.loss[-3:].mean() < 0.6


def test_deeper_models_train() -> None:
    run = icl.train(TASK, n_layers=2, n_heads=2, steps=300, n_records=10, mask="strict_causal")
    assert run.dynamics is not None
    assert run.dynamics.loss[-1] < 0.95
    assert run.circuits().KQ.shape == (2, 2, 4, 4)


def test_a_task_of_the_users_own_trains_saves_and_is_analyzed(tmp_path: Path) -> None:
    run = icl.train(oracles.Cubic(), steps=50, out=tmp_path / "cubic")
    assert {outcome.status for outcome in icl.analyze(run, budget=500)} <= {"done", "not_applicable"}
    loaded = icl.Run.load(tmp_path / "cubic")
    assert isinstance(loaded.task, UnavailableTask)
    without = {outcome.probe: outcome.status for outcome in icl.analyze(loaded, budget=500)}
    assert without["risk"] == "skipped"
    assert {o.status for o in icl.analyze(loaded, oracles.Cubic(), budget=500)} <= {"done", "not_applicable"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 0}, "n_heads must be a whole number ≥ 1, got 0"),
        ({"steps": 0}, "steps must be a whole number ≥ 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number ≥ 1, got 2.5"),
        ({"lr": float("nan")}, "lr must be a finite number > 0, got nan"),
        ({"optimizer": "lion"}, "optimizer must be one of 'adam', 'adamw', 'sgd', got 'lion'"),
        ({"seed": -1}, "seed must be a whole number ≥ 0, got -1"),
        ({"device": "abacus"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'abacus'"),
        ({"engine": "steam"}, "engine must be one of 'auto', 'cuda', 'numba', 'torch', got 'steam'"),
        (
            {"engine": "numba", "n_layers": 2},
            "engine 'numba' cannot train this: it trains models of one layer, and n_layers is 2",
        ),
        (
            {"engine": "numba", "scratch": 2},
            "engine 'numba' cannot train this: it trains heads on a prompt's own columns, and the model has scratch",
        ),
        (
            {"engine": "numba", "warmup": 2},
            "engine 'numba' cannot train this: it takes steps of one size, and of whole gradients: .*warmup=2",
        ),
        ({"read_in": 8}, "takes scratch=0 and read_out=True, got scratch=0, read_out=False"),
        ({"scratch": -1}, "scratch must be a whole number ≥ 0, got -1"),
        ({"layer_norm": 1}, "layer_norm must be True or False, got 1"),
        ({"data_seed": -1}, "data_seed must be a whole number ≥ 0, got -1"),
        ({"save_every": 0}, "save_every must be a finite number > 0, got 0"),
        ({"resume": True}, "resume=True needs out, the folder that the training was to end in"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be < 1, got 1.0"),
        ({"mask": "none"}, "mask must be one of"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        icl.train(TASK, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ConfigError, match="torch sees 0 CUDA devices here; use 'cpu' or 'auto'"):
        icl.train(TASK, device="cuda")


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task must have dim, length, n_outputs and sample\(\), got 'linear'"):
        icl.train("linear")  # type: ignore[arg-type]


def test_an_existing_run_is_found_before_training(tmp_path: Path) -> None:
    icl.train(TASK, steps=2, out=tmp_path / "run")
    start = time.perf_counter()
    with pytest.raises(SaveError, match="already holds a run"):
        icl.train(TASK, steps=10**9, out=tmp_path / "run")
    assert time.perf_counter() - start < 5
    assert icl.train(TASK, steps=3, out=tmp_path / "run", overwrite=True).step == 3
    assert icl.Run.load(tmp_path / "run").step == 3


def test_a_diverging_run_says_so_and_keeps_the_last_good_record() -> None:
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) between steps \d+ and \d+: try a smaller lr"):
        icl.train(TASK, steps=2000, lr=1e8, optimizer="sgd")
    with pytest.raises(TrainingError) as caught:
        icl.train(TASK, steps=2000, lr=1e8, optimizer="sgd")
    assert caught.value.run is not None
    assert all(torch.isfinite(weight).all() for weight in caught.value.run.weights.values())


def test_ctrl_c_keeps_what_was_trained(tmp_path: Path) -> None:
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    run = icl.train(TASK, steps=10**7, n_records=50, out=tmp_path / "run")
    assert run.step is not None
    assert 0 < run.step < 10**7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert equal(run, icl.Run.load(tmp_path / "run"))
    assert run.dynamics is not None
    assert run.dynamics.steps[-1] == run.step
    # It stands where an uninterrupted run stands after as many steps.
    whole = icl.train(TASK, steps=run.step, n_records=50)
    assert equal(run, whole)


def test_a_small_training_takes_one_thread_and_gives_the_others_back() -> None:
    seen: list[int] = []

    class Watched(oracles.Cubic):
        def sample(self, *arguments: int, **options: object) -> Prompt:
            seen.append(torch.get_num_threads())
            return super().sample(*arguments, **options)  # type: ignore[arg-type]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        icl.train(Watched(), steps=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen[1:]) == {1}  # the first is the untrained model's loss


def test_training_works_off_the_main_thread() -> None:
    runs: list[icl.Run] = []
    thread = threading.Thread(target=lambda: runs.append(icl.train(TASK, steps=3)))
    thread.start()
    thread.join()
    assert runs[0].step == 3


def test_the_bar_is_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    icl.train(TASK, steps=5)
    assert capfd.readouterr() == ("", "")
    icl.train(TASK, steps=5, progress=True)
    assert "loss" in capfd.readouterr().err


@pytest.mark.gpu
def test_a_run_trained_on_a_gpu_opens_on_a_cpu(tmp_path: Path) -> None:
    run = icl.train(TASK, steps=200, n_records=10, device="cuda", out=tmp_path / "run")
    loaded = icl.Run.load(tmp_path / "run")
    assert equal(run, loaded)
    assert all(weight.device.type == "cpu" for weight in loaded.weights.values())
    assert loaded.versions["device"] == "cuda"
    cpu = icl.train(TASK, steps=200, n_records=10, device="cpu")
    assert run.dynamics is not None
    assert cpu.dynamics is not None
    assert run.dynamics.loss[-1] == pytest.approx(cpu.dynamics.loss[-1], rel=0.2)
