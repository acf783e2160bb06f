"""Prompts against the distribution they are said to come from, and tasks against what cannot be one.

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

from icl_interp import theory
from icl_interp.errors import ConfigError
from icl_interp.tasks import KMS, LinearRegression, Prompt, Task, UnavailableTask, kms

SIGMA = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
TASKS = {
    "identity": LinearRegression(3, 6),
    "noiseless": LinearRegression(3, 6, noise_var=0.0),
    "kms": LinearRegression(3, 6, noise_var=0.5, covariance=kms(0.5)),
    "negative kms": LinearRegression(3, 6, covariance=kms(-0.8)),
    "matrix": LinearRegression(3, 6, noise_var=2.0, covariance=SIGMA),
    "mean": LinearRegression(3, 6, mean=1.5),
    "means": LinearRegression(3, 6, covariance=kms(0.3), mean=[1.0, -2.0, 0.0]),
    "signal": LinearRegression(3, 6, signal_var=4.0),
    "clean query": LinearRegression(3, 6, noise_var=1.0, query_noise=False),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*tensors):
    return [t.double().numpy() for t in tensors]


def assert_mean(samples, expected):
    """The mean over the first axis, entry by entry, within four standard errors."""
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - expected) <= 4 * error + 1e-12).all(), (samples.mean(0), expected, error)


# --- Where prompts come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_moments(task):
    prompt = task.sample(20_000, generator=seeded())
    x, y, x_q, y_q = double(prompt.x, prompt.y[..., 0], prompt.x_q, prompt.y_q[..., 0])
    mean, sigma = task.mean_vector, task.sigma

    for covariates in (x[:, 0], x[:, -1], x_q):
        assert_mean(covariates, mean)
        centred = covariates - mean
        assert_mean(centred[:, :, None] * centred[:, None, :], sigma)
    assert_mean(x[:, 0, :, None] * x_q[:, None, :], np.outer(mean, mean))  # columns are independent

    signal = task.signal_var / task.dim * (np.trace(sigma) + mean @ mean)
    for labels, noise in (
        (y[:, 0], task.noise_var),
        (y[:, -1], task.noise_var),
        (y_q, task.noise_var * task.query_noise),
    ):
        assert_mean(labels, 0)
        assert_mean(labels**2, signal + noise)
    # One β a prompt ties its labels together, and only in the direction of Σ: E[y_1 y_q x_1 x_qᵀ] ∝ (Σ + mmᵀ)².
    second = sigma + np.outer(mean, mean)
    assert_mean(
        (y[:, 0] * y_q)[:, None, None] * x[:, 0, :, None] * x_q[:, None, :],
        task.signal_var / task.dim * second @ second,
    )


def test_kms_is_the_matrix_it_stands_for():
    assert np.array_equal(LinearRegression(4, 6, covariance=kms(0.5)).sigma, theory.kms_covariance(4, 0.5))
    matrix = LinearRegression(4, 6, covariance=theory.kms_covariance(4, 0.5))
    a, b = (task.sample(5, generator=seeded()) for task in (matrix, LinearRegression(4, 6, covariance=kms(0.5))))
    torch.testing.assert_close(a.x, b.x)


def test_a_noiseless_task_is_solved_by_its_own_demonstrations():
    prompt = LinearRegression(3, 6, noise_var=0.0, covariance=SIGMA, mean=[1.0, 2.0, 3.0]).sample(
        50, generator=seeded()
    )
    x, y, x_q, y_q = double(prompt.x, prompt.y, prompt.x_q, prompt.y_q)
    beta = np.linalg.pinv(x) @ y
    np.testing.assert_allclose(np.einsum("bdn,bd->bn", beta, x_q), y_q, atol=1e-3)


def test_query_noise_reaches_the_query_alone_and_costs_its_variance():
    noisy, clean = (LinearRegression(3, 6, noise_var=1.0, query_noise=flag) for flag in (True, False))
    a, b = noisy.sample(20_000, generator=seeded()), clean.sample(20_000, generator=seeded())
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.x_q, b.x_q)
    assert_mean(double(a.y_q - b.y_q)[0] ** 2, 1.0)
    for prompt, query_noise in ((a, True), (b, False)):
        guess = 0.5 * torch.einsum("bln,bld,bd->bn", prompt.y, prompt.x, prompt.x_q) / 6
        risk = theory.gd_risk(0.5, dim=3, length=6, noise_var=1.0, query_noise=query_noise)
        assert_mean(double(guess - prompt.y_q)[0] ** 2, risk)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.none() | st.integers(1, 9))
def test_shapes(batch, length, dim, asked):
    prompt = LinearRegression(dim, length).sample(batch, length=asked, generator=seeded())
    L = asked or length
    assert prompt.x.shape == (batch, L, dim)
    assert prompt.y.shape == (batch, L, 1)
    assert prompt.x_q.shape == (batch, dim)
    assert prompt.y_q.shape == (batch, 1)
    assert (len(prompt), prompt.length) == (batch, L)
    assert prompt.demonstrations.shape == (batch, L, dim + 1)
    assert prompt.z.shape == (batch, L + 1, dim + 1)
    assert {t.dtype for t in (prompt.x, prompt.y, prompt.x_q, prompt.y_q)} == {torch.float32}


def test_the_default_dtype_is_left_out_of_it():
    torch.set_default_dtype(torch.float64)
    try:
        prompt = LinearRegression(3, 6, covariance=kms(0.5), mean=1.0).sample(2, generator=seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert prompt.x.dtype == prompt.y.dtype == torch.float32


def test_a_generator_decides_everything():
    task = LinearRegression(3, 6, covariance=kms(0.5))
    first, again, other = (task.sample(4, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.y_q, again.y_q)
    assert not torch.equal(first.z, other.z)
    generator = seeded(1)
    assert torch.equal(task.sample(4, generator=generator).z, first.z)
    assert not torch.equal(task.sample(4, generator=generator).z, first.z)


def test_a_generator_keeps_out_of_the_global_state():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    TASKS["means"].sample(4, generator=seeded())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    torch.manual_seed(7)
    first = LinearRegression(3, 6).sample(4)  # and without one, it is the global state that decides
    torch.manual_seed(7)
    assert torch.equal(first.z, LinearRegression(3, 6).sample(4).z)


def test_prompts_live_where_they_are_asked_to():
    prompt = LinearRegression(3, 6, covariance=kms(0.5), mean=1.0).sample(2, device="meta")
    assert prompt.z.device.type == "meta"
    assert LinearRegression(3, 6).sample(2, device=torch.device("cpu"), generator=seeded()).x.device.type == "cpu"


@pytest.mark.gpu
def test_prompts_are_drawn_on_the_generators_device():
    generator = torch.Generator("cuda").manual_seed(0)
    task = LinearRegression(3, 6, covariance=kms(0.5), mean=1.0)
    prompt = task.sample(20_000, generator=generator)
    assert prompt.x.device.type == "cuda"
    centred = double(prompt.x_q.cpu())[0] - 1
    assert_mean(centred[:, :, None] * centred[:, None, :], task.sigma)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", np.int64(3)])
def test_batches_and_lengths_are_counts(value):
    task = LinearRegression(3, 6)
    with pytest.raises(ConfigError, match=f"batch must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        task.sample(value)
    with pytest.raises(ConfigError, match=f"length must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        task.sample(3, length=value)


# --- What a task is --------------------------------------------------------------------------------------------------


def test_a_task_is_a_value():
    task = LinearRegression(3, 6, covariance=SIGMA, mean=[1, 2, 3])
    for same in (
        SIGMA.tolist(),
        tuple(map(tuple, SIGMA)),
        torch.tensor(SIGMA),
        torch.tensor(SIGMA, requires_grad=True),
    ):
        for mean in ((1.0, 2.0, 3.0), np.arange(1, 4), torch.tensor([1.0, 2.0, 3.0], requires_grad=True)):
            other = LinearRegression(3, 6, covariance=same, mean=mean)
            assert other == task
            assert hash(other) == hash(task)
    assert len({task, copy.deepcopy(task), dataclasses.replace(task)}) == 1
    assert task != dataclasses.replace(task, noise_var=0.2)
    assert task != task.shifted(0.0)
    assert dataclasses.replace(task, length=9).sample(2).length == 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.dim = 4


def test_a_task_does_not_change_with_what_it_was_made_of():
    sigma, mean = SIGMA.copy(), np.zeros(3)
    task = LinearRegression(3, 6, covariance=sigma, mean=mean)
    before = task.sample(2, generator=seeded())
    sigma[0, 0], mean[0] = 100.0, 100.0
    task.sigma[0, 0] = 100.0
    task.mean_vector[0] = 100.0
    assert torch.equal(task.sample(2, generator=seeded()).z, before.z)
    assert task.sigma[0, 0] == 2.0


def test_replacing_the_covariance_replaces_what_is_drawn():
    task = LinearRegression(3, 6, covariance=SIGMA)
    task.sample(1)
    wide = dataclasses.replace(task, covariance=100 * SIGMA).sample(2, generator=seeded()).x
    torch.testing.assert_close(wide, 10 * task.sample(2, generator=seeded()).x)


def test_isotropic_and_centred():
    assert LinearRegression(3, 6).isotropic
    assert LinearRegression(3, 6, covariance=4 * np.eye(3)).isotropic
    assert LinearRegression(3, 6, covariance=1e-20 * np.eye(3)).isotropic
    assert LinearRegression(3, 6, covariance=1e20 * np.eye(3)).isotropic
    assert LinearRegression(3, 6, covariance=kms(0.0)).isotropic
    assert LinearRegression(1, 6, covariance=kms(0.5)).isotropic
    assert not LinearRegression(3, 6, covariance=kms(0.01)).isotropic
    assert not LinearRegression(2, 6, covariance=[[1e-13, 0], [0, 5e-13]]).isotropic
    assert not LinearRegression(2, 6, covariance=[[1, 1e-6], [1e-6, 1]]).isotropic
    assert LinearRegression(3, 6, mean=[0, 0, 0]).centred
    assert not LinearRegression(3, 6, mean=[0, 0, 1e-9]).centred
    assert LinearRegression(3, 6, mean=2.0).shifted(0.0).centred


@pytest.mark.parametrize("name", ["dim", "length"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "3", None, np.int64(3)])
def test_sizes_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        LinearRegression(**{"dim": 3, "length": 6, name: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 10**400, True, "0.1", None, [0.1], np.float32(0.1)])
def test_variances_that_cannot_be(value):
    with pytest.raises(ConfigError, match=f"^noise_var must be a finite number ≥ 0, got {re.escape(repr(value))}"):
        LinearRegression(3, 6, noise_var=value)
    with pytest.raises(ConfigError, match=f"^signal_var must be a finite number > 0, got {re.escape(repr(value))}"):
        LinearRegression(3, 6, signal_var=value)
    with pytest.raises(ConfigError, match="signal_var must be a finite number > 0, got 0"):
        LinearRegression(3, 6, signal_var=0)


@pytest.mark.parametrize("value", [0, 1, None, "no"])
def test_query_noise_is_a_flag(value):
    # 1 would train as True does, but its file could not be read back.
    with pytest.raises(ConfigError, match=f"query_noise must be True or False, got {value!r}"):
        LinearRegression(3, 6, query_noise=value)


@pytest.mark.parametrize(
    ("covariance", "complaint"),
    [
        ("identity", "must be None, kms(rho) or a (2, 2) matrix, got 'identity'"),
        (kms, "must be None, kms(rho) or a (2, 2) matrix, got <function kms"),
        ([["1", "0"], ["0", "1"]], "must be None, kms(rho) or a (2, 2) matrix, got [['1'"),
        ([[True, False], [False, True]], "must be None, kms(rho) or a (2, 2) matrix, got [[True"),
        ([[1, 0], [0]], "must be None, kms(rho) or a (2, 2) matrix, got [[1, 0], [0]]"),
        (1j * np.eye(2), "must be None, kms(rho) or a (2, 2) matrix"),
        (0.5, "must have shape (2, 2) for dim=2, got ()"),
        ([1.0, 1.0], "must have shape (2, 2) for dim=2, got (2,)"),
        (np.eye(3), "must have shape (2, 2) for dim=2, got (3, 3)"),
        ([[1, math.nan], [math.nan, 1]], "must be finite, got NaN or infinity"),
        ([[math.inf, 0], [0, 1]], "must be finite, got NaN or infinity"),
        ([[1, 0.1], [0.2, 1]], "must be symmetric, got entries that differ by 0.1"),
        ([[1, 1], [1, 1]], "must be positive definite, got a smallest eigenvalue of "),
        ([[1, 2], [2, 1]], "must be positive definite, got a smallest eigenvalue of -1"),
        (np.zeros((2, 2)), "must be positive definite, got a smallest eigenvalue of 0"),
        (-np.eye(2), "must be positive definite, got a smallest eigenvalue of -1"),
    ],
)
def test_covariances_that_cannot_be(covariance, complaint):
    with pytest.raises(ConfigError, match="^covariance " + re.escape(complaint)):
        LinearRegression(2, 6, covariance=covariance)


@pytest.mark.parametrize("rho", [1, 1.0, -1.0, 2.0, math.nan, math.inf, "0.5", None, True, [0.5], 1j])
def test_correlations_that_cannot_be(rho):
    for make in (kms, KMS):
        with pytest.raises(ConfigError, match=re.escape(f"rho must be between -1 and 1, both excluded; got {rho!r}")):
            make(rho)


def test_a_correlation_too_close_to_one_is_refused_before_anything_is_drawn():
    with pytest.raises(ConfigError, match="covariance must be positive definite"):
        LinearRegression(5, 6, covariance=kms(1 - 1e-15))


def test_a_correlation_is_kept_as_a_plain_number():
    assert type(kms(np.float32(0.5)).rho) is float
    assert kms(0) == kms(0.0)


@pytest.mark.parametrize(
    "mean",
    [None, "1", ["1", "2"], True, [True, False], [1.0], [1, 2, 3], np.ones((1, 2)), math.nan, [0, math.inf], 1j, {}],
)
def test_means_that_cannot_be(mean):
    with pytest.raises(ConfigError, match=f"^mean must be one finite number or 2 of them, got {re.escape(repr(mean))}"):
        LinearRegression(2, 6, mean=mean)
    with pytest.raises(ConfigError, match=r"^mean must be one finite number or 2 of them"):
        LinearRegression(2, 6).shifted(mean)


@given(st.integers(1, 4), st.data())
def test_any_matrix_is_either_drawn_from_or_refused(dim, data):
    entries = st.floats(-3, 3) | st.sampled_from([math.nan, math.inf, 0.0, 1.0])
    rows = data.draw(st.lists(st.lists(entries, min_size=dim, max_size=dim), min_size=dim, max_size=dim))
    if data.draw(st.booleans()):
        a = np.nan_to_num(np.array(rows), posinf=1.0)
        rows = (a @ a.T + 0.1 * np.eye(dim)).tolist()
        assert LinearRegression(dim, 3, covariance=rows).sigma.tolist() == rows
    try:
        task = LinearRegression(dim, 3, covariance=rows)
    except ConfigError as error:
        assert str(error).startswith("covariance must be ")  # noqa: PT017
    else:
        assert np.linalg.eigvalsh(task.sigma)[0] > 0
        assert task.sample(2, generator=seeded()).x.isfinite().all()


# --- Prompts ---------------------------------------------------------------------------------------------------------


def test_the_query_asks_with_zeros_for_its_response():
    prompt = LinearRegression(3, 6).sample(4, generator=seeded())
    assert torch.equal(prompt.z[:, :6], torch.cat([prompt.x, prompt.y], -1))
    assert torch.equal(prompt.z[:, 6, :3], prompt.x_q)
    assert (prompt.z[:, 6, 3:] == 0).all()
    assert torch.equal(prompt.query, prompt.z[:, -1])
    assert (prompt.y_q != 0).all()


def test_slices_and_conversions_keep_prompts_whole():
    prompt = LinearRegression(3, 6).sample(5, generator=seeded())
    assert len(prompt[1:3]) == 2
    assert torch.equal(prompt[1:3].z, prompt.z[1:3])
    assert torch.equal(prompt[1:3].y_q, prompt.y_q[1:3])
    assert len(prompt[5:]) == 0
    moved = prompt.to(dtype=torch.float64)
    assert {t.dtype for t in (moved.x, moved.y, moved.x_q, moved.y_q)} == {torch.float64}
    assert torch.equal(moved.x.float(), prompt.x)
    assert prompt.to("meta").z.device.type == "meta"


def test_the_beginning_of_a_prompt_asks_the_same():
    whole = LinearRegression(3, 9).sample(4)
    part = whole.beginning(5)
    assert torch.equal(part.x, whole.x[:, :5])
    assert torch.equal(part.y, whole.y[:, :5])
    assert torch.equal(part.query, whole.query)
    assert torch.equal(part.y_q, whole.y_q)
    with pytest.raises(ConfigError, match="these prompts have 9 demonstrations, 10 were asked for"):
        whole.beginning(10)
    with pytest.raises(ConfigError, match="length must be a whole number ≥ 1, got 0"):
        whole.beginning(0)


def test_prompts_stand_where_transformer_lens_takes_tokens():
    prompt = LinearRegression(3, 6).sample(5, generator=seeded())
    assert prompt.shape == prompt.z.shape[:2] == torch.Size((5, 7))
    assert isinstance(prompt.shape, torch.Size)
    assert prompt[:0].shape == (0, 7)
    assert prompt.ndim == len(prompt.shape) == 2
    assert "ndim" not in {field.name for field in dataclasses.fields(prompt)}
    assert torch.equal(prompt.cpu().z, prompt.z)
    assert prompt.cpu().z.device.type == "cpu"
    with pytest.raises(AttributeError):
        prompt.shape = (1, 2)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 4), (2, 3, 1), (2, 4), (2, 2)),
        ((2, 3, 4), (2, 3, 1), (2, 4), (2,)),
        ((2, 3, 4), (2, 3, 1), (2, 3), (2, 1)),
        ((2, 3, 4), (2, 3, 1), (1, 4), (2, 1)),
        ((2, 3, 4), (2, 3, 1), (2, 1, 4), (2, 1)),
        ((2, 3, 4), (2, 2, 1), (2, 4), (2, 1)),
        ((2, 3, 4), (1, 3, 1), (2, 4), (2, 1)),
        ((2, 3, 4), (2, 3), (2, 4), (2, 3)),
        ((3, 4), (3, 1), (4,), (1,)),
        ((3,), (3,), (3,), (3,)),
        ((), (), (), ()),
        ((2, 0, 4), (2, 0, 1), (2, 4), (2, 1)),
    ],
)
def test_shapes_that_do_not_belong_together(shapes):
    got = ", ".join(f"{name} {shape}" for name, shape in zip(("x", "y", "x_q", "y_q"), shapes, strict=True))
    with pytest.raises(
        ConfigError, match="a prompt needs x .batch, length, dim.*length of at least 1, got " + re.escape(got)
    ):
        Prompt(*map(torch.zeros, shapes))


def test_a_prompt_is_made_of_tensors():
    with pytest.raises(ConfigError, match="four tensors, got x ndarray, y list, x_q Tensor, y_q NoneType"):
        Prompt(np.zeros((2, 3, 4)), [[0]], torch.zeros(2, 4), None)


# --- Tasks of a user's own -------------------------------------------------------------------------------------------


class Cubic:
    """A task in the way its user would write one."""

    dim, length, n_outputs = 2, 5, 1

    def sample(self, batch, *, length=None, generator=None, device=None):
        x = torch.randn(batch, (length or self.length) + 1, 2, generator=generator, device=device)
        y = x.pow(3).sum(-1, keepdim=True)
        return Prompt(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])


def test_any_class_with_the_four_members_is_a_task():
    assert isinstance(Cubic(), Task)
    assert isinstance(LinearRegression(3, 6), Task)
    assert isinstance(UnavailableTask(3, 6, 1, "x"), Task)
    assert not isinstance(object(), Task)
    assert Cubic().sample(3, generator=seeded()).z.shape == (3, 6, 3)


def test_a_task_that_is_not_here_says_what_to_do():
    task = UnavailableTask(2, 5, 1, "Cubic(seed=3)")
    with pytest.raises(ConfigError, match=r"a task of its user's own, Cubic\(seed=3\): pass it as task="):
        task.sample(3)
    for name in ("dim", "length", "n_outputs"):
        with pytest.raises(ConfigError, match=f"{name} must be a whole number ≥ 1, got 0"):
            dataclasses.replace(task, **{name: 0})
