"""The compiled engine's elementary functions and random numbers, each against plain numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import oracles
import pytest
from numba import njit
from scipy import stats

from icl_interp.training.compiled import prompts, random
from icl_interp.training.compiled.compiler import LANES, aligned

# What is compiled has no Python face of its own.


@njit(_nrt=False)
def exp2(x, out):
    for i in range(x.size):
        out[i] = random.exp2(x[i])


@njit(_nrt=False)
def minus_two_log(x, out):
    for i in range(x.size):
        out[i] = random.minus_two_log(x[i])


@njit(_nrt=False)
def start_streams(state, key, step, first):
    random.start_streams(state, key, step, first)


@njit(_nrt=False)
def normals(state, out, pairs):
    random.normals(state, out, pairs)


def test_exp2_is_exact_to_rounding_and_safe_where_it_ends() -> None:
    x = np.random.default_rng(0).uniform(-126, 127, 1_000_000).astype(np.float32)
    out = np.empty_like(x)
    exp2(x, out)
    assert np.abs(out / np.exp2(x.astype(float)) - 1).max() < 2.3e-7
    edge = np.array([0, 1, -126, -127, -1e30, -np.inf, np.nan], np.float32)
    out = np.empty_like(edge)
    exp2(edge, out)
    np.testing.assert_array_equal(out[:6], np.float32([1, 2, *[2.0**-126] * 4]))
    assert not np.isfinite(out[6])


def test_log_is_exact_to_rounding_from_the_smallest_uniform_to_one() -> None:
    x = np.concatenate([np.exp2(-np.linspace(0, 32, 1_000_001)), [2.0**-32, 1.0]]).astype(np.float32)
    out = np.empty_like(x)
    minus_two_log(x, out)
    wanted = -2 * np.log(x.astype(float))
    inside = wanted > 0
    assert np.abs(out[inside] / wanted[inside] - 1).max() < 2e-7
    assert out[-1] == 0


@pytest.mark.parametrize(("step", "first"), [(0, 0), (7, 64), (2**33 + 5, 192)])
def test_streams_start_where_philox_says(step: int, first: int) -> None:
    key = np.array([0x12345678, 0x9ABCDEF0], np.uint32)
    state = np.zeros(4 * LANES, np.uint32)
    start_streams(state, key, step, first)
    counter = np.zeros((LANES, 4), np.uint32)
    counter[:, 0], counter[:, 2], counter[:, 3] = np.arange(first, first + LANES), step & 0xFFFFFFFF, step >> 32
    np.testing.assert_array_equal(state.reshape(4, LANES).T, oracles.philox(counter, key))


def test_philox_is_the_published_one() -> None:
    """Known answers of Random123, Salmon et al. 2011."""
    digits = np.array([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint32)  # π
    assert [hex(x) for x in oracles.philox(0 * digits, np.zeros(2, np.uint32))[0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip
    assert [hex(x) for x in oracles.philox(digits, np.array([0xA4093822, 0x299F31D0], np.uint32))[0]] == [
        "0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1",
    ]  # fmt: skip


def drawn(pairs: int, step: int) -> np.ndarray:
    """(prompts, normals) of one block."""
    state, out = np.zeros(4 * LANES, np.uint32), np.zeros(2 * pairs * LANES, np.float32)
    start_streams(state, np.array([1, 2], np.uint32), step, 0)
    normals(state, out, pairs)
    return out.reshape(2 * pairs, LANES).T


def test_normals_are_box_muller_of_xoshiro() -> None:
    counter = np.zeros((LANES, 4), np.uint32)
    counter[:, 0], counter[:, 2] = np.arange(LANES), 3
    state = oracles.philox(counter, np.array([1, 2], np.uint32))
    missed = np.abs(drawn(500, 3) - oracles.normals(oracles.xoshiro(state, 1000)))
    assert np.median(missed) < 5e-8
    assert missed.max() < 1e-5  # where the radius is small, because uniforms near one are a float32 apart


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """(steps, prompts, normals): 5.1 million."""
    return np.stack([drawn(100, step) for step in range(400)])


def test_normals_are_normal(many: np.ndarray) -> None:
    n = many.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        z = ((many.astype(float) ** power).mean() - moment) / (variance / n) ** 0.5
        assert abs(z) < 4, f"moment {power} is off by {z:.1f} standard errors"
    edges = stats.norm.ppf(np.linspace(0, 1, 1001))
    counts = np.histogram(many, edges)[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    for tail in (4.0, 5.0):
        expected = 2 * n * stats.norm.sf(tail)
        assert abs((np.abs(many) > tail).sum() - expected) < 4 * expected**0.5 + 1


def test_normals_do_not_know_of_each_other(many: np.ndarray) -> None:
    """Neither the two of a pair, nor neighbours in a stream, nor neighbouring prompts, nor successive steps."""
    pairs = {
        "of a pair": (many[..., ::2], many[..., 1::2]),
        "in a stream": (many[..., :-2], many[..., 2:]),
        "between prompts": (many[:, :-1], many[:, 1:]),
        "between steps": (many[:-1], many[1:]),
        "over half a block": (many[:, :32], many[:, 32:]),
    }
    for name, (a, b) in pairs.items():
        for f in (lambda x: x, np.abs, np.square):
            z = np.corrcoef(f(a).ravel(), f(b).ravel())[0, 1] * a.size**0.5
            assert abs(z) < 4.5, f"{name}: {z:.1f} standard errors"
        table = np.histogram2d(a.ravel(), b.ravel(), bins=[stats.norm.ppf(np.linspace(0, 1, 17))] * 2)[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-4, name


def test_other_seeds_and_steps_give_other_numbers() -> None:
    assert not np.isin(drawn(50, 1), drawn(50, 2)).all(1).any()
    a, b = (np.zeros(4 * LANES, np.uint32) for _ in range(2))
    start_streams(a, np.array([1, 2], np.uint32), 0, 0)
    start_streams(b, np.array([2, 2], np.uint32), 0, 0)
    assert not (a == b).reshape(4, LANES).all(0).any()


@njit(_nrt=False)
def draw(state, query, z, source, tokens, dim, outputs):
    prompts.draw_query(state, query, source, dim, outputs)
    prompts.draw_tile(state, z, query, source, tokens, dim, outputs)


def test_several_outputs_share_covariates_and_have_signals_of_their_own() -> None:
    """What multi-task prompts are made of: β_n on its own support, one x."""
    dim, outputs, tokens, steps = 3, 2, 4, 400
    signal = np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 2.0]], np.float32)
    f4 = np.float32
    source = prompts.Source(
        np.array([5, 6], np.uint32), np.eye(dim, dtype=f4), np.zeros(dim, f4), signal, False, f4(0), f4(0), True, False,
        np.zeros((0, 0), f4), np.zeros((0, 0), f4),
    )  # fmt: skip
    model = dim + outputs
    query, z = (
        aligned(np.zeros((outputs * dim + model + 1) * LANES, f4)),
        aligned(np.zeros(tokens * model * LANES, f4)),
    )
    betas = []
    for step in range(steps):
        state = aligned(np.zeros(4 * LANES, np.uint32))
        start_streams(state, source.key, step, 0)
        draw(state, query, z, source, tokens, dim, outputs)
        rows = query.reshape(-1, LANES)
        beta, x_q, y_q = rows[:6].reshape(outputs, dim, LANES), rows[6:9], rows[9:11]
        np.testing.assert_allclose(y_q, np.einsum("nkb,kb->nb", beta, x_q), atol=1e-5)
        tokens_rows = z.reshape(tokens, model, LANES)
        np.testing.assert_allclose(
            tokens_rows[:, dim:], np.einsum("nkb,tkb->tnb", beta, tokens_rows[:, :dim]), atol=2e-5
        )
        betas.append(beta.copy())
    spread = np.stack(betas).std(axis=(0, 3))
    np.testing.assert_allclose(spread, signal, rtol=4 / (2 * steps * LANES) ** 0.5)


NOWHERE = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
from icl_interp.training.compiled import step
print("imported")
"""


