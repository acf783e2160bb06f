"""The study that is shipped, and what a study says of one claim."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from icl_interp.calibration.counts import Rate, Study
from icl_interp.errors import CheckpointError
from icl_interp.probing import Status
from icl_interp.serialization import dumps, from_data, to_data


@dataclass(frozen=True)
class Reliability:
    """How often the verdicts on one claim are right: its rates in every family that says something of it.

    Args:
        false: families that violate it, without those it never applied to.
        true: families of which it is true, likewise.
        titles: what the models of each family are, by its name.
    """

    false: tuple[Rate, ...]
    true: tuple[Rate, ...]
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def passing(self) -> Rate | None:
        """The family that violates the claim and passes most often; of equals, that of more models."""
        return max(self.false, key=lambda rate: (rate.holds / rate.judged, rate.judged), default=None)

    @property
    def missed(self) -> Rate | None:
        """The family of which the claim is true and that it least often holds on; of equals, that of more models."""
        return min(self.true, key=lambda rate: (rate.holds / rate.judged, -rate.judged), default=None)

    @property
    def failing(self) -> Rate | None:
        """The family of which the claim is true and that it most often fails on; of equals, that of more models."""
        return max(self.true, key=lambda rate: (rate.fails / rate.judged, rate.judged), default=None)

    @property
    def open(self) -> float:
        """The share of inconclusive verdicts among models of which the claim is true; NaN without such models."""
        judged = _judged(self.true)
        return sum(rate.inconclusive for rate in self.true) / judged if judged else math.nan

    def named(self, status: Status) -> str | None:
        """The family that `told` names, if it names one."""
        worst = self._worst(status)
        return worst.family if worst else None

    def told(self, status: Status) -> str:
        """What a reader of a verdict of that status should know, in one short phrase; "" if it does not apply."""
        if status == "not_applicable":
            return ""
        rates = self.false if status == "holds" else self.true
        models = "models that violate it" if status == "holds" else "models of which it is true"
        does = {"holds": "pass", "fails": "fail", "inconclusive": "stay open"}[status]
        if not rates:
            return f"no {models} were tried"
        if status == "inconclusive" and self.open:
            return f"{in_percent(self.open)} of {models} {does}"
        if worst := self._worst(status):
            wrong = worst.holds if status == "holds" else worst.fails
            return f"{wrong:,} of {worst.judged:,} {models} {does} ({worst.family})"
        return f"none of {_judged(rates):,} {models} {does}"

    def _worst(self, status: Status) -> Rate | None:
        """The family where verdicts of that status are most often wrong, if any of its are."""
        if status == "holds":
            return self.passing if self.passing and self.passing.holds else None
        if status == "fails":
            return self.failing if self.failing and self.failing.fails else None
        return None


@cache
def study() -> Study | None:
    """The study of this library's own probes that is shipped with it; None where there is none.

    Raises:
        CheckpointError: its file was changed by hand, or belongs to another version.
    """
    file = files("icl_interp") / "calibration.json"
    return study_from(file.read_text(encoding="utf-8")) if file.is_file() else None


def study_from(text: str) -> Study:
    """The study that `study_text` wrote.

    Raises:
        CheckpointError: the text is not one.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"not a Study: {error}") from error
    return from_data(Study, data)


def study_text(study: Study) -> str:
    """A study as JSON with one record a line, so that a repository shows what a new study changed."""
    parts = []
    for name, value in to_data(study).items():
        records = isinstance(value, list | tuple) and len(value) and isinstance(value[0], dict | list | tuple)
        lines = ",\n".join(dumps(record, indent=None) for record in value) if records else ""
        parts.append(f"{dumps(name)}: " + (f"[\n{lines}\n]" if records else dumps(value, indent=None)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def reliability(claim: str, of: Study | None = None) -> Reliability | None:
    """What a study says of the verdicts on a claim, "probe.claim"; None where it says nothing.

    Args:
        claim: "probe.claim".
        of: the study; None means the one that is shipped.
    """
    of = study() if of is None else of
    if of is None:
        return None
    rates = [rate for rate in of.rates if rate.claim == claim and rate.judged]
    false, true = (tuple(rate for rate in rates if rate.truth == truth) for truth in ("violates", "holds"))
    titles = {family.name: family.title for family in of.families}
    return Reliability(false, true, titles) if false or true else None


def how_reliable(probe: str, claim: str, status: Status) -> str:
    """The phrase beside a verdict; "not calibrated" of claims that the shipped study says nothing of.

    >>> how_reliable("of_somebody_else", "anything", "holds")
    'not calibrated'
    """
    known = reliability(f"{probe}.{claim}")
    if known is None:
        return "" if status == "not_applicable" else "not calibrated"
    return known.told(status)


def in_percent(share: float) -> str:
    """A share as text with two digits, or three from 10 % on.

    >>> in_percent(0.0342), in_percent(1.0), in_percent(0.995)
    ('3.4 %', '100 %', '99.5 %')
    """
    percent = 100 * share
    return f"{percent:.3g} %" if percent >= 10 else f"{percent:.2g} %"


def _judged(rates: Sequence[Rate]) -> int:
    return sum(rate.judged for rate in rates)
