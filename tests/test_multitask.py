"""Several regressions on the same covariates: moments, supports, and what cannot be one.

Moments are compared within four standard errors of the sample, at a fixed seed.
"""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import icl_interp as icl
from icl_interp.errors import ConfigError
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Task
from icl_interp.testing import plant, plant_tasks

SUPPORTS = ((0, 1, 2), (2, 3), (4,))
TASKS = {
    "as it is": MultiTaskRegression(5, SUPPORTS, 6),
    "shared": MultiTaskRegression(5, SUPPORTS, 6, shared_signal=True),
    "scaled": MultiTaskRegression(5, SUPPORTS, 6, noise_var=0.4, signal_var=4.0, query_noise=False),
    "one": MultiTaskRegression(5, [range(5)], 6, noise_var=0.5),
    "noiseless": MultiTaskRegression(5, SUPPORTS, 6, noise_var=0.0),
    "noiseless, shared": MultiTaskRegression(5, SUPPORTS, 6, noise_var=0.0, shared_signal=True),
}
NOISELESS = [task for task in TASKS.values() if task.noise_var == 0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*tensors):
    return [t.double().numpy() for t in tensors]


def assert_mean(samples, expected):
    """The mean over the first axis, entry by entry, within four standard errors."""
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - expected) <= 4 * error + 1e-12).all(), (samples.mean(0), expected, error)


def on(task):
    """Which features each response sees, as a matrix."""
    return np.array([[float(i in support) for i in range(task.dim)] for support in task.supports])


def signals(task, count, seed=0):
    """β of each response and prompt, solved from noiseless demonstrations."""
    prompt = task.sample(count, length=4 * task.dim, generator=seeded(seed))
    x, y = double(prompt.x, prompt.y)
    return np.swapaxes(np.linalg.pinv(x) @ y, 1, 2)


# --- Where prompts come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_moments(task):
    prompt = task.sample(20_000, generator=seeded())
    x, y, x_q, y_q = double(prompt.x, prompt.y, prompt.x_q, prompt.y_q)
    for covariates in (x[:, 0], x[:, -1], x_q):
        assert_mean(covariates, 0)
        assert_mean(covariates[:, :, None] * covariates[:, None, :], np.eye(task.dim))
    assert_mean(x[:, 0, :, None] * x_q[:, None, :], 0)  # columns are independent
    scale = task.signal_var / on(task).sum(1)
    for labels, noise in ((y[:, 0], task.noise_var), (y[:, -1], task.noise_var), (y_q, task.noise_var)):
        left = noise if labels is not y_q or task.query_noise else 0.0
        assert_mean(labels, 0)
        assert_mean(labels**2, task.signal_var + left)
    # β ties a response's labels together, and only along its own features: E[y_1 y_q x_1 x_qᵀ] = E[ββᵀ].
    for n, support in enumerate(on(task)):
        product = (y[:, 0, n] * y_q[:, n])[:, None, None] * x[:, 0, :, None] * x_q[:, None, :]
        assert_mean(product, scale[n] * np.diag(support))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_responses_share_covariates_and_no_more_than_they_should(task):
    """E[y_m y_n] at one column is E[β_mᵀβ_n]: nothing, or with a shared signal what the supports have in common."""
    prompt = task.sample(20_000, generator=seeded())
    (y,) = double(prompt.y[:, 0])
    among = on(task) @ on(task).T
    size = np.diag(among)
    expected = task.signal_var * among / np.sqrt(np.outer(size, size)) * task.shared_signal
    for m in range(task.n_outputs):
        for n in range(m):
            assert_mean(y[:, m] * y[:, n], expected[m, n])


@pytest.mark.parametrize("task", NOISELESS, ids=["independent", "shared"])
def test_features_outside_the_support_have_no_say(task):
    prompt = task.sample(50, length=20, generator=seeded())
    x, y, x_q, y_q = double(prompt.x, prompt.y, prompt.x_q, prompt.y_q)
    for n, support in enumerate(task.supports):
        inside = list(support)
        beta = np.linalg.pinv(x[..., inside]) @ y[..., n : n + 1]
        np.testing.assert_allclose((x[..., inside] @ beta)[..., 0], y[..., n], atol=1e-5)
        np.testing.assert_allclose(np.einsum("bi,bi->b", x_q[:, inside], beta[..., 0]), y_q[:, n], atol=1e-5)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scales_are_exactly_zero_off_the_support(task):
    scales = task._scales(torch.device("cpu")).numpy()
    assert ((scales == 0) == (on(task).T == 0)).all()
    np.testing.assert_allclose((scales**2).sum(0), task.signal_var, rtol=1e-6)


