"""Claims are decided by their numbers, and what was found survives being written down."""

import json
import math

import numpy as np
import pytest

from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.probing import (
    Bars,
    Block,
    Equation,
    Estimate,
    Frames,
    Heatmap,
    Lines,
    Scatter,
    Surface,
    Table,
    Text,
    Threshold,
    exact,
)
from icl_interp.reproduce import Claim, Reproduction, compare, within, worst
from icl_interp.serialization import dumps

UP_TO_ONE = Threshold("a reason", high=1.0)
NEAR_ONE = Threshold("a reason", 0.9, 1.1)


def of(value, low, high):
    return Estimate(value, low, high)


@pytest.mark.parametrize(
    ("ours", "threshold", "status"),
    [
        (of(0.5, 0.4, 0.6), UP_TO_ONE, "reproduced"),
        (of(1.5, 1.4, 1.6), UP_TO_ONE, "differs"),
        (of(0.9, 0.7, 1.1), UP_TO_ONE, "undecided"),  # on which side of a bound is not known
        (of(0.5, -math.inf, math.inf), UP_TO_ONE, "undecided"),
        (of(1.0, 0.95, 1.05), NEAR_ONE, "reproduced"),
        (of(1.05, 1.0, 1.15), NEAR_ONE, "reproduced"),  # agrees with a printed number, as well as can be told
        (of(1.12, 1.05, 1.19), NEAR_ONE, "undecided"),
        (of(1.0, 0.5, 1.5), NEAR_ONE, "undecided"),  # agrees with everything
        (of(1.5, 1.4, 1.6), NEAR_ONE, "differs"),
        (exact(math.nan), NEAR_ONE, "undecided"),
        (exact(math.inf), UP_TO_ONE, "differs"),
    ],
)
def test_the_number_decides(ours, threshold, status):
    claim = compare("it is one", ours, threshold, "It is.", paper="1")
    assert claim == Claim("it is one", status, "It is.", "1", ours, threshold)


def test_what_a_claim_may_become_instead():
    outside = of(2.0, 1.9, 2.1)
    assert compare("c", outside, NEAR_ONE, "s", otherwise="does_not_hold").status == "does_not_hold"
    assert compare("c", outside, NEAR_ONE, "s", reached=False).status == "not_reached"
    assert compare("c", of(1.0, 0.0, 2.0), NEAR_ONE, "s", reached=False).status == "not_reached"
    assert compare("c", of(1.0, 0.99, 1.01), NEAR_ONE, "s", reached=False).status == "reproduced"  # already


