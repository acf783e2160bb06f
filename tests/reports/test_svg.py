"""Heat maps without a script: every number is there, as a colour that can be read off, and nothing else."""

import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.probing import Heatmap
from icl_interp_reports.svg import MOST_CELLS, NEGATIVE, POSITIVE, curve_svg, heatmap_svg

HOSTILE = "<script>alert(1)</script> \"' & \x00\x1b\udcff\u202e ]]>" + "x" * 10_000
cells = st.floats(-1e3, 1e3) | st.just(float("nan"))


def drawn(block):
    """The panels, as XML; the legend is the last."""
    svgs = ElementTree.fromstring(heatmap_svg(block)).findall("svg")
    assert len(svgs) == len(block.panels) + 1
    return svgs[:-1], svgs[-1]


def numbers_of(panel, scale):
    """What a reader reads off: each cell's (row, column), with its sign and how much of full colour it has."""
    found = {}
    for group in panel.iter("g"):
        sign = {POSITIVE: 1, NEGATIVE: -1}.get(group.get("fill"))
        for path in group.findall("path") if sign else ():
            for column, row in re.findall(r"M(\d+) (\d+)h1v1h-1z", path.get("d")):
                assert (row, column) not in found
                found[row, column] = sign * float(path.get("fill-opacity", 1)) * scale
    return {(int(row), int(column)): value for (row, column), value in found.items()}


def hatched(panel):
    paths = [p.get("d") for p in panel.iter("path") if "l1-1" in p.get("d")]
    return {(int(row) - 1, int(column)) for path in paths for column, row in re.findall(r"M(\d+) (\d+)l1-1", path)}


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.data())
def test_every_number_can_be_read_off(panels, rows, columns, data):
    values = data.draw(st.lists(cells, min_size=panels * rows * columns, max_size=panels * rows * columns))
    matrices = np.array(values).reshape(panels, rows, columns)
    scale = np.nan_to_num(np.abs(matrices)).max()
    pictures, _ = drawn(Heatmap(matrices, tuple("abc"[:panels]), "some"))
    for matrix, picture in zip(matrices, pictures, strict=True):
        read = numbers_of(picture, scale)
        for at in np.ndindex(rows, columns):
            if np.isnan(matrix[at]):
                assert at in hatched(picture)
                assert at not in read
            else:
                assert at not in hatched(picture)
                assert read.get(at, 0.0) == pytest.approx(matrix[at], abs=0.0051 * scale + 1e-300)


def test_panels_share_a_scale_and_the_legend_says_it():
    block = Heatmap(np.array([[[1.0]], [[-4.0]]]), ("small", "large"), "two")
    (small, large), legend = drawn(block)
    assert numbers_of(small, 4.0) == {(0, 0): 1.0}
    assert numbers_of(large, 4.0) == {(0, 0): -4.0}
    assert [text.text for text in legend.iter("text")] == ["−4", "0", "+4"]


@pytest.mark.parametrize(
    "matrices",
    [
        np.full((1, 2, 2), np.nan),
        np.zeros((1, 2, 2)),
        np.full((2, 1, 1), np.inf),
        np.array([[[1e308, -1e308, 5e-324, -np.inf]]]),
        np.ones((1, 1, 1), dtype=int),
        np.ones((1, 1, 1), dtype=bool),
    ],
)
def test_odd_numbers_make_a_picture(matrices):
    block = Heatmap(matrices, tuple("ab"[: len(matrices)]), "odd")
    svg = heatmap_svg(block)
    drawn(block)
    assert not re.search(r'="[^"]*(nan|inf)', re.sub(r'aria-label="[^"]*"', "", svg))


@pytest.mark.parametrize("shape", [(0, 2, 2), (1, 0, 2), (1, 2, 0)])
def test_no_cells_no_picture(shape):
    assert heatmap_svg(Heatmap(np.zeros(shape), ("a",) * shape[0], "none")) == ""


def test_many_cells_are_for_others_to_draw():
    side = int(MOST_CELLS**0.5)
    assert heatmap_svg(Heatmap(np.ones((1, side, side)), ("a",), "just"))
    assert heatmap_svg(Heatmap(np.ones((1, side, side + 1)), ("a",), "too many")) == ""


def test_a_cell_is_cheap():
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(4, 20, 20))
    empty = len(heatmap_svg(Heatmap(np.zeros((4, 20, 20)), tuple("abcd"), "few")))
    assert len(heatmap_svg(Heatmap(matrices, tuple("abcd"), "many"))) - empty < 22 * matrices.size


def test_labels_are_drawn_and_thinned_where_they_are_many():
    labels = tuple(f"x{i}" for i in range(6))
    ((few,), _) = drawn(Heatmap(np.ones((1, 6, 6)), ("head 0",), "few", "KQ", labels, labels))
    shown = Counter(text.text for text in few.iter("text"))
    assert shown == Counter({"head 0": 1} | dict.fromkeys(labels, 2))
    assert few.get("aria-label") == "KQ head 0, 1 to 1"
    labels = tuple(f"x{i}" for i in range(38))
    ((many,), _) = drawn(Heatmap(np.ones((1, 38, 38)), ("head 0",), "many", "KQ", labels, labels))
    assert 4 < len(list(many.iter("text"))) < 40


@pytest.mark.parametrize("count", [1, 2, 3, 10, 41, 100])
def test_the_last_of_many_labels_is_drawn_too(count):
    names = (*map(str, range(count - 1)), "q")
    svg = heatmap_svg(Heatmap(np.ones((1, 2, count)), ("p",), "A.", column_labels=names))
    drawn = re.findall(r'<text x="([0-9.]+)" y="26">([^<]*)</text>', svg)
    assert drawn[-1][1] == "q"
    assert drawn[0][1] == names[0]
    assert (np.diff([float(x) for x, _ in drawn]) > 15).all()  # two characters and a gap, or a cell


def test_nothing_hostile_gets_through():
    block = Heatmap(np.ones((1, 1, 2)), (HOSTILE,), HOSTILE, HOSTILE, (HOSTILE,), (HOSTILE,) * 2)
    pictures, _ = drawn(block)
    svg = heatmap_svg(block)
    assert {element.tag for element in ElementTree.fromstring(svg).iter()} == {"div", "svg", "g", "path", "text"}
    assert svg.isprintable()
    assert len(svg) < 10_000
    assert pictures[0].get("role") == "img"


def test_the_same_block_makes_the_same_text():
    block = Heatmap(np.random.default_rng(0).normal(size=(2, 3, 3)), ("a", "b"), "twice")
    assert heatmap_svg(block) == heatmap_svg(block)


def test_a_curve_goes_from_end_to_end_large_at_the_top():
    picture = ElementTree.fromstring(curve_svg(np.array([3.0, 1.0, 2.0]), "loss"))
    points = [tuple(map(float, point.split(","))) for point in picture.find("polyline").get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert y0 < y2 < y1
    assert curve_svg(np.array([1.0, 1.0]), "flat")
