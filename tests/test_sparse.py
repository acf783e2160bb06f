"""Sparse regression: moments, supports, and what cannot be one.

Moments are compared within four standard errors of the sample, at a fixed seed.
"""

import copy
import dataclasses
import math
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import icl_interp as icl
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.serialization import from_data, to_data
from icl_interp.tasks import LinearRegression, SparseRegression, Task

TASKS = {
    "as it is": SparseRegression(6, 2, 7),
    "scaled": SparseRegression(6, 4, 7, noise_var=0.4, signal_var=4.0, query_noise=False),
    "one": SparseRegression(6, 1, 7),
    "all": SparseRegression(6, 6, 7),
    "noiseless": SparseRegression(6, 2, 7, noise_var=0.0),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*tensors):
    return [t.double().numpy() for t in tensors]


def assert_mean(samples, expected):
    """The mean over the first axis, entry by entry, within four standard errors."""
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - expected) <= 4 * error + 1e-12).all(), (samples.mean(0), expected, error)


def signals(task, count, seed=0):
    """w of each prompt, solved from noiseless demonstrations."""
    clean = dataclasses.replace(task, noise_var=0.0)
    prompt = clean.sample(count, length=3 * task.dim, generator=seeded(seed))
    x, y = double(prompt.x, prompt.y)
    return (np.linalg.pinv(x) @ y)[..., 0]


# --- Where prompts come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_moments_of_prompts(task):
    prompt = task.sample(20_000, generator=seeded())
    x, y, x_q, y_q = double(prompt.x, prompt.y[..., 0], prompt.x_q, prompt.y_q[..., 0])
    for covariates in (x[:, 0], x[:, -1], x_q):
        assert_mean(covariates, 0)
        assert_mean(covariates[:, :, None] * covariates[:, None, :], np.eye(6))
    assert_mean(x[:, 0, :, None] * x_q[:, None, :], np.zeros((6, 6)))  # columns are independent
    for labels, noise in ((y[:, 0], True), (y[:, -1], True), (y_q, task.query_noise)):
        assert_mean(labels, 0)
        assert_mean(labels**2, task.signal_var + noise * task.noise_var)
    # One w a prompt ties its labels together, E[y_1 y_q x_1 x_qᵀ] = E[wwᵀ], and in second moments it is isotropic.
    together = (y[:, 0] * y_q)[:, None, None] * x[:, 0, :, None] * x_q[:, None, :]
    assert_mean(together, task.signal_var / task.dim * np.eye(6))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_moments_of_signals(task):
    w = signals(task, 20_000)
    on = np.abs(w) > 1e-5
    assert (on.sum(1) <= task.sparsity).all()
    assert (on.sum(1) == task.sparsity).mean() > 0.99  # but for entries that are zero by chance, almost
    assert_mean(w, 0)
    assert_mean(w[:, :, None] * w[:, None, :], task.signal_var / task.dim * np.eye(6))
    assert_mean((w**2).sum(1), task.signal_var)
    entries = task.signal_var / task.sparsity  # their variance on the support, where they are normal: E w⁴ = 3 (E w²)²
    assert_mean((w**4).sum(1), 3 * task.sparsity * entries**2)
    # Entries on the support are independent of each other: E w_i²w_j² for i ≠ j is a support's chance times variances.
    pairs = np.array([w[:, i] ** 2 * w[:, j] ** 2 for i, j in combinations(range(6), 2)]).sum(0)
    assert_mean(pairs, math.comb(task.sparsity, 2) * entries**2)


@pytest.mark.parametrize("sparsity", [1, 2, 3, 5])
def test_every_support_is_as_likely_as_any_other(sparsity):
    on = np.abs(signals(SparseRegression(6, sparsity, 7), 20_000)) > 1e-5
    whole = on[on.sum(1) == sparsity]
    seen = np.array(
        [(whole == [i in support for i in range(6)]).all(1) for support in combinations(range(6), sparsity)]
    )
    assert (seen.sum(0) == 1).all()
    expected = len(whole) / len(seen)
    chi_square = ((seen.sum(1) - expected) ** 2 / expected).sum()
    dof = len(seen) - 1
    assert chi_square < dof + 4 * math.sqrt(2 * dof)


