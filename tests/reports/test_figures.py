"""Figures: what plotly accepts, with the block's numbers, and names that are shown as they are."""

import base64
import html
import json
from typing import get_args

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from icl_interp.probing import Bars, Block, Equation, Frames, Heatmap, Lines, Scatter, Surface, Table, Text
from icl_interp_reports.figures import CURVE_POINTS, LABELS, NAMED_POINTS, figure, numbers, plain, thinned
from icl_interp_reports.words import label

NAN, INF = np.nan, np.inf
RNG = np.random.default_rng(0)
X = np.arange(1.0, 6)
MATRICES = RNG.normal(size=(3, 2, 3, 4))


def pictures(text="a name"):
    """One of every kind that is drawn, `text` wherever there is text."""
    two, three, four, five = ((text,) * n for n in (2, 3, 4, 5))
    y, band = np.stack([X, -X]), np.ones((2, 5))
    return {
        Heatmap: Heatmap(MATRICES[0], two, text, text, three, four),
        Frames: Frames(MATRICES, np.array([0, 1, 9]), two, text, text, text, three, four),
        Lines: Lines(X, y, two, text, text, text, text, True, y - band, y + band),
        Scatter: Scatter(X, -X, text, five, text, text, text),
        Bars: Bars(two, np.array([1.0, -1]), text, text, text, np.array([0.5, -2]), np.array([1.75, 0])),
        Surface: Surface(X, X[:2], y, text, text, text, text),
    }


def accepted(drawn):
    """The figure, once JSON and plotly have accepted it."""
    json.dumps(drawn, allow_nan=False)
    go.Figure(data=drawn["data"], layout=drawn["layout"])
    assert set(drawn) <= {"data", "layout", "panels", "frames"}
    return drawn


def decoded(packed):
    values = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
    return values.reshape([int(n) for n in packed["shape"].split(", ")]) if "shape" in packed else values


