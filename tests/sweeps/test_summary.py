"""What a sweep's rows say by column, and the page that carries them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from carrying import carried
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.estimates import share_of
from icl_interp.sweeps.summary import Column, Summary, held
from icl_interp_reports import sweep_html
from icl_interp_reports.sweep import LIMIT, _bytes, _kept

HOSTILE = "<script>document.title = 'stolen'</script> </style> \x1b[31m \u202e {{ 7 * 7 }} \" onload='x'"


def rows(count=12, **more):
    """Two noises, three numbers of heads, the rest seeds."""
    at = np.arange(count)
    statuses = np.array(["holds", "fails", "inconclusive", "not_applicable"])
    return pd.DataFrame(
        {
            "cell": [f"{i:016x}" for i in at],
            "n_heads": 1 + at % 3,
            "noise_var": np.where(at % 2, 0.1, 0.3),
            "dim": 5,
            "clip": None,
            "seed": at // 6,
            "error": [None] * count,
            "fit.status": "done",
            "fit.prompts": 64,
            "fit.gamma_small.status": statuses[at % 4],
            "fit.gamma_small.value": 0.1 + at,
            "fit.gamma_small.low": at - 0.5,
            "fit.gamma_small.high": at + 0.5,
            "fit.gamma.value": 0.1 + at,
            "fit.roles": np.where(at % 2, "positive,dummy,dummy", "positive,negative,dummy"),
            "fit.stable": at % 2 == 0,
            "fit.trained": 40.0,
            **more,
        }
    )


def names(columns):
    return [column.name for column in columns]


def test_columns_are_told_apart():
    summary = Summary.of(rows())
    assert names(summary.of_kind("parameter")) == ["n_heads", "noise_var", "seed"]
    assert names(summary.varied) == ["n_heads", "noise_var"]
    assert names(summary.of_kind("claim")) == ["fit.gamma_small"]
    # fit.gamma is fit.gamma_small's value once more, fit.trained the same throughout.
    assert names(summary.of_kind("number")) == ["fit.gamma_small", "fit.roles: dummy", "fit.roles: negative"]
    assert names(summary.of_kind("word")) == ["fit.roles", "fit.stable"]
    assert summary.common == {"dim": 5, "clip": None}
    assert summary.failures == {}


def test_runs_are_in_the_order_of_their_parameters():
    shuffled = rows().sample(frac=1, random_state=0)
    heads = Summary.of(shuffled).columns[0].values
    assert list(heads) == sorted(heads)
    assert Summary.of(shuffled).cells == Summary.of(rows()).cells


def test_lists_of_words_are_counted():
    counts = {c.name: list(c.values) for c in Summary.of(rows(2)).of_kind("number")}
    assert counts["fit.roles: dummy"] == [1, 2]
    assert counts["fit.roles: negative"] == [1, 0]


def test_rows_of_runs_that_failed():
    failed = rows().astype({"fit.stable": object})
    failed.loc[3, "error"] = "TrainingError: the loss became nan"
    failed.loc[3, "fit.gamma_small.status":] = None
    summary = Summary.of(failed)
    assert summary.failures == {"TrainingError: the loss became nan": 1}
    (claim,) = summary.of_kind("claim")
    assert "" in claim.values
    assert np.isnan(next(c for c in summary.of_kind("number") if c.name == "fit.gamma_small").values).sum() == 1


def test_a_sweep_without_rows_or_parameters():
    empty = Summary.of(pd.DataFrame({"cell": pd.Series(dtype=str)}))
    assert (empty.cells, empty.columns, empty.common) == ((), (), {})
    assert "0 runs" in sweep_html(empty, "empty")
    assert Summary.of(rows(1)).varied == ()
    assert "1 run" in sweep_html(Summary.of(rows(1)), "one")


def test_the_share_that_holds_is_of_those_to_which_the_claim_applies():
    statuses = np.array(["holds"] * 7 + ["fails"] * 2 + ["inconclusive"] + ["not_applicable"] * 5 + [""], dtype=object)
    assert held(statuses) == share_of(7, 10, "seeds")


# --- The page ---------------------------------------------------------------------------------------------------------


def numbers(planes):
    return np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<f4")[:, 0]


def test_the_page_carries_the_rows():
    header, columns = carried(sweep_html(Summary.of(rows()), "sweep"))
    kinds = {c["name"]: c["kind"] for c in header["columns"]}
    assert kinds["n_heads"] == "parameter"
    ordered = rows().sort_values(["n_heads", "noise_var", "seed"])
    assert numbers(columns["n_heads"]) == pytest.approx(ordered["n_heads"].to_numpy())
    words = next(c for c in header["columns"] if c["name"] == "fit.roles")["words"]
    assert [words[i] for i in np.frombuffer(columns["fit.roles"], "<u4")] == list(ordered["fit.roles"])


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=20))
def test_numbers_travel_with_four_digits(values):
    column = Column("x", "number", np.array(values))
    there = numbers(_bytes(column)).astype(float)
    given_values = np.array(values)
    finite = np.isfinite(given_values) & (np.abs(given_values) > 1e-30) & (np.abs(given_values) < 1e38)
    assert there[finite] == pytest.approx(given_values[finite], rel=1.3e-4)
    assert (np.isnan(there) == np.isnan(given_values)).all()
    whole = finite & (given_values == np.round(given_values)) & (np.abs(given_values) < 2**24)
    assert (there[whole] == given_values[whole]).all()


def test_parameters_travel_as_they_are():
    values = np.array([1e-3, 0.1, 1e9, np.nan])
    np.testing.assert_array_equal(numbers(_bytes(Column("lr", "parameter", values))), values.astype(np.float32))


def test_the_same_rows_give_the_same_bytes_in_any_order():
    assert sweep_html(Summary.of(rows()), "s") == sweep_html(Summary.of(rows().sample(frac=1, random_state=1)), "s")


def test_nothing_in_the_rows_becomes_markup():
    wild = sweep_html(Summary.of(rows(error=HOSTILE, activation=[HOSTILE, "softmax"] * 6)), HOSTILE)
    tame = sweep_html(Summary.of(rows(error="words", activation=["words", "softmax"] * 6)), "words")
    tags = re.compile(r"<[a-z][^>]*>")
    without = re.compile(r"<script.*?</script>", re.DOTALL)
    assert tags.findall(without.sub("", wild)) == tags.findall(without.sub("", tame))
    assert wild.count("<script") == tame.count("<script")
    assert "\x1b" not in wild
    assert "\u202e" not in wild


def many(count, seed=0):
    """A sweep of three parameters and a hundred columns."""
    draw = np.random.default_rng(seed)
    at = np.arange(count)
    found = {f"probe{i % 9}.number{i}.value": draw.normal(size=count) for i in range(60)}
    claims = {f"probe{i % 9}.claim{i}.status": draw.choice(["holds", "fails"], count) for i in range(36)}
    sizes = {"n_heads": 1 + at % 8, "length": 10 * (1 + at // 8 % 5), "noise_var": np.where(at // 40 % 2, 0.1, 0.3)}
    cells = {"cell": [f"{i:016x}" for i in draw.integers(0, 2**63, count)]}
    return pd.DataFrame({**cells, **sizes, "seed": at // 80, "error": None, **claims, **found})


def test_ten_thousand_rows_stay_below_5_megabytes():
    assert len(sweep_html(Summary.of(many(10_000)), "many").encode()) < 5_000_000


def test_what_there_is_no_room_for_is_named():
    summary = Summary.of(many(40_000))
    kept, left_out = _kept(summary.columns)
    assert 0 < len(left_out) < 90
    assert [c.name for c in kept][:4] == ["n_heads", "length", "noise_var", "seed"]
    page = sweep_html(summary, "more")
    assert len(page.encode()) < 5_000_000 + LIMIT * 0.3  # the names of forty thousand runs take their room too
    assert f"the Parquet file has them: {left_out[0]}" in page
