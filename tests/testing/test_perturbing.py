from __future__ import annotations

import numpy as np
import pytest

from icl_interp.errors import ConfigError
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import plant, plant_tasks
from icl_interp.testing.perturbing import KINDS, rescaled, term

DRAWS, DIM, OUTPUTS = 4_000, 4, 2
DIAGONAL = np.eye(DIM, dtype=bool)
# Which entries of KQ_11 a kind touches, and whether it touches KQ_21 and OV_21.
TOUCHED = {
    "random": (DIAGONAL | ~DIAGONAL, True, False),
    "diagonal": (DIAGONAL, False, False),
    "off_diagonal": (~DIAGONAL, False, False),
    "antisymmetric": (~DIAGONAL, False, False),
    "low_rank": (DIAGONAL | ~DIAGONAL, False, False),
    "labels": (DIAGONAL & ~DIAGONAL, True, False),
    "covariates": (DIAGONAL & ~DIAGONAL, False, True),
    "scale": (DIAGONAL & ~DIAGONAL, False, False),
}


def rms(entries: np.ndarray) -> np.ndarray:
    return np.sqrt((entries**2).mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_touches_its_own_entries_with_unit_size_and_no_others(kind: str) -> None:
    drawn = term(kind, np.random.default_rng(0), DRAWS, DIM, OUTPUTS)
    of_KQ_11, of_KQ_21, of_OV_21 = TOUCHED[kind]
    # The rms of DRAWS products of two normals, the heaviest tails here, is uncertain by √8/2/√DRAWS = 2.2 %.
    np.testing.assert_allclose(rms(drawn.KQ[:, :DIM]), of_KQ_11.astype(float), atol=0.1)
    np.testing.assert_allclose(rms(drawn.KQ[:, DIM:]), float(of_KQ_21), atol=0.1)
    np.testing.assert_allclose(rms(drawn.OV_21), float(of_OV_21), atol=0.1)
    assert (drawn.KQ[:, :DIM, :][:, ~of_KQ_11] == 0).all()


def test_kinds_have_the_symmetry_that_they_are_named_after() -> None:
    rng = np.random.default_rng(1)
    symmetric, antisymmetric, low = (
        term(kind, rng, 5, DIM, 1).KQ[:, :DIM] for kind in ("off_diagonal", "antisymmetric", "low_rank")
    )
    np.testing.assert_array_equal(symmetric, symmetric.transpose(0, 2, 1))
    np.testing.assert_array_equal(antisymmetric, -antisymmetric.transpose(0, 2, 1))
    assert (np.linalg.matrix_rank(low) == 1).all()


def test_scale_is_of_heads_and_keeps_the_proportions_of_features() -> None:
    omega, mu = np.ones((3_000, 4)), np.ones((3_000, 2))
    w, m = rescaled(omega, mu, 0.3, np.random.default_rng(2))
    np.testing.assert_array_equal(w, w[:, :1] * omega)
    np.testing.assert_allclose([np.log(w[:, 0]).std(), np.log(m).std()], 0.3, rtol=0.06)
    assert abs(np.corrcoef(np.log(m).T)[0, 1]) < 0.08


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_weights_fold_back_to_what_was_planted(kind: str, condition: float) -> None:
    """In units of what is perturbed, to what float32 allows; by a size that is sure to be seen."""
    d, size, heads = 3, 0.2, 60
    omega, mu = np.tile([0.1, -0.2], heads // 2), np.tile([1.0, 4.0], heads // 2)
    planted = plant(
        LinearRegression(d, 20),
        omega=omega.tolist(),
        mu=mu.tolist(),
        noise=size,
        perturbation=kind,
        condition=condition,
        permute=False,
        seed=4,
    )
    circuits = planted.run.circuits()
    of_KQ = (circuits.KQ_11[0] - planted.omega[:, None, None] * np.eye(d)) / 0.2
    touched, KQ_21, OV_21 = TOUCHED[kind]
    atol = 3e-7 * condition + 1e-6
    np.testing.assert_allclose(of_KQ[:, ~touched[:d, :d]], 0, atol=20 * atol)
    np.testing.assert_allclose(circuits.mu[0, :, 0], planted.mu, atol=20 * atol)
    entries = (of_KQ[:, touched[:d, :d]], circuits.KQ_21[0] / 0.2, circuits.OV_21[0] / 4)
    for perturbed, found in zip((touched.any(), KQ_21, OV_21), entries, strict=True):
        if found.size:
            assert np.sqrt((found**2).mean()) == pytest.approx(size * perturbed, rel=0.25, abs=20 * atol)
    moved = kind == "scale"
    assert (np.abs(planted.omega - omega).max() > 0.01) == moved == (np.abs(planted.mu - mu).max() > 0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_of_several_responses_too(kind: str) -> None:
    clean, perturbed = (
        plant_tasks(mode="IV", permute=False, noise=noise, perturbation=kind, condition=2.0, seed=3).run.circuits()
        for noise in (0.0, 0.1)
    )
    parts = {
        name: np.abs(getattr(perturbed, name) - getattr(clean, name)).max() > 1e-4
        for name in ("KQ_11", "KQ_21", "OV_21", "mu")
    }
    touched, KQ_21, OV_21 = TOUCHED[kind]
    of_mu = kind in ("random", "scale")
    assert parts == {"KQ_11": touched.any() or kind == "scale", "KQ_21": KQ_21, "OV_21": OV_21, "mu": of_mu}


def test_what_there_is_none_of_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"perturbation must be one of 'random', .*got 'sideways'"):
        plant(roles=("positive",), perturbation="sideways")
    with pytest.raises(ConfigError, match="perturbation must be one of"):
        plant_tasks(perturbation="sideways")
    with pytest.raises(ConfigError, match="'antisymmetric' takes two covariates"):
        plant(LinearRegression(1, 10), omega=[0.1], mu=[1.0], perturbation="antisymmetric")
    with pytest.raises(ConfigError, match="noise must be a finite number ≥ 0"):
        plant_tasks(MultiTaskRegression(2, [(0,), (1,)], 20), "III", noise=-0.1)
