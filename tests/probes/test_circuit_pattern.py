from __future__ import annotations

import numpy as np
import pytest

import icl_interp as icl
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import plant
from icl_interp_probes.circuit_pattern import CircuitPattern


def statuses(run: Run) -> dict[str, str]:
    verdicts = icl.analyze(run, budget=1000, probes=["circuit_pattern"]).verdicts
    return dict(zip(verdicts.claim, verdicts.status, strict=True))


def measured(run: Run) -> CircuitPattern:
    return icl.analyze(run, budget=1000, probes=["circuit_pattern"]).get(CircuitPattern)


def with_weights(run: Run, KQ: np.ndarray | None = None, OV: np.ndarray | None = None) -> Run:
    """The planted run with something added to the circuits of its first head."""
    import torch

    weights = {name: tensor.double().clone() for name, tensor in run.weights.items()}
    if KQ is not None:
        W_Q = weights["W_Q"][0, 0]
        weights["W_K"][0, 0] += run.model_config.score_scale * torch.from_numpy(KQ) @ W_Q.inverse().T
    if OV is not None:
        weights["W_O"][0, 0] += weights["W_V"][0, 0].inverse() @ torch.from_numpy(OV).T
    return Run(run.model_config, {k: v.float() for k, v in weights.items()}, task=run.task)


PLANTED = plant(omega=[0.2, -0.2], mu=[2.0, -2.0], permute=False).run


def test_the_pattern_holds_where_it_is_planted() -> None:
    assert statuses(PLANTED) == dict.fromkeys(("kq_diagonal", "kq_identity", "kq_21_zero", "ov_21_zero"), "holds")
    result = measured(PLANTED)
    for ratio in (result.diagonal_ratio, result.ov_ratio):
        np.testing.assert_allclose(ratio, 1, atol=1e-6)
    np.testing.assert_allclose(result.relative_variance, 0, atol=1e-6)
    assert result.roles == ("positive", "negative")


@pytest.mark.parametrize(
    ("claim", "KQ", "OV"),
    [
        ("kq_diagonal", np.pad(0.15 * (np.ones((5, 5)) - np.eye(5)), (0, 1)), None),
        ("kq_identity", np.pad(np.diag([0.3, -0.3, 0.3, -0.3, 0.0]), (0, 1)), None),
        ("kq_21_zero", np.pad(np.full((1, 5), 0.3), ((5, 0), (0, 1))), None),
        ("ov_21_zero", None, np.pad(np.full((1, 5), 0.5), ((5, 0), (0, 1)))),
    ],
)
def test_each_claim_fails_where_it_is_violated(claim: str, KQ: np.ndarray | None, OV: np.ndarray | None) -> None:
    found = statuses(with_weights(PLANTED, KQ, OV))
    assert found[claim] == "fails"
    untouched = {"kq_21_zero", "ov_21_zero"} - {claim}
    assert all(found[other] == "holds" for other in untouched)


def test_ratios_by_hand() -> None:
    """KQ_11 = diag(.2 + δ), one off-diagonal entry: the authors' ratios can be worked out."""
    KQ = np.zeros((6, 6))
    KQ[0, 0], KQ[0, 1] = 0.1, 0.3
    OV = np.zeros((6, 6))
    OV[5, 2] = 1.5
    result = measured(with_weights(PLANTED, KQ, OV))
    diagonal = np.array([0.3, 0.2, 0.2, 0.2, 0.2])
    size = np.abs(diagonal.mean()) * np.sqrt(5)
    assert result.off_diagonal[0] == pytest.approx(0.3 / size, rel=1e-4)
    assert result.from_shape[0] == pytest.approx(np.hypot(0.3, diagonal.std() * np.sqrt(5)) / size, rel=1e-4)
    assert result.diagonal_ratio[0] == pytest.approx(
        np.linalg.norm(diagonal) / np.hypot(np.linalg.norm(diagonal), 0.3), rel=1e-4
    )
    assert result.relative_variance[0] == pytest.approx(diagonal.var() / diagonal.mean() ** 2, rel=1e-4)
    assert result.ov_ratio[0] == pytest.approx(2 / 2.5, rel=1e-4)
    assert result.ov_21[0] == pytest.approx(0.75, rel=1e-4)


def test_inert_parts_are_hidden() -> None:
    result = measured(PLANTED)
    assert np.isnan(result.KQ[:, :, 5]).all()
    assert np.isnan(result.OV[:, :5]).all()


def test_a_dummy_with_wild_circuits_does_not_count() -> None:
    planted = plant(omega=[3.0, 0.2, -0.2], mu=[0.0, 2.0, -2.0], permute=False)
    wild = with_weights(planted.run, np.pad(np.ones((5, 5)), (0, 1)))
    assert set(statuses(wild).values()) == {"holds"}
    assert measured(wild).off_diagonal[0] > 0.2


def test_under_another_covariance_the_preconditioner_is_expected() -> None:
    task = LinearRegression(5, 40, 0.1, covariance=kms(0.7))
    preconditioned = plant(task, omega=[0.2, -0.2], mu=[2.0, -2.0])
    found = statuses(preconditioned.run)
    assert found["kq_diagonal"] == "not_applicable"
    assert found["kq_identity"] == "holds"
    identity = Run(PLANTED.model_config, PLANTED.weights, task=task)
    assert statuses(identity)["kq_identity"] == "fails"


def test_without_a_task_the_weights_are_still_read() -> None:
    bare = Run(PLANTED.model_config, PLANTED.weights)
    assert set(statuses(bare).values()) == {"holds"}
    assert measured(bare).roles == ("?", "?")


def test_deeper_models_are_not_judged() -> None:
    deep = icl.train(LinearRegression(3, 8), n_layers=2, steps=2)
    assert icl.analyze(deep, probes=["circuit_pattern"])["circuit_pattern"].status == "not_applicable"
