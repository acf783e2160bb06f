"""The calibration study that is shipped is that of the probes as they are, and what it says of them is so.

A study takes hours, so what it found is committed; here some of it is found again.
"""

import json
from pathlib import Path

import pytest

from icl_interp.calibration import study
from icl_interp.serialization import from_data
from icl_interp.testing import known_families
from icl_interp.testing.counting import exceptions
from icl_interp.testing.drawing import Row, examine, thresholds
from icl_interp_reports import calibration_html, calibration_markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
AGAIN = "run `python benchmarks/calibration.py` again: what it found is not what the probes now say"
FRESH, MEMBERS = 2_000_000, 4  # seeds that no draw has

STUDY = study()
FAMILIES = {name: family for name, family in known_families().items() if not family.trained}
KEPT = {
    name: [from_data(Row, row) for row in rows]
    for name, rows in json.loads((RESULTS / "calibration-rows.json").read_text(encoding="utf-8")).items()
}
QUICK = ("wrong_scale", "untrained", "preconditioner_split", "planted_tasks_dedicated", "course_mu_falls")


def test_the_pages_are_those_of_the_study():
    assert STUDY is not None
    assert (ROOT / "CALIBRATION.md").read_text(encoding="utf-8") == calibration_markdown(STUDY)
    assert (RESULTS / "calibration.html").read_text(encoding="utf-8") == calibration_html(STUDY)


def test_every_family_was_drawn_and_says_what_it_said():
    assert STUDY is not None
    told = {family.name: (family.title, family.holds, family.violates) for family in STUDY.families}
    assert told == {name: (f.title, f.holds, f.violates) for name, f in known_families().items()}, AGAIN


def test_every_exception_has_a_cause():
    assert STUDY is not None
    causes = json.loads((RESULTS / "calibration-causes.json").read_text(encoding="utf-8"))
    keys = {key for key, _ in exceptions(STUDY)}
    assert keys == set(causes)
    assert all(len(cause) > 20 for cause in causes.values())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_members_are_judged_as_they_were(name):
    family = FAMILIES[name]
    for row, again in zip(KEPT[name], examine(family, [row.seed for row in KEPT[name]]), strict=True):
        assert set(row.claims) == set(again.claims), AGAIN
        for claim, was in row.claims.items():
            now = again.claims[claim]
            assert (now.status, now.prompts) == (was.status, was.prompts), f"{claim}: {AGAIN}"
            for end in ("value", "low", "high"):
                a, b = getattr(now, end), getattr(was, end)
                assert a == pytest.approx(b, rel=1e-3, abs=1e-6, nan_ok=True), f"{claim}: {AGAIN}"


@pytest.mark.parametrize("name", QUICK)
def test_thresholds_are_those_of_the_study(name):
    assert STUDY is not None
    of_study = {threshold.claim: threshold for threshold in STUDY.thresholds}
    for claim, threshold in thresholds(FAMILIES[name], KEPT[name][0].seed).items():
        told = of_study[claim]  # with several responses a claim has another reason, and the same bounds
        assert (threshold.low, threshold.high) == (told.low, told.high), AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_smaller_draw_agrees_with_the_study(name):
    """Members that no draw has: nothing passes that the study says never does, and truths are found."""
    assert STUDY is not None
    excepted = {key for key, _ in exceptions(STUDY)}
    family = FAMILIES[name]
    rows = list(examine(family, range(FRESH, FRESH + MEMBERS)))
    for claim in family.claims:
        holds = sum(row.claims[claim].status == "holds" for row in rows if claim in row.claims)
        if claim in family.violates and f"{claim} passes {name}" not in excepted:
            assert holds == 0, f"{claim} holds on {holds} of {MEMBERS} that violate it"
        if claim in family.holds and f"{claim} misses {name}" not in excepted:
            assert holds >= MEMBERS - 1, f"{claim} is found on {holds} of {MEMBERS} of which it is true"