@pytest.mark.parametrize("printed", [0.1267, -3.5])
def test_within_a_part_of_a_printed_number(printed):
    threshold = within(0.05, "one run each", printed)
    assert (threshold.low, threshold.high) == pytest.approx(sorted((0.95 * printed, 1.05 * printed)), rel=1e-3)
    assert "one run each" in threshold.reason
    assert "5%" in threshold.reason


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"status": "holds"}, "status must be one of 'reproduced', 'differs'"),
        ({"claim": " "}, "a claim needs a claim"),
        ({"sentence": ""}, "a claim needs a sentence"),
    ],
)
def test_a_claim_that_says_nothing(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Claim(**{"claim": "c", "status": "shown", "sentence": "s", **wrong})


def test_the_worst_comes_first():
    def claims(*statuses):
        return [Claim("c", status, "s") for status in statuses]

    assert worst(claims("shown", "reproduced", "differs")) == "differs"
    assert worst(claims("reproduced", "undecided")) == "undecided"
    assert worst(claims("shown")) == "shown"
    assert worst([]) is None


# --- Written down -----------------------------------------------------------------------------------------------------

X, MATRICES = np.arange(1.0, 4), np.arange(16.0).reshape(2, 2, 2, 2)
BLOCKS = (
    Text("words"),
    Equation("x^2", "a square"),
    Table(
        ("a", "b", "c"),
        ((1, 0.5, "text"), (None, True, Estimate(1.0, 0.0, math.inf, "prompts")), (math.nan, -math.inf, "")),
        "a table",
        "title",
        True,
    ),
    Heatmap(np.where(MATRICES[0] == 1, np.nan, MATRICES[0]), ("p", "q"), "maps", row_labels=("r", "s")),
    Frames(MATRICES, np.array([0, 10]), ("p", "q"), "frames", name="seed"),
    Lines(X, np.stack([X, -X]), ("up", "down"), "lines", log_x=True, low=np.zeros((2, 3))),
    Scatter(X, X, "points"),
    Bars(("a", "b"), X[:2], "bars", low=X[:2], high=X[:2]),
    Surface(X, X[:2], np.ones((2, 3)), "a surface"),
)
MADE = Reproduction(
    name="figure-4",
    title="Risk",
    source="Figure 4",
    claims=(
        Claim("c", "differs", "s", "1", Estimate(2.0, 1.5, math.inf, "prompts"), UP_TO_ONE),
        Claim("d", "shown", "s"),
    ),
    blocks=BLOCKS,
    runs={"h2": "two heads"},
    schedule="quick",
    command="icl-interp reproduce figure-4",
    seconds=1.5,
    failure="",
    details="",
)


def test_a_reproduction_survives_json():
    text = dumps(MADE.to_data())
    again = Reproduction.from_data(json.loads(text))
    assert again.claims == MADE.claims
    assert (again.name, again.runs, again.seconds) == (MADE.name, MADE.runs, MADE.seconds)
    assert [type(block) for block in again.blocks] == [type(block) for block in BLOCKS]
    assert dumps(again.to_data()) == text
    np.testing.assert_array_equal(again.blocks[3].matrices, BLOCKS[3].matrices)
    assert again.blocks[2].rows[1] == BLOCKS[2].rows[1]
    assert math.isnan(again.blocks[2].rows[2][0])
    assert again.blocks[2].rows[2][1] == -math.inf


def test_every_kind_of_block_is_tried():
    assert {type(block) for block in BLOCKS} == set(Block.__args__)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: [],
        lambda data: {**data, "more": 1},
        lambda data: {k: v for k, v in data.items() if k != "runs"},
        lambda data: {**data, "name": 3},
        lambda data: {**data, "seconds": "1"},
        lambda data: {**data, "runs": {"h2": 1}},
        lambda data: {**data, "claims": [{"claim": "c"}]},
        lambda data: {**data, "claims": [{**data["claims"][0], "status": "holds"}]},
        lambda data: {**data, "blocks": "Text"},
        lambda data: {**data, "blocks": [{"text": "words"}]},
        lambda data: {**data, "blocks": [{"kind": "Reproduction"}]},
        lambda data: {**data, "blocks": [{"kind": "Table", "columns": ["a"], "rows": 3, "alt": "a"}]},
        lambda data: {**data, "blocks": [{"kind": "Table", "columns": ["a"], "rows": [[["x"]]], "alt": "a"}]},
        lambda data: {**data, "blocks": [{"kind": "Lines", "x": [1.0], "y": [[1.0]], "names": [], "alt": "a"}]},
    ],
)
def test_what_is_no_reproduction_is_refused(spoil):
    with pytest.raises((CheckpointError, ConfigError)):
        Reproduction.from_data(spoil(MADE.to_data()))


# --- Shown ------------------------------------------------------------------------------------------------------------


def test_in_a_line_in_a_terminal_and_in_a_notebook():
    assert repr(MADE) == "<Reproduction of Figure 4: 1 differs, 1 shown; print() it for all of them>"
    assert str(MADE) == "Figure 4: Risk\n  differs: c (paper 1; ours 2 [1.5, inf]): s\n  shown: d"
    page = MADE._repr_html_()
    for words in ("Figure 4: Risk", "differs", "words", "<svg", "bars"):
        assert words in page
