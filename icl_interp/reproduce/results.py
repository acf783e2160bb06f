"""What a reproduction finds: the paper's claims beside our numbers, and the blocks that show them.  Data only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from icl_interp.config import check_choice
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.probing import Block, Cell, Estimate, Table, Threshold
from icl_interp.serialization import Json, from_data, to_data

Status = Literal["reproduced", "differs", "does_not_hold", "undecided", "not_reached", "shown"]
_BLOCKS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Block)}


@dataclass(frozen=True)
class Claim:
    """One thing that the paper says or prints, and what came out here.

    Args:
        claim: what the paper says, in a sentence.
        status: "reproduced"; "differs", our number is another; "does_not_hold", the paper's own statement is refuted;
            "undecided", our number is not precise enough to tell; "not_reached", it may take the paper's schedule and
            this one was shorter; "shown", a number beside the paper's that nothing is concluded from.
        sentence: what was found, for a reader who sees nothing else.
        paper: the paper's number, as it prints it.
        ours: our number with its interval.
        threshold: where ours had to lie.

    Raises:
        ConfigError: an unknown status, or an empty claim or sentence.
    """

    claim: str
    status: Status
    sentence: str
    paper: str = ""
    ours: Estimate | None = None
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        check_choice("status", self.status, get_args(Status))
        for name in ("claim", "sentence"):
            if not getattr(self, name).strip():
                raise ConfigError(f"a claim needs a {name}: {self}")


@dataclass(frozen=True, eq=False)
class Reproduction:
    """One figure, table or theorem, done again.

    Args:
        name: what it is called on the command line, "figure-4".
        title: what it shows.
        source: where the paper has it, "Figure 4 and Observation 3".
        claims: the paper's beside ours.
        blocks: our figure.
        runs: what was trained for it, in words, by the training's name.
        schedule: "quick" or "paper", or the name of a schedule of one's own.
        command: what makes it again.
        seconds: that it took, trainings apart.
        failure: why there is nothing, if it could not be made; `details` is the traceback.
    """

    name: str
    title: str
    source: str
    claims: tuple[Claim, ...]
    blocks: tuple[Block, ...]
    runs: dict[str, str]
    schedule: str
    command: str
    seconds: float
    failure: str = ""
    details: str = ""

    def to_data(self) -> dict[str, Json]:
        """All of it as JSON-ready data; each block says its kind."""
        data: dict[str, Json] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["claims"] = [to_data(claim, Claim) for claim in self.claims]
        data["blocks"] = [{"kind": type(block).__name__, **to_data(block)} for block in self.blocks]
        return {**data, "seconds": to_data(self.seconds, float)}

    @classmethod
    def from_data(cls, data: object) -> Reproduction:
        """The inverse of `to_data`.

        Raises:
            CheckpointError: data of something else.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(data, dict) or sorted(data) != sorted(names) or not isinstance(data["blocks"], list):
            raise CheckpointError(f"not a Reproduction, which has {', '.join(names)}: {str(data)[:100]!r}")
        kinds: dict[str, Any] = {"claims": tuple[Claim, ...], "runs": dict[str, str], "seconds": float}
        parts = {name: from_data(kinds.get(name, str), data[name]) for name in names if name != "blocks"}
        return cls(**parts, blocks=tuple(_block_from(block) for block in data["blocks"]))

    def __repr__(self) -> str:
        from icl_interp_reports import reproduction_in_a_line

        return reproduction_in_a_line(self)

    def __str__(self) -> str:
        from icl_interp_reports import reproduction_text

        return reproduction_text(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import reproduction_in_notebook

        return reproduction_in_notebook(self)


def compare(
    claim: str,
    ours: Estimate,
    threshold: Threshold,
    sentence: str,
    *,
    paper: str = "",
    reached: bool = True,
    otherwise: Status = "differs",
) -> Claim:
    """The claim that the number decides.

    "reproduced" if the whole interval lies within the threshold, `otherwise` if all of it lies outside.  An interval
    that crosses a bound still counts as agreement with a printed number, if the value itself is inside and the interval
    no wider than what lies between the two bounds; else the claim is "undecided".

    Args:
        claim, ours, threshold, sentence, paper: as in `Claim`.
        reached: whether the schedule is long enough for the claim; if not, and it does not come out yet, the status is
            "not_reached".
        otherwise: the status if the interval lies outside.
    """
    status = _decided(ours, threshold, otherwise)
    if not reached and status != "reproduced":
        status = "not_reached"
    return Claim(claim, status, sentence, paper, ours, threshold)


def within(part: float, why: str, printed: float) -> Threshold:
    """A threshold around a printed number: ours may be off by `part` of it, for the reason `why`."""
    low, high = sorted(float(f"{(1 + side * part) * printed:.4g}") for side in (-1, 1))
    return Threshold(f"{part:.0%} around {printed:.4g}: {why}", low, high)


def worst(claims: Sequence[Claim]) -> Status | None:
    """The status that a reader should know first; None without claims."""
    order: tuple[Status, ...] = ("differs", "does_not_hold", "undecided", "not_reached", "reproduced", "shown")
    found = {claim.status for claim in claims}
    return next((status for status in order if status in found), None)


def _decided(ours: Estimate, threshold: Threshold, otherwise: Status) -> Status:
    verdict = threshold.judge(ours)
    if verdict != "inconclusive":
        return "reproduced" if verdict == "holds" else otherwise
    between = threshold.high - threshold.low
    agrees = math.isfinite(between) and threshold.low <= ours.value <= threshold.high and 2 * ours.half <= between
    return "reproduced" if agrees else "undecided"


def _block_from(data: object) -> Block:
    """A block from its kind and its fields.  A table's cells are of several types, so they are read here."""
    kind = _BLOCKS.get(data["kind"]) if isinstance(data, dict) and isinstance(data.get("kind"), str) else None
    if kind is None or not isinstance(data, dict):
        raise CheckpointError(f"not a block: {str(data)[:100]!r}; there are {', '.join(_BLOCKS)}")
    fields = {name: value for name, value in data.items() if name != "kind"}
    if kind is not Table:
        return from_data(kind, fields)
    rows = fields.pop("rows", None)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise CheckpointError(f"not a Table: its rows are {str(rows)[:100]!r}")
    head = from_data(Table, {**fields, "rows": []})
    return dataclasses.replace(head, rows=tuple(tuple(_cell_from(cell) for cell in row) for row in rows))


def _cell_from(cell: Any) -> Cell:
    if isinstance(cell, dict):
        return from_data(Estimate, cell)
    return from_data(float, cell) if cell in ("NaN", "Infinity", "-Infinity") else cell
