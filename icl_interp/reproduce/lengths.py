"""Risks against the number of demonstrations, of models trained at L = 40.

Shorter prompts are the beginnings of longer ones, and all predictors answer the same, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.estimators import Predictor
from icl_interp.probing import Estimate, Lines, Threshold, mean_of, rounded
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.trainings import MAIN
from icl_interp.tasks import Prompt

LENGTHS = tuple(range(10, 101, 5))  # the published grid
PRINTED_AT = (10, 20, 40, 60, 100)  # where the published plots can be read
# The published curves rest on 20,000 to 100,000 prompts; a quarter of the paper schedule's number is 50,000.
PART = 4
PRECISE = 0.15  # relative 95 % half-width; 5,000 prompts have 0.05 to 0.1

FALLS = Threshold("the risk of more demonstrations has to be less", high=0.0)

Key = TypeVar("Key", bound=Hashable)
Errors = dict[str, Float[np.ndarray, "lengths prompts"]]
Bounds = Float[np.ndarray, "curves points"]


def count(bench: Bench, part: int = PART) -> int:
    """How many prompts a part of the schedule's are."""
    return max(2, bench.schedule.prompts // part)


def long_prompts(bench: Bench, label: str) -> Iterator[Prompt]:
    """Prompts of the longest of `LENGTHS`, the same for the same label."""
    return bench.prompts(label, MAIN, count(bench), length=LENGTHS[-1])


def squared_errors(
    predictors: Mapping[str, Predictor], prompts: Iterator[Prompt], lengths: Sequence[int] = LENGTHS
) -> Errors:
    """(ŷ − y_q)² of every predictor, on the beginnings of the same prompts."""
    pieces: dict[str, list[Tensor]] = {name: [] for name in predictors}
    for prompt in prompts:
        beginnings = [prompt.beginning(L) for L in lengths]
        for name, predict in predictors.items():
            answers = torch.stack([predict(beginning)[:, 0] for beginning in beginnings])
            pieces[name].append((answers - prompt.y_q[:, 0]).square())
    return {name: torch.cat(piece, 1).numpy() for name, piece in pieces.items()}


def risk(errors: Errors, name: str, length: int) -> Estimate:
    """The mean squared error at a length."""
    return mean_of(errors[name][LENGTHS.index(length)])


def standard_errors_apart(one: Estimate, other: Estimate) -> float:
    """|difference| of two independent estimates, in standard errors of the difference.

    NaN where its interval is more than `PRECISE` of them: of numbers so uncertain, agreement says nothing.
    """
    half, size = math.hypot(one.half, other.half), max(abs(one.value), abs(other.value))
    return abs(one.value - other.value) / (half / 1.96) if half <= PRECISE * size else math.nan


def furthest(pairs: Mapping[Key, tuple[Estimate, Estimate]]) -> tuple[Key, float]:
    """The pair that is most standard errors apart, and how many; one of NaN is the furthest."""
    apart = {key: standard_errors_apart(*pair) for key, pair in pairs.items()}
    key = max(apart, key=lambda key: math.inf if math.isnan(apart[key]) else apart[key])
    return key, apart[key]


def falling(errors: Errors, claim: str) -> Claim:
    """That every risk falls, between any two neighbours of `PRINTED_AT`."""
    changes = {
        (name, *pair): mean_of(rows[LENGTHS.index(pair[1])] - rows[LENGTHS.index(pair[0])])
        for name, rows in errors.items()
        for pair in pairwise(PRINTED_AT)
    }
    (name, short, long), worst = max(changes.items(), key=lambda item: item[1].high)
    return compare(
        claim,
        worst,
        FALLS,
        f"The smallest fall between neighbours of L = {', '.join(map(str, PRINTED_AT))}: {name}, from {short} to "
        f"{long}; the difference is paired.",
    )


def bands(curves: Sequence[Sequence[Estimate]]) -> tuple[Bounds, Bounds, Bounds]:
    """Values of curves and the ends of their intervals, as `Lines` takes them."""
    value, low, high = (
        rounded(np.array([[getattr(each, end) for each in curve] for curve in curves]))
        for end in ("value", "low", "high")
    )
    return value, low, high


def lines_drawn(errors: Errors, title: str, what: str) -> Lines:
    """The risks over `LENGTHS`, with their intervals."""
    value, low, high = bands([[mean_of(row) for row in rows] for rows in errors.values()])
    return Lines(
        np.array(LENGTHS, dtype=float),
        value,
        tuple(errors),
        alt=f"Risk against the number of demonstrations: {what}.",
        title=title,
        x_label="demonstrations",
        y_label="risk",
        low=low,
        high=high,
    )
