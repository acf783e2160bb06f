"""Ridge regression against scikit-learn's, and what must not be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from icl_interp_probes.linear_probes import PENALTIES, fit_probes, read_beside


def drawn(n: int = 300, features: int = 5, targets: int = 2, noise: float = 0.5, seed: int = 0) -> tuple:
    """Features of very different scales, off centre, and noisy linear targets."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, features)) * np.geomspace(1e-3, 1e3, features) + 7
    y = (x - 7) / np.geomspace(1e-3, 1e3, features) @ rng.standard_normal((features, targets)) - 3
    return torch.from_numpy(x), torch.from_numpy(y + noise * rng.standard_normal((n, targets)))


def standardised(x: torch.Tensor) -> np.ndarray:
    return ((x - x.mean(0)) / x.std(0, correction=0)).numpy()


def test_it_is_ridge_on_standardised_features() -> None:
    x, y = drawn(noise=3.0)
    (probe,) = fit_probes(x, y)
    ridge = Ridge(alpha=probe.penalty * len(x)).fit(standardised(x), y.numpy())
    np.testing.assert_allclose(probe(x).numpy(), ridge.predict(standardised(x)), rtol=1e-8)


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0])
def test_the_penalty_is_the_one_of_least_generalised_cross_validation(noise: float) -> None:
    """scikit-learn's leave-one-out error, which generalised cross-validation stands for, on the same grid."""
    x, y = drawn(n=60, noise=noise, targets=1)
    (probe,) = fit_probes(x, y)
    cv = RidgeCV(alphas=PENALTIES * len(x)).fit(standardised(x), y.numpy()[:, 0])
    assert cv.alpha_ is not None
    assert abs(np.log10(cv.alpha_ / len(x)) - np.log10(probe.penalty)) < 1.5  # a step of the grid at most


def test_each_target_has_a_penalty_of_its_own() -> None:
    x, y = drawn(n=100, noise=0.0)
    nothing = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, none = fit_probes(x, y, nothing)
    assert exact.penalty <= PENALTIES[-2]  # which of the last ones is least rounding decides
    assert none.penalty >= 1
    np.testing.assert_allclose(exact(x), y, atol=1e-6)
    np.testing.assert_allclose(exact.weights, fit_probes(x, y)[0].weights)


def test_features_that_are_constant_or_alike_are_no_matter() -> None:
    x, y = drawn(noise=0.0)
    more = torch.cat([x, torch.full((len(x), 1), 1e6), torch.zeros(len(x), 2), x[:, :2] * 3 - 1], 1)
    (probe,) = fit_probes(more, y)
    assert probe.weights.isfinite().all()
    np.testing.assert_allclose(probe(more), y, atol=1e-5)


def test_with_as_many_features_as_prompts_it_does_not_take_noise_for_signal() -> None:
    x, _ = drawn(n=40, features=45)
    noise = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (probe,) = fit_probes(x, noise)
    assert probe.penalty > 1
    held = drawn(n=500, features=45, seed=2)[0]
    assert float(probe(held).var()) < 0.2


def test_of_one_prompt_the_mean_is_read() -> None:
    x, y = drawn(n=1)
    (probe,) = fit_probes(x, y)
    assert probe.penalty == PENALTIES[0]
    np.testing.assert_allclose(probe(x + 1), y)


def test_reading_beside_many_columns_is_least_squares_with_each() -> None:
    x, y = drawn(features=8)
    base, columns, target = x[:, 2:5], x[:, 5:], y[:, 0]
    read = read_beside(base, columns, target)
    for column, found in zip(columns.T, read.T, strict=True):
        features = torch.cat([torch.ones_like(base[:, :1]), base, column[:, None]], 1).numpy()
        expected = features @ np.linalg.lstsq(features, target.numpy(), rcond=None)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
