"""Blocks: closed data, each with words for those who cannot see it, and parts that belong together."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.errors import ConfigError
from icl_interp.probing import (
    Bars,
    Block,
    Equation,
    Estimate,
    Frames,
    Heatmap,
    Lines,
    Outcome,
    Scatter,
    Surface,
    Table,
    Text,
    blocks,
)
from icl_interp.serialization import dumps, to_data

two, three = np.arange(2.0), np.arange(3.0)
GOOD = {
    Text: {"text": "words"},
    Equation: {"tex": "x^2", "alt": "x squared"},
    Table: {"columns": ("a", "b"), "rows": ((1, "x"), (None, True), (0.5, Estimate(1.0, 0.0, 2.0))), "alt": "a table"},
    Heatmap: {
        "matrices": np.zeros((2, 3, 4)),
        "panels": ("one", "two"),
        "alt": "zeros",
        "row_labels": ("r",) * 3,
        "column_labels": ("c",) * 4,
    },
    Frames: {
        "matrices": np.zeros((3, 2, 3, 4)),
        "moments": np.array([0, 10, 1000]),
        "panels": ("one", "two"),
        "alt": "zeros at three steps",
        "title": "KQ",
        "row_labels": ("r",) * 3,
        "column_labels": ("c",) * 4,
    },
    Lines: {
        "x": three,
        "y": np.zeros((2, 3)),
        "names": ("f", "g"),
        "alt": "two flat curves",
        "low": np.zeros((2, 3)),
        "high": np.ones((2, 3)),
    },
    Scatter: {"x": three, "y": three, "alt": "a diagonal", "names": ("p", "q", "r")},
    Bars: {"names": ("u", "v"), "values": two, "alt": "two bars", "low": two, "high": two},
    Surface: {"x": three, "y": two, "z": np.zeros((2, 3)), "alt": "a plain"},
}


def test_the_union_is_closed_and_complete():
    declared = {
        kind for kind in vars(blocks).values() if dataclasses.is_dataclass(kind) and kind.__module__ == blocks.__name__
    }
    assert set(get_args(Block)) == declared == set(GOOD)


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_block_is_frozen_has_words_and_goes_to_json(kind):
    block = kind(**GOOD[kind])
    assert isinstance(block, Block)
    assert block.alt
    assert dumps(to_data(block))
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.alt = "other"


@pytest.mark.parametrize("kind", [kind for kind in GOOD if kind is not Text])
@pytest.mark.parametrize("alt", ["", " \n\t", None, 3])
def test_every_kind_needs_an_alt_text(kind, alt):
    with pytest.raises(ConfigError, match=rf"a {kind.__name__} needs an alt text that says what it shows, got"):
        kind(**GOOD[kind] | {"alt": alt})
    with pytest.raises(TypeError, match="alt"):
        kind(**{name: value for name, value in GOOD[kind].items() if name != "alt"})


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_paragraph_is_its_own_alternative(text):
    assert Text("words").alt == "words"
    with pytest.raises(ConfigError, match="a Text needs an alt text"):
        Text(text)


MISFITS = [
    (Table, {"rows": ((1,),)}, r"a row of 1 cells under 2 columns: tuple '\(1,\)'"),
    (Table, {"rows": ((1, object),)}, "a cell must be text, a plain number, a bool, an Estimate or None, got type"),
    (
        Table,
        {"rows": ((1, np.zeros(2)),)},
        r"a cell must be text, a plain number, a bool, an Estimate or None, got ndarray '\[0. 0.\]'",
    ),
    (Heatmap, {"matrices": np.zeros((3, 4))}, r"Heatmap.matrices must have shape \(any, any, any\), got \(3, 4\)"),
    (Heatmap, {"panels": ("one",)}, "Heatmap.panels must have 2 entries, got 1"),
    (Heatmap, {"row_labels": ("r",)}, "Heatmap.row_labels must have 3 entries, got 1"),
    (Heatmap, {"column_labels": ("c",)}, "Heatmap.column_labels must have 4 entries, got 1"),
    (Heatmap, {"matrices": [[[0.0]]]}, "Heatmap.matrices must be a numpy array of numbers, got list"),
    (
        Frames,
        {"moments": np.array([0, 10])},
        r"Frames.matrices must have shape \(2, any, any, any\), got \(3, 2, 3, 4\)",
    ),
    (Frames, {"moments": np.zeros((3, 1), int)}, r"Frames.moments must have shape \(any\), got \(3, 1\)"),
    (Frames, {"moments": (0, 10, 1000)}, "Frames.moments must be a numpy array of numbers, got tuple"),
    (
        Frames,
        {"moments": np.array([0, 10, 10])},
        r"Frames.moments must be ascending whole numbers, one at least, got nd",
    ),
    (Frames, {"moments": np.array([0.0, 1.0, 2.0])}, "must be ascending whole numbers, one at least, got ndarray"),
    (
        Frames,
        {"matrices": np.zeros((0, 2, 3, 4)), "moments": np.zeros(0, int)},
        "ascending whole numbers, one at least",
    ),
    (Frames, {"matrices": np.zeros((3, 2, 3))}, r"Frames.matrices must have shape \(3, any, any, any\)"),
    (Frames, {"panels": ("one",)}, "Heatmap.panels must have 2 entries, got 1"),
    (Frames, {"row_labels": ("r",) * 4}, "Heatmap.row_labels must have 3 entries, got 4"),
    (Frames, {"column_labels": ("c",)}, "Heatmap.column_labels must have 4 entries, got 1"),
    (Lines, {"x": two}, r"Lines.y must have shape \(2, 2\), got \(2, 3\)"),
    (Lines, {"x": np.zeros((3, 1))}, r"Lines.x must have shape \(any\), got \(3, 1\)"),
    (Lines, {"names": ("f",)}, r"Lines.y must have shape \(1, 3\), got \(2, 3\)"),
    (Lines, {"low": three}, r"Lines.low must have shape \(2, 3\), got \(3,\)"),
    (Lines, {"high": np.zeros((3, 2))}, r"Lines.high must have shape \(2, 3\), got \(3, 2\)"),
    (Scatter, {"y": two}, r"Scatter.y must have shape \(3\), got \(2,\)"),
    (Scatter, {"x": np.zeros((3, 1)), "y": np.zeros((3, 1))}, r"Scatter.x must have shape \(any\)"),
    (Scatter, {"names": ("p",)}, "Scatter.names must have 3 entries, got 1"),
    (Bars, {"values": three}, r"Bars.values must have shape \(2\), got \(3,\)"),
    (Bars, {"low": three}, r"Bars.low must have shape \(2\), got \(3,\)"),
    (Bars, {"high": 1.0}, "Bars.high must be a numpy array of numbers, got float '1.0'"),
    (Surface, {"z": np.zeros((3, 2))}, r"Surface.z must have shape \(2, 3\), got \(3, 2\)"),
    (Surface, {"x": np.array(["a", "b", "c"])}, "Surface.x must be a numpy array of numbers, got ndarray"),
    (Surface, {"y": np.array([None, None])}, "Surface.y must be a numpy array of numbers, got ndarray"),
]


@pytest.mark.parametrize(("kind", "change", "message"), MISFITS)
def test_parts_that_do_not_belong_together_are_refused(kind, change, message):
    with pytest.raises(ConfigError, match=message):
        kind(**GOOD[kind] | change)


@pytest.mark.parametrize("kind", [kind for kind in GOOD if kind is not Text])
def test_words_are_text(kind):
    """A number for a name would only come to light in a report, and cost all of it."""
    good, wrong = GOOD[kind], []
    for field in dataclasses.fields(kind):
        value = good.get(field.name, field.default)
        if isinstance(value, str) and field.name != "alt":
            wrong += [{field.name: None}, {field.name: 3}]
        elif isinstance(value, tuple) and value and isinstance(value[0], str):
            wrong.append({field.name: (3, *value[1:])})
    assert wrong
    for change in wrong:
        with pytest.raises(ConfigError, match=rf"\w+\.{next(iter(change))} must (be|hold) text, got "):
            kind(**good | change)


def test_a_refusal_stays_short_however_long_the_data():
    with pytest.raises(ConfigError) as refused:
        Table(("a",), (("x",) * 10_000,), alt="too wide")
    assert len(str(refused.value)) < 300


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_lines_take_exactly_matching_shapes(names, points, other):
    x, y = np.zeros(points), np.zeros((names, other))
    if points == other:
        assert Lines(x, y, ("f",) * names, alt="curves").y is y
    else:
        with pytest.raises(ConfigError, match=r"Lines\.y must have shape"):
            Lines(x, y, ("f",) * names, alt="curves")


@given(st.lists(st.integers(0, 255), max_size=5), st.sampled_from(["int64", "uint8"]))
def test_moments_ascend_whatever_they_are_made_of(moments, dtype):
    """Differences of unsigned numbers are never negative."""
    parts = GOOD[Frames] | {"matrices": np.zeros((len(moments), 2, 3, 4)), "moments": np.array(moments, dtype)}
    if moments and moments == sorted(set(moments)):
        assert Frames(**parts).moments.tolist() == moments
    else:
        with pytest.raises(ConfigError, match=r"Frames\.moments must be ascending whole numbers"):
            Frames(**parts)


def test_a_frame_is_the_heat_map_of_its_moment():
    matrices = np.random.default_rng(0).standard_normal((3, 2, 3, 4))
    frames = Frames(**GOOD[Frames] | {"matrices": matrices})
    for index, title in enumerate(("KQ, step 0", "KQ, step 10", "KQ, step 1,000")):
        frame = frames.at(index)
        np.testing.assert_array_equal(frame.matrices, matrices[index])
        assert (frame.title, frame.panels, frame.alt) == (title, frames.panels, frames.alt)
        assert (frame.row_labels, frame.column_labels) == (frames.row_labels, frames.column_labels)
    untitled = Frames(np.zeros((1, 1, 2, 2)), np.array([7]), ("one",), alt="zeros", name="length")
    assert untitled.at(0).title == "length 7"
    assert untitled.at(0).row_labels == ()


@given(st.floats(allow_nan=True), st.floats(0))
def test_a_cell_with_an_interval_stays_what_it_is(value, half):
    estimate = Estimate(value, value - half, value + half, "prompts")
    table = Table(("a",), ((estimate,),), alt="one number", first_screen=True)
    assert table.rows[0][0] is estimate
    assert to_data(table)["rows"] == [[to_data(estimate)]]


def test_a_table_of_what_numpy_counts_is_told_to_use_plain_numbers():
    """np.float64 is a float; np.int64 is no int, and would be another thing after JSON."""
    assert Table(("a",), ((np.float64(0.5),),), alt="half").rows == ((0.5,),)
    with pytest.raises(ConfigError, match="got int64 '3'"):
        Table(("a",), ((np.int64(3),),), alt="three")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_cannot_be_written_is_refused(sign):
    Table(("n",), ((sign * 10**300,),), alt="large")
    for cell in (sign * 2**1023, sign * 10**5_000):
        with pytest.raises(ConfigError, match=r"below 1e308, got one of \d+ bits"):
            Table(("n",), ((cell,),), alt="too large")


def test_a_kind_of_ones_own_is_no_block():
    @dataclasses.dataclass(frozen=True)
    class Sound(Text):
        pass

    class Picture:
        alt = "a picture"

    assert isinstance(Sound("x"), Block)  # a refined Text still is one
    assert not isinstance(Picture(), Block)
    assert Outcome("p", "t", "done", blocks=(Text("x"),)).blocks
