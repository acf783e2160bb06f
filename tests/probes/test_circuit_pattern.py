from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.probing import Context, Heatmap, Table, Text
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, MultiTaskRegression, kms
from icl_interp.testing import check_probe, plant, plant_tasks
from icl_interp.weights import initial_weights, weight_shapes
from icl_interp_probes.circuit_pattern import CircuitPattern, CircuitPatternProbe


def statuses(run: Run) -> dict[str, str]:
    verdicts = icl.analyze(run, budget=1000, probes=["circuit_pattern"]).verdicts
    return dict(zip(verdicts.claim, verdicts.status, strict=True))


def measured(run: Run) -> CircuitPattern:
    return icl.analyze(run, budget=1000, probes=["circuit_pattern"]).get(CircuitPattern)


def with_weights(run: Run, KQ: np.ndarray | None = None, OV: np.ndarray | None = None) -> Run:
    """The planted run with something added to the circuits of its first head."""
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
    assert icl.analyze(deep, probes=["circuit_pattern"])["circuit_pattern"].status == "skipped"


# --- Several responses -----------------------------------------------------------------------------------------------

PAIR = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)
FOUR = MultiTaskRegression(8, [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7), (6, 7, 0, 1)], length=48, noise_var=0.1)
MODES = {"I": 1, "II": 2, "III": 4, "IV": 3}
SUPERPOSED = plant_tasks(PAIR, "IV", permute=False).run
JUDGED = ("kq_diagonal", "kq_21_zero", "ov_21_zero", "ov_22_diagonal")
PATTERN = dict.fromkeys(JUDGED, "holds") | {"kq_identity": "not_applicable"}


def entries(*shape: int, **values: Any) -> np.ndarray:
    """Zeros but for a block: `rows`, `columns` and their `value`."""
    matrix = np.zeros(shape)
    matrix[np.ix_(values["rows"], values["columns"])] = values["value"]
    return matrix


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", [PAIR, FOUR], ids=["two", "four"])
def test_the_pattern_of_several_responses_holds_in_every_mode(mode: Any, task: MultiTaskRegression) -> None:
    assert statuses(plant_tasks(task, mode, seed=3).run) == PATTERN


def test_the_pattern_of_several_responses_holds_where_it_was_learned() -> None:
    run = icl.train(PAIR, n_heads=3, steps=4000, seed=0, progress=False)
    assert statuses(run) == PATTERN
    assert statuses(Run(run.model_config, run.weights)) == PATTERN  # without a task as well


OFF = 0.3 * (np.ones((6, 6)) - np.eye(6))


@pytest.mark.parametrize(
    ("claim", "KQ", "OV"),
    [
        ("kq_diagonal", np.pad(OFF, (0, 2)), None),
        ("kq_21_zero", entries(8, 8, rows=[6, 7], columns=range(6), value=0.2), None),
        ("ov_21_zero", None, entries(8, 8, rows=[6, 7], columns=range(6), value=2.0)),
        ("ov_22_diagonal", None, np.pad(5 * (np.ones((2, 2)) - np.eye(2)), (6, 0))),
    ],
)
def test_of_several_responses_each_claim_fails_alone(claim: str, KQ: np.ndarray | None, OV: np.ndarray | None) -> None:
    assert statuses(with_weights(SUPERPOSED, KQ, OV)) == PATTERN | {claim: "fails"}


def test_ratios_of_several_responses_by_hand() -> None:
    """ω of both signs, whose mean is nothing: sizes are norms of the diagonals."""
    omega, mu = np.array([0.1, -0.1, 0.2, -0.2, 0.1, -0.1]), np.array([3.0, -4.0])
    KQ, OV = np.zeros((8, 8)), np.zeros((8, 8))
    KQ[range(6), range(6)] = omega
    KQ[0, 1], KQ[7, 3] = 0.2, 0.4
    OV[6:, 6:] = [[3, 2], [1, -4]]
    OV[6, 2] = 1.0
    first = SUPERPOSED.circuits()
    result = measured(with_weights(SUPERPOSED, KQ - first.KQ[0, 0], OV - first.OV[0, 0]))
    size = np.linalg.norm(omega)
    assert result.weight[0] == pytest.approx(size * 5, rel=1e-4)
    assert result.off_diagonal[0] == pytest.approx(0.2 / size, rel=1e-4)
    assert result.kq_21[0] == pytest.approx(0.4 / size, rel=1e-4)
    assert result.ov_21[0] == pytest.approx(1 / 5, rel=1e-4)
    assert result.mixing[0] == pytest.approx(np.sqrt(5) / 5, rel=1e-4)
    assert result.ov_ratio[0] == pytest.approx(5 / np.hypot(1, np.sqrt(25 + 5)), rel=1e-4)
    np.testing.assert_allclose(result.diagonal[0], omega, atol=1e-5)
    np.testing.assert_allclose(result.mu[0], mu, atol=1e-4)