def test_supports_are_drawn_for_each_prompt_anew():
    on = np.abs(signals(SparseRegression(12, 3, 7), 400)) > 1e-5
    pairs = (on[0::2] & on[1::2]).sum(1)  # of neighbours in a batch
    assert_mean(pairs.astype(float), 3 * 3 / 12)


def test_at_full_sparsity_it_is_linear_regression():
    ours = SparseRegression(5, 5, 6, noise_var=0.5, signal_var=2.0).sample(9, generator=seeded())
    dense = LinearRegression(5, 6, noise_var=0.5, signal_var=2.0).sample(9, generator=seeded())
    assert torch.equal(ours.z, dense.z)
    torch.testing.assert_close(ours.y_q, dense.y_q)


def test_query_noise_reaches_the_query_alone():
    noisy = SparseRegression(6, 2, 7, noise_var=1.0)
    a, b = (dataclasses.replace(noisy, query_noise=flag).sample(20_000, generator=seeded()) for flag in (True, False))
    assert torch.equal(a.z, b.z)
    assert_mean(double(a.y_q - b.y_q)[0] ** 2, 1.0)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.data(), st.none() | st.integers(1, 9))
def test_shapes(batch, length, dim, data, asked):
    task = SparseRegression(dim, data.draw(st.integers(1, dim)), length)
    prompt = task.sample(batch, length=asked, generator=seeded())
    L = asked or length
    assert (task.n_outputs, len(prompt), prompt.length) == (1, batch, L)
    assert prompt.z.shape == (batch, L + 1, dim + 1)
    assert (prompt.x_q.shape, prompt.y_q.shape) == ((batch, dim), (batch, 1))
    assert {t.dtype for t in (prompt.x, prompt.y, prompt.x_q, prompt.y_q)} == {torch.float32}


