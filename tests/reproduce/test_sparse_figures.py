"""The figures on sparse regression: of trained models on a tiny schedule, and of constructions whose truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from icl_interp.probing import Heatmap, Lines, Table
from icl_interp.records import Run
from icl_interp.reproduce import Bench, Reproduction, Schedule, recipes, reproduce
from icl_interp.reproduce.deep_readings import PLAIN, PREPROCESSED, RIDGE, named
from icl_interp.reproduce.figures.sparse_heads import FULL, NOISES, NOTHING, PRUNED, Use
from icl_interp.reproduce.figures.sparse_risk import SETTINGS
from icl_interp.reproduce.trainings import SPARSE_STEPS
from icl_interp.tasks import SparseRegression
from icl_interp.testing import construct_descent

TASK = SparseRegression(dim=4, sparsity=2, length=40, noise_var=0.25)
TINY = Schedule("tiny", 60, 2, 3, 40, prompts=2_000, sparse=TASK, sparse_heads=(1, 2), sparse_seeds=2, sparse_steps=50)


class Planted(Bench):
    """A bench whose trained models are constructions."""

    planted: Sequence[Run] = ()

    def runs(self, name: str) -> Sequence[Run]:  # type: ignore[override]
        return self.planted

    def run(self, name: str) -> Run:
        return self.planted[0]


@pytest.fixture
def planted(tmp_path):
    """Two steps of preprocessed gradient descent with a head a coordinate, as the schedule's model with most heads."""
    schedule = dataclasses.replace(TINY, sparse_heads=(4,), sparse_steps=SPARSE_STEPS)
    bench = Planted(tmp_path, schedule)
    bench.planted = [construct_descent(TASK, steps=2, perturbation=0.001, seed=seed) for seed in (0, 1)]
    return bench


def made(name: str, bench: Bench) -> Reproduction:
    (found,) = reproduce([name], bench)
    assert not found.failure, found.details
    return found


def test_on_a_short_schedule_nothing_is_refuted(tmp_path):
    bench = Bench(tmp_path, TINY)
    for name in ("sparse-heads", "sparse-pruning", "sparse-probing"):
        found = made(name, bench)
        assert {claim.status for claim in found.claims} <= {"reproduced", "not_reached"}
        assert Reproduction.from_data(found.to_data()).to_data() == found.to_data()
        assert "2 populations, from one head in each of 3 layers" in found.runs["sparse-h*"]
        assert "2 of 4 coefficients" in found.runs["sparse-h*"]


def test_heads_of_the_construction(planted):
    found = made("sparse-heads", planted)
    status = {claim.claim: claim.status for claim in found.claims}
    assert status["The first layer uses all of its heads, evenly"] == "reproduced"
    assert status["Each later layer uses one"] == "reproduced"
    assert status["Trained with many heads a model does better than ridge"] == "differs"  # two short steps
    picture = next(block for block in found.blocks if isinstance(block, Heatmap))
    assert picture.matrices.shape == (1, 3, 4)
    assert (picture.matrices[0, 1:] > 0.5).sum(1).tolist() == [1, 1]
    use = Use.of(planted, planted.run("sparse-h4"))
    writes = planted.run("sparse-h4").weights["W_O"].flatten(2).norm(dim=2)
    assert list(use.dominant[1:]) == writes.argmax(1).tolist()[1:]


def test_the_construction_can_be_pruned(planted):
    found = made("sparse-pruning", planted)
    status = {claim.claim: claim.status for claim in found.claims}
    assert status["Pruned, the model is as good"] == "reproduced"
    (lines,) = (block for block in found.blocks if isinstance(block, Lines))
    full, pruned, _ = lines.y
    assert lines.names[:2] == (FULL, PRUNED)
    assert lines.x.tolist() == list(NOISES)
    assert pruned == pytest.approx(full, rel=0.02)
    assert NOTHING not in lines.names


def test_probes_of_the_construction(planted):
    """Its steps are shorter than the best, so that risks are not those of gradient descent at its best rate."""
    found = made("sparse-probing", planted)
    assert found.claims[0].status == "reproduced"
    (table,) = (block for block in found.blocks if isinstance(block, Table))
    before, after = table.rows[0], table.rows[1]
    assert before[2].value < 0.05 < 0.99 < after[2].value
    assert after[3].value < 0.2


@pytest.mark.slow
def test_where_preprocessing_pays_and_where_it_costs(tmp_path):
    bench = Bench(tmp_path, dataclasses.replace(TINY, prompts=8_000))
    found = made("sparse-risk", bench)
    status = [claim.status for claim in found.claims]
    assert status[:3] == ["reproduced", "reproduced", "does_not_hold"]
    assert "at L = 40, σ = 0.1 and at L = 40, σ = 0:" in found.claims[2].sentence
    (table,) = (block for block in found.blocks if isinstance(block, Table))
    assert [(row[0], row[1]) for row in table.rows] == [(length, f"{noise:g}") for length, noise in SETTINGS]
    at = dict(zip(table.columns, table.rows[2], strict=True))  # L = 20, σ = 0.5; benchmarks/results/sparse_risks.md
    for name, known in ((RIDGE, 0.3205), (named(PLAIN, 5), 0.3363), (named(PREPROCESSED, 5), 0.2338)):
        assert at[name].value == pytest.approx(known, abs=2 * at[name].half)


def test_all_of_it_is_on_both_schedules():
    assert {name for name in recipes() if name.startswith("sparse-")} == {
        f"sparse-{what}" for what in ("heads", "pruning", "probing", "risk")
    }
