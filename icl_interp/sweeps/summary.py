"""What a sweep's rows say, by column: what was varied, which claims hold how often, and the numbers behind them.

Columns are told apart by their names, as `rows` writes them: parameters have no point in theirs, claims end in
".status", a number may end in ".value".  Ends of single runs' intervals are left to the data set: over seeds, the
spread of the values says how certain a mean is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from icl_interp.estimates import Estimate, share_of

Kind = Literal["parameter", "claim", "number", "word"]
NEITHER = ("cell", "error")
SEEDS = ("seed", "data_seed")  # over which numbers are averaged, unless asked otherwise
ENDS = (".low", ".high", ".prompts")
WORDS = 8  # distinct ones that are counted in lists
STUDENT = tuple(float(stats.t.ppf(0.975, df)) for df in range(1, 31))  # for means of few seeds, by degrees of freedom
STATUSES = ("holds", "fails", "inconclusive", "not_applicable")


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the rows, in the order of the runs: numbers (NaN where missing), or words ("" where missing)."""

    name: str
    kind: Kind
    values: np.ndarray

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers."""
        return self.values.dtype.kind == "f"


@dataclass(frozen=True, eq=False)
class Summary:
    """A sweep's rows as a page shows them.

    Args:
        cells: names of the runs, which are in the order of their parameters.
        errors: of the runs that failed, and "" of all others.
        columns: parameters that differ between runs, seeds last; then claims; then what probes found.
        common: parameters that all runs share, by name.
    """

    cells: tuple[str, ...]
    errors: tuple[str, ...]
    columns: tuple[Column, ...]
    common: dict[str, object]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Summary:
        """Of rows as `Sweep.to_pandas` gives them; columns that say the same twice are taken once."""
        parameters = [name for name in rows.columns if "." not in name and name not in NEITHER]
        varied = sorted((name for name in parameters if _differs(rows[name])), key=lambda name: name in SEEDS)
        rows = rows.sort_values(varied) if varied else rows
        found = [*_claims(rows), *_found(rows)]
        errors = rows["error"] if "error" in rows else pd.Series([None] * len(rows))
        return cls(
            cells=tuple(rows["cell"]),
            errors=tuple("" if error is None or error != error else str(error) for error in errors),
            columns=(*(_column(name, "parameter", rows[name]) for name in varied), *_once(found)),
            common={name: rows[name].iloc[0] for name in parameters if name not in varied and len(rows)},
        )

    def of_kind(self, *kinds: Kind) -> tuple[Column, ...]:
        """The columns of these kinds."""
        return tuple(column for column in self.columns if column.kind in kinds)

    @property
    def varied(self) -> tuple[Column, ...]:
        """What differs between runs, but for seeds."""
        return tuple(column for column in self.of_kind("parameter") if column.name not in SEEDS)

    @property
    def failures(self) -> dict[str, int]:
        """How many runs failed in which way, most frequent first."""
        return dict(Counter(error for error in self.errors if error).most_common())


def held(statuses: np.ndarray) -> Estimate:
    """The share of runs in which a claim holds, of those to which it applies; its interval covers further seeds."""
    judged = np.isin(statuses, STATUSES[:3])
    return share_of(int((statuses == "holds").sum()), int(judged.sum()), "seeds")


def _differs(values: Any) -> bool:
    return values.nunique(dropna=False) > 1


def _claims(rows: pd.DataFrame) -> Iterator[Column]:
    for name in rows.columns:
        claim = name.removesuffix(".status")
        if claim != name and "." in claim:
            yield _column(claim, "claim", rows[name])


def _found(rows: pd.DataFrame) -> Iterator[Column]:
    for name in rows.columns:
        if "." not in name or name.endswith((".status", *ENDS)):
            continue
        if _differs(rows[name]):
            column = _column(name.removesuffix(".value"), "number", rows[name])
            yield column if column.numeric else Column(column.name, "word", column.values)
            yield from () if column.numeric else _counts(column)


def _counts(column: Column) -> Iterator[Column]:
    """Of lists of a few words, such as roles, how many there are of each."""
    lists = [value.split(",") if value else [] for value in column.values]
    known = list(dict.fromkeys(word for words in lists for word in words))
    if max(map(len, lists), default=0) < 2 or len(known) > WORDS:
        return
    there = np.array([bool(words) for words in lists])
    for word in known:
        counts = np.array([words.count(word) for words in lists], dtype=float)
        if len(set(counts[there])) > 1:
            yield Column(f"{column.name}: {word}", "number", np.where(there, counts, np.nan))


def _column(name: str, kind: Kind, values: Any) -> Column:
    if values.dtype.kind in "fiu":
        return Column(name, kind, values.to_numpy(dtype=float))
    words = ["" if value is None or value != value else _said(value) for value in values]
    return Column(name, kind, np.array(words, dtype=object))


def _said(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool | np.bool_) else str(value)


def _once(columns: list[Column]) -> Iterator[Column]:
    """Without those that another one repeats, value by value."""
    seen: set[tuple[bool, bytes]] = set()
    for column in columns:
        content = column.values.tobytes() if column.numeric else "\0".join(column.values).encode(errors="replace")
        key = (column.kind == "claim", content)
        if column.kind == "claim" or key not in seen:
            yield column
        seen.add(key)
