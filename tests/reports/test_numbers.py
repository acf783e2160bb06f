"""The tables beneath the pictures: the block's own numbers, and word of what was left out."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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
)
from icl_interp_reports.numbers import COLUMNS, ROWS, numbers

NAN = np.nan
TABLES = {
    Heatmap: (
        Heatmap(np.array([[[1, NAN], [-3, 4]], [[5, 6], [7, np.inf]]]), ("KQ", "OV"), "two", row_labels=("x", "y")),
        ("panel", "row", "0", "1"),
        (("KQ", "x", 1, None), ("KQ", "y", -3, 4), ("OV", "x", 5, 6), ("OV", "y", 7, np.inf)),
    ),
    Frames: (
        Frames(np.array([[[[1.0]]], [[[2.0]]]]), np.array([0, 2000]), ("KQ",), "a", column_labels=("x0",)),
        ("panel", "row", "x0"),
        (("KQ", "0", 2),),
    ),
    Lines: (
        Lines(np.array([0, 0.5]), np.array([[1, 2], [3, NAN]]), ("f", "g"), "two", x_label="step"),
        ("step", "f", "g"),
        ((0, 1, 3), (0.5, 2, None)),
    ),
    Scatter: (
        Scatter(np.array([1.0, NAN]), np.array([3, 4]), "two", ("p", "q"), y_label="ω"),
        ("point", "x", "ω"),
        (("p", 1, 3), ("q", None, 4)),
    ),
    Bars: (Bars(("u", "u"), np.array([1, -2]), "two"), ("name", "value"), (("u", 1), ("u", -2))),
    Surface: (
        Surface(np.array([0.0, 1 / 3]), np.array([10.0, 20]), np.array([[1.0, NAN], [3, 4]]), "a", x_label="a"),
        ("y ↓, a →", "0", "0.3333"),
        ((10, 1, None), (20, 3, 4)),
    ),
}


def test_every_block_is_words_or_has_its_numbers():
    assert set(get_args(Block)) == {Text, Equation, Table, *TABLES}
    assert numbers(Text("x")) is numbers(Equation("x", "x")) is numbers(Table((), (), "x")) is None


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_holds_the_blocks_numbers_and_nothing_where_there_is_none(kind):
    block, columns, rows = TABLES[kind]
    table = numbers(block)
    assert table.columns == columns
    assert table.rows == rows
    assert table.alt


def test_bands_become_intervals():
    y, low, high = np.array([[1.0, 2, 3]]), np.array([[0.0, NAN, 4]]), np.array([[2.0, 3, 3]])
    table = numbers(Lines(np.arange(3), y, ("f",), "one", low=low, high=high))
    assert table.rows == ((0, Estimate(1.0, 0.0, 2.0)), (1, 2), (2, 3))
    table = numbers(Bars(("u", "v"), np.array([1, 2]), "two", low=np.array([0, 1]), high=np.array([2, np.inf])))
    assert table.rows == (("u", Estimate(1.0, 0.0, 2.0)), ("v", Estimate(2.0, 1.0, np.inf)))
    assert numbers(Lines(np.arange(3), y, ("f",), "one", low=low)).rows == ((0, 1), (1, 2), (2, 3))


def test_of_a_long_curve_some_points_are_shown_the_ends_among_them():
    x = np.arange(100_000.0)
    for block in (Lines(x, -x[None], ("f",), "long"), Scatter(x, -x, "many")):
        table = numbers(block)
        shown = [row[-2] for row in table.rows]
        assert len(shown) == ROWS
        assert (shown[0], shown[-1]) == (0, 99_999)
        assert all(row[-1] == -row[-2] for row in table.rows)
        assert f"{ROWS} of 100,000 points" in table.alt


def test_of_a_large_matrix_some_rows_and_columns_are_shown():
    matrix = np.arange(90.0)[:, None] * 1000 + np.arange(200)
    table = numbers(Heatmap(matrix[None], ("big",), "big"))
    assert [row[1] for row in table.rows][:: COLUMNS - 1] == ["0", "89"]
    assert table.columns[2 :: COLUMNS - 1] == ("0", "199")
    for row in table.rows:
        assert row[2:] == tuple(int(row[1]) * 1000 + int(column) for column in table.columns[2:])
    assert f"{COLUMNS} of 90 rows and {COLUMNS} of 200 columns" in table.alt
    assert " of " not in numbers(Heatmap(matrix[None, :COLUMNS, :COLUMNS], ("small",), "small")).alt


def test_of_a_fine_surface_some_points_are_shown():
    x, y = np.arange(50.0), np.arange(70.0)
    table = numbers(Surface(x, y, y[:, None] * 1000 + x, "fine"))
    assert [row[0] for row in table.rows][:: len(table.rows) - 1] == [0, 69]
    assert table.columns[1 :: len(table.columns) - 2] == ("0", "49")
    for row in table.rows:
        assert row[1:] == tuple(row[0] * 1000 + float(c) for c in table.columns[1:])
    assert f"{len(table.rows) * (len(table.columns) - 1)} of 3,500 points" in table.alt


def test_the_moment_that_is_shown_is_named():
    assert "at step 2,000" in numbers(TABLES[Frames][0]).alt


def test_whole_numbers_and_truth_values_are_numbers():
    yes = np.array([True, False])
    assert numbers(Bars(("u", "v"), yes, "two", low=yes, high=yes)).rows[0] == ("u", Estimate(1.0, 1.0, 1.0))
    assert numbers(Surface(yes, yes, np.eye(2, dtype=np.uint8), "four")).columns[1:] == ("1", "0")


@given(arrays(float, (2, 3, 4)), st.booleans())
def test_no_number_is_lost_or_made_up(matrices, inert):
    if inert:
        matrices[0, 1, 2] = NAN
    rows = numbers(Heatmap(matrices, ("a", "b"), "random")).rows
    shown = np.array([[NAN if cell is None else cell for cell in row[2:]] for row in rows]).reshape(2, 3, 4)
    np.testing.assert_array_equal(shown, matrices)