def untrained(seed: int, task: MultiTaskRegression = PAIR) -> Run:
    config = ModelConfig(task.dim, task.n_outputs, n_heads=1 + seed % 4)
    generator = torch.Generator().manual_seed(seed)
    if seed % 2:
        return Run(config, initial_weights(config, generator))
    return Run(config, {k: torch.randn(shape, generator=generator) for k, shape in weight_shapes(config).items()})


def judged(run: Run) -> set[str]:
    """As `statuses`, straight from the probe: a report takes longer than the rest."""
    probe = CircuitPatternProbe()
    return {verdict.status for verdict in probe.judge(probe.run(Context(run)))}


def test_nothing_holds_of_several_responses_that_were_not_learned() -> None:
    for seed in range(200):
        assert "holds" not in judged(untrained(seed)), seed


def test_a_diagonal_ov_22_alone_is_no_pattern() -> None:
    """As one untrained head in a hundred has it: two entries beside the diagonal are soon small."""
    run = untrained(0)
    OV = run.circuits().OV[0, 0]
    off = np.pad(OV[6:, 6:] * (1 - np.eye(2)), (6, 0))
    lucky = with_weights(run, OV=-off)
    assert measured(lucky).mixing[0] < 1e-4
    assert statuses(lucky) == dict.fromkeys(PATTERN, "fails") | {
        "ov_22_diagonal": "not_applicable",
        "kq_identity": "not_applicable",
    }


def test_several_responses_are_shown_feature_by_feature() -> None:
    run = plant_tasks(FOUR, "IV", permute=False).run
    outcome, circuits = icl.analyze(run, budget=200, probes=["circuit_pattern"])["circuit_pattern"], run.circuits()
    maps = {block.title: block for block in outcome.blocks if isinstance(block, Heatmap)}
    omega, mu = maps["Diagonal of KQ_11"], maps["Diagonal of OV_22"]
    np.testing.assert_allclose(omega.matrices[0], circuits.diagonal[0], rtol=1e-3)
    np.testing.assert_allclose(mu.matrices[0], circuits.mu[0].T, rtol=1e-3)
    assert omega.column_labels == tuple(f"x{i}" for i in range(8))
    assert mu.row_labels == ("y0", "y1", "y2", "y3")
    assert omega.row_labels == mu.column_labels == tuple(f"head {h}" for h in range(5))
    (table,) = (block for block in outcome.blocks if isinstance(block, Table))
    assert "‖OV_22 − diag‖" in table.columns
    assert not {"‖KQ_11 − ωG‖", "relative variance"} & set(table.columns)
    (told,) = (block for block in outcome.blocks if isinstance(block, Text))
    assert "an ω for each feature" in told.text


def test_one_response_is_shown_as_ever() -> None:
    outcome = icl.analyze(PLANTED, budget=200, probes=["circuit_pattern"])["circuit_pattern"]
    assert [getattr(block, "title", "") for block in outcome.blocks] == ["KQ", "OV", "Departure from the pattern", ""]
    (table,) = (block for block in outcome.blocks if isinstance(block, Table))
    assert "‖OV_22 − diag‖" not in table.columns
    assert "ov_22_diagonal" not in {verdict.claim for verdict in outcome.verdicts}


def test_the_probe_keeps_its_contract_with_several_responses() -> None:
    check_probe(CircuitPatternProbe, SUPERPOSED, untrained(0), budget=100)