def test_the_default_dtype_is_left_out_of_it():
    torch.set_default_dtype(torch.float64)
    try:
        prompt = SparseRegression(3, 2, 6).sample(2, generator=seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert prompt.x.dtype == prompt.y.dtype == torch.float32


def test_a_generator_decides_everything():
    task = TASKS["as it is"]
    first, again, other = (task.sample(4, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.y_q, again.y_q)
    assert not torch.equal(first.z, other.z)
    generator = seeded(1)
    assert torch.equal(task.sample(4, generator=generator).z, first.z)
    assert not torch.equal(task.sample(4, generator=generator).z, first.z)
    before = torch.random.get_rng_state()
    task.sample(4, generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(7)
    first = task.sample(4)  # and without one, it is the global state that decides
    torch.manual_seed(7)
    assert torch.equal(first.z, task.sample(4).z)


def test_prompts_live_where_they_are_asked_to():
    assert TASKS["as it is"].sample(2, device="meta").z.device.type == "meta"
    assert TASKS["as it is"].sample(2, generator=seeded()).z.device.type == "cpu"


@pytest.mark.gpu
def test_it_trains_in_a_cuda_graph():
    """A capture that fails says so in a warning, which is an error here."""
    run = icl.train(SparseRegression(), n_heads=2, steps=50, n_records=5, device="cuda", progress=False)
    assert np.isfinite(run.dynamics.loss).all()
    assert len(set(run.dynamics.loss.tolist())) == len(run.dynamics.loss)  # a graph draws anew each time


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", np.int64(3)])
def test_batches_and_lengths_are_counts(value):
    with pytest.raises(ConfigError, match=f"batch must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        TASKS["one"].sample(value)
    with pytest.raises(ConfigError, match=f"length must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        TASKS["one"].sample(3, length=value)


# --- What a task is --------------------------------------------------------------------------------------------------


def test_a_task_is_a_value():
    task = SparseRegression()
    assert isinstance(task, Task)
    assert (task.dim, task.sparsity, task.length, task.noise_var, task.signal_var) == (16, 4, 20, 0.25, 1.0)
    assert len({task, copy.deepcopy(task), dataclasses.replace(task), SparseRegression(signal_var=1)}) == 1
    assert task != dataclasses.replace(task, sparsity=5)
    assert task != LinearRegression(16, 20, noise_var=0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.sparsity = 5


def test_its_repr_is_python():
    task = SparseRegression(8, 3, 48, noise_var=1, signal_var=4)
    assert repr(task) == (
        "SparseRegression(dim=8, sparsity=3, length=48, noise_var=1.0, query_noise=True, signal_var=4.0)"
    )
    assert eval(repr(task)) == task


@given(st.integers(1, 9), st.data())
def test_it_comes_back_from_json(dim, data):
    task = SparseRegression(
        dim,
        data.draw(st.integers(1, dim)),
        data.draw(st.integers(1, 9)),
        data.draw(st.floats(0, 1e6)),
        data.draw(st.booleans()),
        data.draw(st.floats(1e-6, 1e6)),
    )
    back = from_data(Task, to_data(task, Task))
    assert back == task
    assert torch.equal(back.sample(2, generator=seeded()).z, task.sample(2, generator=seeded()).z)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sparsity": 5}, "sparsity must be at most dim=4, the number of covariates, got 5"),
        ({"sparsity": 2.0}, r"expected int, got 2.0 @ \$.sparsity"),
        ({"sparsity": None}, r"expected int, got None @ \$.sparsity"),
        ({"mean": 0.0}, "Extra fields in constructor for SparseRegression: mean"),
    ],
)
def test_impossible_ones_in_a_file_say_why(change, complaint):
    data = to_data(SparseRegression(4, 2, 6), Task)
    assert data["kind"] == "SparseRegression"
    with pytest.raises(CheckpointError, match=complaint):
        from_data(Task, {**data, **change})


@pytest.mark.parametrize("name", ["dim", "sparsity", "length"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "3", None, np.int64(3)])
def test_sizes_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        SparseRegression(**{"dim": 3, "sparsity": 2, "length": 6, name: value})


@given(st.integers(1, 20), st.integers(1, 40))
def test_no_more_entries_than_covariates(dim, sparsity):
    if sparsity <= dim:
        assert SparseRegression(dim, sparsity, 6).sparsity == sparsity
    else:
        complaint = f"^sparsity must be at most dim={dim}, the number of covariates, got {sparsity}$"
        with pytest.raises(ConfigError, match=complaint):
            SparseRegression(dim, sparsity, 6)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.1", None, np.float32(0.1)])
def test_variances_that_cannot_be(value):
    with pytest.raises(ConfigError, match=f"^noise_var must be a finite number ≥ 0, got {re.escape(repr(value))}"):
        SparseRegression(noise_var=value)
    for refused in (value, 0):
        with pytest.raises(
            ConfigError, match=f"^signal_var must be a finite number > 0, got {re.escape(repr(refused))}"
        ):
            SparseRegression(signal_var=refused)


@pytest.mark.parametrize("value", [0, 1, None, "no"])
def test_query_noise_is_a_flag(value):
    with pytest.raises(ConfigError, match=f"query_noise must be True or False, got {value!r}"):
        SparseRegression(query_noise=value)


# --- In the library --------------------------------------------------------------------------------------------------


def test_it_trains_saves_and_is_analyzed(tmp_path):
    task = icl.SparseRegression(4, 2, length=8)
    icl.train(task, n_heads=2, steps=20, n_records=5, out=tmp_path / "run", progress=False)
    again = icl.Run.load(tmp_path / "run")
    assert again.task == again.training.task == task
    result = icl.analyze(again, budget=64)
    statuses = {outcome.probe: outcome.status for outcome in result}
    assert not {"failed", "broken"} & set(statuses.values()), statuses
    assert "SparseRegression(dim=4, sparsity=2" in str(result)


def test_training_learns_from_it():
    task = icl.SparseRegression(3, 1, length=12, noise_var=0.1)
    run = icl.train(task, n_heads=2, steps=400, lr=1e-2, seed=0, n_records=20, progress=False)
    assert run.dynamics.loss[-1] < 0.75 * run.dynamics.loss[0]