def single(values):
    """To float32, without what is not finite."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, float).astype(np.float32)
    return np.where(np.isfinite(values), values, NAN)


# --- Every kind -------------------------------------------------------------------------------------------------------


def test_every_block_is_words_or_has_a_figure():
    assert set(get_args(Block)) == {Text, Equation, Table, *pictures()}
    assert all(figure(block) for block in pictures().values())
    assert figure(Text("x")) is figure(Equation("x", "x")) is figure(Table((), (), "x")) is None


@pytest.mark.parametrize("kind", pictures())
@pytest.mark.parametrize("text", ["a name", "<b>bold</b><a href='javascript:x'>&amp; %{y}", "\udcff\x1b[0m\u202e"])
def test_plotly_accepts_it_and_shows_names_as_they_are(kind, text):
    said = json.dumps(accepted(figure(pictures(text)[kind])), ensure_ascii=False)
    assert "<b" not in said
    assert "<a" not in said
    assert said.isprintable()
    assert plain(text, 60) in said or plain(text, 14) in said


@pytest.mark.parametrize(
    "block",
    [
        Heatmap(np.full((1, 2, 2), NAN), ("inert",), "nothing"),
        Heatmap(np.zeros((0, 3, 3)), (), "no panels"),
        Heatmap(np.zeros((1, 0, 3)), ("flat",), "no rows"),
        Frames(np.full((2, 1, 2, 2), INF), np.array([0, 1]), ("large",), "too large"),
        Lines(X, np.array([[NAN, INF, -INF, 1e300, -1e300]]), ("wild",), "not finite in float32"),
        Lines(X[:0], np.zeros((2, 0)), ("f", "g"), "no points"),
        Lines(X, np.zeros((0, 5)), (), "no curves"),
        Scatter(X[:0], X[:0], "no points"),
        Bars((), X[:0], "no bars"),
        Surface(X, X[:0], np.zeros((0, 5)), "no rows"),
    ],
    ids=lambda block: f"{type(block).__name__}, {block.alt}",
)
def test_what_cannot_be_drawn_is_none(block):
    assert figure(block) is None


@settings(max_examples=40)
@given(st.data())
def test_whatever_the_numbers_plotly_accepts_the_figure(data):
    def some(*shape):
        return data.draw(arrays(data.draw(st.sampled_from(["f8", "f4", "i8", "u1", "?"])), shape))

    names = data.draw(st.lists(st.text(st.characters()), min_size=3, max_size=3).map(tuple))
    for block in (
        Heatmap(some(3, 2, 2), names, "x"),
        Frames(some(2, 3, 2, 2), np.array([3, 7], "u1"), names, "x"),
        Lines(some(4), some(3, 4), names, "x", low=some(3, 4), high=some(3, 4), log_x=data.draw(st.booleans())),
        Scatter(some(3), some(3), "x", names),
        Bars(names, some(3), "x", low=some(3), high=some(3)),
        Surface(some(2), some(3), some(3, 2), "x"),
    ):
        if (drawn := figure(block)) is not None:
            accepted(drawn)


# --- Its parts --------------------------------------------------------------------------------------------------------


@given(arrays(st.sampled_from(["f8", "f4", "i8", "u1", "?"]), array_shapes(min_dims=1, max_dims=3, min_side=0)))
def test_numbers_travel_as_float32(values):
    packed = numbers(values)
    assert packed["dtype"] == "f4"
    np.testing.assert_array_equal(decoded(packed), single(values))


@given(st.integers(0, 5000), st.integers(2, 1500))
def test_thinning_keeps_both_ends_and_even_distances(count, most):
    at = thinned(count, most)
    assert len(at) == min(count, most)
    if count:
        assert (at[0], at[-1]) == (0, count - 1)
        steps = np.diff(at)
        assert steps.size == 0 or 1 <= steps.min() <= steps.max() <= steps.min() + 1


@given(st.text(st.characters()), st.integers(1, 60))
def test_plain_text_has_no_tags_and_reads_as_it_did(text, longest):
    assert not set(plain(text, longest)) & set("<>")
    assert html.unescape(plain(text, longest)) == label(text, longest)


def test_tags_and_entities_are_spelt_out():
    assert plain("<b>") == "&lt;b&gt;"
    assert plain("a &amp; b") == "a &amp;amp; b"


# --- Each kind --------------------------------------------------------------------------------------------------------


def test_matrices_share_one_colour_scale_about_zero():
    drawn = figure(Heatmap(np.array([[[1.0, NAN]], [[-3.0, INF]]]), ("small", "large"), "two"))
    assert drawn["panels"] == [2, 1, 2]
    assert drawn["layout"]["coloraxis"] == {"cmin": -3, "cmax": 3}
    assert [trace["coloraxis"] for trace in drawn["data"]] == ["coloraxis"] * 2
    assert [(trace["xaxis"], trace["yaxis"]) for trace in drawn["data"]] == [("x", "y"), ("x2", "y2")]
    assert {"xaxis", "yaxis", "xaxis2", "yaxis2"} <= set(drawn["layout"])
    assert [note["text"] for note in drawn["layout"]["annotations"]] == ["small", "large"]
    np.testing.assert_array_equal(decoded(drawn["data"][1]["z"]), [[-3, NAN]])


def test_zeros_have_a_colour_scale_too():
    assert figure(Heatmap(np.zeros((1, 2, 2)), ("p",), "zeros"))["layout"]["coloraxis"] == {"cmin": -1, "cmax": 1}


def test_frames_begin_with_the_last_on_the_scale_of_all():
    drawn = figure(pictures()[Frames])
    reach = single(np.abs(MATRICES).max())
    assert drawn["layout"]["coloraxis"] == {"cmin": -reach, "cmax": reach}
    assert drawn["panels"] == [2, 3, 4]
    assert drawn["frames"]["moments"] == [0, 1, 9]
    np.testing.assert_array_equal(np.stack([decoded(trace["z"]) for trace in drawn["data"]]), single(MATRICES[-1]))
    every = base64.b64decode(drawn["frames"]["z"]["bdata"])  # in the order in which the page counts them
    np.testing.assert_array_equal(np.frombuffer(every, "<f4").reshape(MATRICES.shape), single(MATRICES))


def test_row_and_column_names_stand_at_their_places():
    rows, columns = tuple(f"<r{i}>" for i in range(100)), ("same", "same")
    layout = figure(Heatmap(np.ones((1, 100, 2)), ("p",), "x", row_labels=rows, column_labels=columns))["layout"]
    assert (layout["xaxis"]["tickvals"], layout["xaxis"]["ticktext"]) == ([0, 1], ["same", "same"])
    at = layout["yaxis"]["tickvals"]
    assert (len(at), at[0], at[-1]) == (LABELS, 0, 99)
    assert layout["yaxis"]["ticktext"] == [f"&lt;r{i}&gt;" for i in at]
    assert layout["yaxis"]["autorange"] == "reversed"  # the first row at the top
    assert figure(Heatmap(np.ones((1, 1, 3)), ("p",), "x"))["layout"]["xaxis"]["ticktext"] == ["0", "1", "2"]


def test_curves_and_their_bands():
    block = pictures()[Lines]
    drawn = figure(block)
    assert len(drawn["data"]) == 6
    for i in range(2):
        low, high, curve = drawn["data"][3 * i : 3 * i + 3]
        for trace, values in ((low, block.low), (high, block.high), (curve, block.y)):
            np.testing.assert_array_equal(decoded(trace["x"]), single(X))
            np.testing.assert_array_equal(decoded(trace["y"]), single(values[i]))
        assert high["fill"] == "tonexty"
        assert high["fillcolor"].startswith(curve["line"]["color"])
        assert low["showlegend"] is high["showlegend"] is False
        assert low["legendgroup"] == high["legendgroup"] == curve["legendgroup"]
    first, second = (trace["line"] for trace in drawn["data"][2::3])
    assert first["color"] != second["color"]
    assert first["dash"] != second["dash"]
    assert drawn["layout"]["xaxis"]["type"] == "log"
    assert drawn["layout"]["showlegend"]


def test_one_curve_needs_no_legend_and_half_a_band_is_none():
    drawn = figure(Lines(X, X[None], ("f",), "one", low=X[None]))
    assert len(drawn["data"]) == 1
    assert not drawn["layout"]["showlegend"]
    assert "type" not in drawn["layout"]["xaxis"]


def test_long_curves_are_thinned_with_their_bands():
    x = np.arange(100_000.0)
    for trace in figure(Lines(x, -x[None], ("f",), "long", low=-x[None], high=-x[None]))["data"]:
        at = decoded(trace["x"])
        assert 100 < len(at) <= CURVE_POINTS
        assert (at[0], at[-1]) == (0, 99_999)
        np.testing.assert_array_equal(decoded(trace["y"]), -at)
    (trace,) = figure(Scatter(x, -x, "many", names=tuple(map(str, range(len(x))))))["data"]
    at = decoded(trace["x"])
    assert len(at) <= CURVE_POINTS
    np.testing.assert_array_equal(decoded(trace["y"]), -at)
    assert trace["text"] == [f"{i:.0f}" for i in at]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9_999), st.sampled_from([-1.0, 1.0])), max_size=3))
def test_a_long_curve_keeps_its_peaks(spikes):
    y = np.sin(np.arange(10_000) / 1e3) * np.ones((3, 1))
    y[:, ::7] = np.nan
    for curve, at, sign in spikes:
        y[curve, at] = 9 * sign
    drawn = figure(Lines(np.arange(10_000.0), y, tuple("fgh"), "spiky"))
    for curve, trace in zip(y, drawn["data"], strict=True):
        shown = decoded(trace["y"])
        np.testing.assert_allclose(
            (np.nanmin(shown), np.nanmax(shown)), (np.nanmin(curve), np.nanmax(curve)), rtol=1e-6
        )
        assert len(shown) <= 1.1 * CURVE_POINTS


def test_names_of_points_are_written_out_where_they_are_few():
    assert figure(Scatter(X, X, "few", ("p",) * 5))["data"][0]["mode"] == "markers+text"
    many = np.arange(NAMED_POINTS + 1.0)
    (named,) = figure(Scatter(many, many, "many", ("p",) * len(many)))["data"]
    assert (named["mode"], len(named["text"])) == ("markers", len(many))
    assert "%{text}" in named["hovertemplate"]
    assert "text" not in figure(Scatter(X, X, "nameless"))["data"][0]["hovertemplate"]


def test_bars_reach_from_low_to_high():
    low, values, high = np.array([[1, 0], [3, 1], [4, 1]], "u1")
    drawn = figure(Bars(("u", "u"), values, "two", low=low, high=high))
    (trace,) = drawn["data"]
    np.testing.assert_array_equal(decoded(trace["y"]), [3, 1])
    np.testing.assert_array_equal(decoded(trace["error_y"]["array"]), [1, 0])
    np.testing.assert_array_equal(decoded(trace["error_y"]["arrayminus"]), [2, 1])
    assert trace["error_y"]["symmetric"] is False
    assert trace["x"] == drawn["layout"]["xaxis"]["tickvals"] == [0, 1]  # two of one name stay two
    assert drawn["layout"]["xaxis"]["ticktext"] == ["u", "u"]
    assert "error_y" not in figure(Bars(("u",), np.ones(1), "one"))["data"][0]


def test_a_surface_is_a_map():
    block = pictures()[Surface]
    (trace,) = figure(block)["data"]
    for name in ("x", "y", "z"):
        np.testing.assert_array_equal(decoded(trace[name]), single(getattr(block, name)))


def test_axes_are_named():
    for kind in (Lines, Scatter, Surface):
        layout = figure(pictures("<ω>")[kind])["layout"]
        assert layout["xaxis"]["title"] == layout["yaxis"]["title"] == {"text": "&lt;ω&gt;"}
    assert figure(pictures("<ω>")[Bars])["layout"]["yaxis"]["title"] == {"text": "&lt;ω&gt;"}