def test_without_a_folder_to_cache_in_it_is_compiled_all_the_same() -> None:
    """A container whose home and installation are read-only, say."""
    done = subprocess.run([sys.executable, "-c", NOWHERE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr


FULL = """
import numpy as np
import torch
from numba.core import caching
from icl_interp.training import numba_engine
from icl_interp.config import ModelConfig
from icl_interp.tasks import LinearRegression
from icl_interp.weights import initial_weights

def full(self, *_):
    raise OSError(28, "No space left on device")

caching.Cache.save_overload = full
caching.Cache.load_overload = lambda *_: None
model, task = ModelConfig(2), LinearRegression(2, 5)
print(numba_engine.NumbaEngine.grad(model, initial_weights(model), task.sample(4))[0] > 0)
"""


@pytest.mark.slow  # it compiles everything
def test_a_disk_too_full_for_the_cache_is_no_obstacle() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


TRAINED = """
from hashlib import sha256
import icl_interp as icl
run = icl.train(icl.LinearRegression(dim=2, length=9), steps=300, n_records=20, progress=False)
print(sha256(run.dynamics.loss.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_process_that_compiles_trains_as_those_that_load(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first, second = (
        subprocess.run([sys.executable, "-c", TRAINED], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert len(list(tmp_path.rglob("*.nbi"))) == 1
    assert first == second