def test_a_signal_is_shared_or_is_not():
    equal = MultiTaskRegression(4, [(0, 1, 2), (1, 2, 3)], 6, noise_var=0.0, shared_signal=True)
    one, two = signals(equal, 2_000).swapaxes(0, 1)
    np.testing.assert_allclose(one[:, 1:3], two[:, 1:3], atol=1e-4)  # supports of one size: the very same
    unequal = dataclasses.replace(equal, supports=[(0, 1, 2, 3), (3,)])
    one, two = signals(unequal, 2_000).swapaxes(0, 1)
    np.testing.assert_allclose(2 * one[:, 3], two[:, 3], atol=1e-4)  # else in proportion
    apart = dataclasses.replace(equal, shared_signal=False)
    one, two = signals(apart, 2_000).swapaxes(0, 1)
    assert_mean(one[:, 1:3] * two[:, 1:3], 0)
    for task in (equal, unequal, apart):
        assert_mean((signals(task, 2_000) ** 2).sum(-1), task.signal_var)


def test_one_response_that_sees_all_is_linear_regression():
    ours = MultiTaskRegression(3, [range(3)], 6, noise_var=0.5, signal_var=2.0)
    torch.testing.assert_close(
        ours.sample(9, generator=seeded()).y,
        LinearRegression(3, 6, noise_var=0.5, signal_var=2.0).sample(9, generator=seeded()).y,
    )


def test_query_noise_reaches_the_queries_alone():
    noisy = MultiTaskRegression(3, [(0, 1), (2,)], 6, noise_var=1.0)
    a, b = (dataclasses.replace(noisy, query_noise=flag).sample(20_000, generator=seeded()) for flag in (True, False))
    assert torch.equal(a.z, b.z)
    assert_mean(double(a.y_q - b.y_q)[0] ** 2, 1.0)
    assert_mean(double((a.y_q - b.y_q).prod(-1))[0], 0.0)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(1, 4), st.none() | st.integers(1, 9))
def test_shapes(batch, length, dim, outputs, asked):
    task = MultiTaskRegression(dim, [range(1 + n % dim) for n in range(outputs)], length)
    prompt = task.sample(batch, length=asked, generator=seeded())
    L = asked or length
    assert (task.n_outputs, len(prompt), prompt.length) == (outputs, batch, L)
    assert prompt.z.shape == (batch, L + 1, dim + outputs)
    assert (prompt.x_q.shape, prompt.y_q.shape) == ((batch, dim), (batch, outputs))
    assert {t.dtype for t in (prompt.x, prompt.y, prompt.x_q, prompt.y_q)} == {torch.float32}


