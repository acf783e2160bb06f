"""An analysis from the file it was written to: report.json, or report.html, which carries the same data.

Findings come back as the types of the probes that are installed, and blocks are made of them again.  Where a probe is
not installed, has changed since, or its finding was left out for the page's size, verdicts are there and blocks are
not.  Nothing in a file is trusted: it is JSON, held against the types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from icl_interp.analysis import SCHEMA_VERSION, Analysis, Provenance
from icl_interp.circuits import Circuits
from icl_interp.errors import CheckpointError, NoCheckpointError
from icl_interp.probing import AnyProbe, Outcome, Probe, Verdict, discover
from icl_interp.probing.outcomes import OutcomeStatus
from icl_interp.serialization import from_data

MAX_BYTES = 2**26  # of a report: a page has 2.2 MB, and a large model's JSON some ten
_RESULTS = re.compile(r'<script type="application/json" id="results">(.*?)</script>', re.DOTALL)


def is_report(path: str | Path) -> bool:
    """Whether a path is called like a report: a file that ends in .json or .html."""
    return Path(path).suffix.lower() in (".json", ".html")


def load_analysis(path: str | Path) -> Analysis:
    """The analysis in a report.

    Raises:
        CheckpointError: no such file, none that holds an analysis, damaged, or of another version.
    """
    if not Path(path).is_file():
        raise NoCheckpointError(f"{path} is no report: there is no such file")
    try:
        if (size := Path(path).stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"it has {size:,} bytes; a report has {MAX_BYTES:,} at most")
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix.lower() == ".html":
            if (found := _RESULTS.search(text)) is None:
                raise CheckpointError("it is no report of icl-interp: it carries no results")
            text = found[1]
        return analysis_of(json.loads(text))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a report: {error}") from error


def analysis_of(data: object) -> Analysis:
    """The inverse of `Analysis.to_data`.

    Raises:
        CheckpointError: data of something else; the message names what does not fit.
    """
    parts = ("schema_version", "provenance", "circuits", "probes")
    if not isinstance(data, dict) or not set(parts) <= set(data) or not isinstance(data["probes"], dict):
        raise CheckpointError(f"not an analysis, which has {', '.join(parts)}")
    if data["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"written in version {str(data['schema_version'])[:40]} of the format, this is {SCHEMA_VERSION}"
        )
    probes, _ = discover()
    outcomes = tuple(_outcome(name, said, probes.get(name)) for name, said in data["probes"].items())
    return Analysis(from_data(Provenance, data["provenance"]), from_data(Circuits, data["circuits"]), outcomes)


def _outcome(name: str, data: object, probe: Probe[object] | None) -> Outcome:
    parts: Mapping[str, Any] = data if isinstance(data, dict) else {}
    kinds: dict[str, Any] = {"title": str, "status": str, "source": str, "reason": str, "looks": tuple[int, ...]}
    kinds["verdicts"] = tuple[Verdict, ...]
    if missing := [part for part in (*kinds, "result") if part not in parts]:
        raise CheckpointError(f"what is said of {name[:80]!r} lacks {', '.join(missing)}")
    if parts["status"] not in get_args(OutcomeStatus):
        raise CheckpointError(f"{name[:80]!r} has no such status: {str(parts['status'])[:80]!r}")
    outcome = Outcome(name, **{part: from_data(kind, parts[part]) for part, kind in kinds.items()})
    return _shown(outcome, parts["result"], probe)


def _shown(outcome: Outcome, result: object, probe: Probe[object] | None) -> Outcome:
    """With the finding and its blocks, if the probe is there and knows it."""
    if probe is None or result is None:
        return outcome
    try:
        kind = get_type_hints(cast("AnyProbe", type(probe)).run)["return"]
        value = from_data(kind, result)
        return replace(outcome, value=value, blocks=tuple(probe.blocks(value)))
    except Exception:  # of another version, left out, or a probe of somebody's own
        return outcome