def test_a_generator_decides_everything():
    task = TASKS["as it is"]
    first, again, other = (task.sample(4, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.y_q, again.y_q)
    assert not torch.equal(first.z, other.z)
    before = torch.random.get_rng_state()
    task.sample(4, generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())


def test_prompts_live_where_they_are_asked_to():
    assert TASKS["as it is"].sample(2, device="meta").z.device.type == "meta"
    assert TASKS["as it is"].sample(2, generator=seeded()).z.device.type == "cpu"


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", np.int64(3)])
def test_batches_and_lengths_are_counts(value):
    with pytest.raises(ConfigError, match=f"batch must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        TASKS["one"].sample(value)
    with pytest.raises(ConfigError, match=f"length must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        TASKS["one"].sample(3, length=value)


# --- What a task is --------------------------------------------------------------------------------------------------


def test_supports_as_a_table():
    table = MultiTaskRegression(4, [(0, 1), (1, 3)], 6).uses
    assert table.tolist() == [[True, True, False, False], [False, True, False, True]]


def test_a_task_is_a_value():
    task = MultiTaskRegression(4, [(0, 1), (1, 3)], 6)
    assert isinstance(task, Task)
    for same in (
        ([1, 0], [3, 1]),
        [{0, 1}, frozenset({3, 1})],
        [range(2), range(1, 4, 2)],
        np.array([[1, 0], [3, 1]]),
        torch.tensor([[0, 1], [1, 3]]),
        [np.array([0, 1]), torch.tensor([3, 1])],
        [(np.int64(0), np.int32(1)), (1, 3)],
    ):
        other = MultiTaskRegression(4, same, 6)
        assert other == task
        assert hash(other) == hash(task)
        assert repr(other) == repr(task)  # plain numbers
    assert len({task, copy.deepcopy(task), dataclasses.replace(task)}) == 1
    assert task != dataclasses.replace(task, shared_signal=True)
    assert task != MultiTaskRegression(4, [(1, 3), (0, 1)], 6)  # responses have an order
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.dim = 5


def test_its_repr_is_python():
    task = MultiTaskRegression(6, [{3, 0}, {1}], 48, noise_var=1, signal_var=4)
    assert repr(task) == (
        "MultiTaskRegression(dim=6, supports=((0, 3), (1,)), length=48, noise_var=1.0, query_noise=True, "
        "signal_var=4.0, shared_signal=False)"
    )
    assert eval(repr(task)) == task


def test_replacing_the_supports_replaces_what_is_drawn():
    task = MultiTaskRegression(2, [(0,)], 6, noise_var=0.0)
    task.sample(1)
    prompt = dataclasses.replace(task, supports=[(1,)]).sample(3, generator=seeded())
    ratio = prompt.y[..., 0] / prompt.x[..., 1]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


@pytest.mark.parametrize(
    "supports",
    [None, 3, "01", b"01", [], (), np.zeros((0, 2), int), {(0, 1), (1, 2)}, {0: (1,)}, iter([(0,)]), np.array(3)],
)
def test_supports_that_are_no_sequence_of_sets(supports):
    with pytest.raises(ConfigError, match=r"^supports must be a sequence of sets of features, one for each response"):
        MultiTaskRegression(3, supports, 6)


@pytest.mark.parametrize(
    "support",
    [
        (),
        set(),
        1,
        None,
        "01",
        b"01",
        {0: 1},
        (0, 0),
        (0, 3),
        (-1,),
        (True,),
        (np.True_,),
        (0.0,),
        ("0",),
        (None,),
        ((0, 1),),
        np.array([0.0, 1.0]),
        np.array([True, False, True]),
        np.array([[0, 1]]),
        torch.tensor([0.5]),
        (10**30,),
        [1, 1.0],
        (i for i in range(2)),
    ],
    ids=repr,
)
def test_supports_that_cannot_be(support):
    match = r"^supports\[1\] must be features among 0 … 2, each once and one at least, got " + re.escape(repr(support))
    with pytest.raises(ConfigError, match=match):
        MultiTaskRegression(3, [(0, 1), support], 6)


@pytest.mark.parametrize("name", ["dim", "length"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "3", None, np.int64(3)])
def test_sizes_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        MultiTaskRegression(**{"dim": 3, "supports": [(0,)], "length": 6, name: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.1", None, np.float32(0.1)])
def test_variances_that_cannot_be(value):
    with pytest.raises(ConfigError, match=f"^noise_var must be a finite number ≥ 0, got {re.escape(repr(value))}"):
        MultiTaskRegression(3, [(0,)], 6, noise_var=value)
    with pytest.raises(ConfigError, match=f"^signal_var must be a finite number > 0, got {re.escape(repr(value))}"):
        MultiTaskRegression(3, [(0,)], 6, signal_var=value)


@pytest.mark.parametrize("name", ["query_noise", "shared_signal"])
@pytest.mark.parametrize("value", [0, 1, None, "no"])
def test_flags_are_flags(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be True or False, got {value!r}"):
        MultiTaskRegression(3, [(0,)], 6, **{name: value})


# --- In the library --------------------------------------------------------------------------------------------------


def test_it_trains_saves_and_is_analyzed(tmp_path):
    task = icl.MultiTaskRegression(4, [(0, 1, 2), (2, 3)], length=8, noise_var=0.1)
    run = icl.train(task, n_heads=3, steps=20, n_records=5, out=tmp_path / "run", progress=False)
    assert run.versions["engine"] == "numba"
    again = icl.Run.load(tmp_path / "run")
    assert again.task == again.training.task == task
    result = icl.analyze(again, budget=100)
    statuses = {outcome.probe: outcome.status for outcome in result}
    assert not {"failed", "broken", "skipped"} & set(statuses.values()), statuses
    assert (statuses["kernel_fit"], result["kernel_fit"].reason) == (
        "not_applicable",
        "the claim is about one response; this model has 2",
    )
    assert "MultiTaskRegression(dim=4, supports=((0, 1, 2), (2, 3))" in str(result)
    assert result.to_html()


def test_training_learns_from_it():
    task = icl.MultiTaskRegression(2, [(0,), (0, 1)], length=8, noise_var=0.1)
    run = icl.train(task, n_heads=3, steps=600, lr=1e-2, seed=0, n_records=20, progress=False)
    assert run.dynamics.loss[-1] < 0.75 * run.dynamics.loss[0]


def test_claims_about_one_response_are_not_made_of_several():
    task = MultiTaskRegression(dim=3, supports=[(0, 1), (1, 2)], length=8)
    result = icl.analyze(icl.train(task, n_heads=3, steps=5, progress=False), budget=64)
    for probe in ("risk", "kernel_fit"):
        said = {verdict.status for verdict in result[probe].verdicts}
        assert said <= {"not_applicable"}, probe


def test_probes_about_several_responses_are_for_models_of_several():
    """The analysis of a model of one is as it was; asked for by name, they say why they are skipped."""
    several = {"task_allocation", "superposition"}
    one = plant(roles=["positive", "negative"]).run
    assert several.isdisjoint(outcome.probe for outcome in icl.analyze(one, budget=16))
    assert several <= {outcome.probe for outcome in icl.analyze(plant_tasks(mode="II").run, budget=16)}
    skipped = icl.analyze(one, budget=16, probes=["task_allocation"])["task_allocation"]
    assert (skipped.status, skipped.reason) == ("skipped", "needs several responses: this model has one")
