"""How often every verdict of every probe is right, on checkpoints whose truth is known.

    python benchmarks/calibration.py draw choosing --work DIR      # models on which thresholds were chosen
    python benchmarks/calibration.py draw reporting --work DIR     # models drawn anew, on which they are reported
    python benchmarks/calibration.py keep choosing --work DIR      # what DIR has of a draw, into results/calibration/
    python benchmarks/intervals.py --work DIR/coverage             # intervals over prompts, at repeated seeds
    python benchmarks/calibration.py report reporting --work DIR   # CALIBRATION.md, the page, the study that is shipped

A draw is 1,000 models of every family that is built by formula and 300 of every one that has to be trained
(`icl_interp.testing.known_families`), each judged by the probes of whose claims its family says something.  Rows go to
DIR as they come; an interrupted draw goes on where it was, from an empty DIR with what was kept.  It takes hours on two
cores.  Kept rows have four digits (estimates eight), in files that are only added to; one whose families have changed
since has to be drawn again.
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from icl_interp.calibration import Coverage, Study, ThresholdTold, study_text
from icl_interp.serialization import dumps, from_data, to_data
from icl_interp.testing import Family, counting, known_families
from icl_interp.testing.drawing import BUDGET, FIRST, Row, examine, thresholds
from icl_interp_reports import calibration_html, calibration_markdown

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CAUSES = RESULTS / "calibration-causes.json"
COVERAGE = RESULTS / "coverage.json"
KEPT = RESULTS / "calibration"  # all rows of both draws
AGAIN = 2  # rows of each family that a test looks at, whether they still come out the same
DRAWS = {"choosing": 0, "reporting": 1_000_000}  # the first seed of each
ROUND = 20  # members of a family before the next one has its turn, so that an unfinished draw has some of all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", help="judge models")
    keep = commands.add_parser("keep", help="add what was judged to what is kept")
    report = commands.add_parser("report", help="count, and write what was found")
    for command in (draw, keep, report):
        command.add_argument("draw", choices=DRAWS)
        command.add_argument("--work", type=Path, required=True, help="folder of rows and trained models")
    draw.add_argument("--models", type=int, default=1_000, help="of a family built by formula")
    draw.add_argument("--trained", type=int, default=300, help="of a family that is trained")
    draw.add_argument("--families", nargs="+", help="only these")
    draw.add_argument("--processes", type=int, default=2)
    draw.add_argument("--hours", type=float, default=1e3, help="stop after so long")
    arguments = parser.parse_args()
    {"draw": _draw_all, "keep": _keep, "report": _report}[arguments.command](arguments)


def _draw_all(arguments: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_draw_part, args=(arguments, part)) for part in range(1, arguments.processes)]
    for worker in workers:
        worker.start()
    _draw_part(arguments, 0)
    for worker in workers:
        worker.join()


def _draw_part(arguments: argparse.Namespace, part: int) -> None:
    """Every so-many-th round of members of every family."""
    torch.set_num_threads(1)
    until = time.monotonic() + 3600 * arguments.hours
    chosen = [f for name, f in known_families().items() if not arguments.families or name in arguments.families]
    first = DRAWS[arguments.draw]
    most = max(arguments.models, arguments.trained)
    for start in range(part * ROUND, most, ROUND * arguments.processes):
        for family in chosen:
            count = arguments.trained if family.trained else arguments.models
            seeds = range(first + start, first + min(start + ROUND, count))
            if time.monotonic() > until:
                return
            _judge(family, seeds, arguments)


def _judge(family: Family, seeds: Sequence[int], arguments: argparse.Namespace) -> None:
    """Append what is missing of these members' rows."""
    path = _place(arguments, family.name)
    done = {row["seed"] for row in _rows(arguments, family.name)}
    wanted = [seed for seed in seeds if seed not in done]
    if not wanted:
        return
    started = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for row in examine(family, wanted, folder=arguments.work / "trained"):
            with path.open("a") as file:
                file.write(dumps(to_data(row), indent=None) + "\n")
    except Exception:  # a family that cannot be built must not keep others from being judged
        traceback.print_exc()
    print(f"{family.name} {len(wanted)} in {time.monotonic() - started:.1f} s", flush=True)


def _keep(arguments: argparse.Namespace) -> None:
    """A further file of rows, short ones."""
    KEPT.mkdir(exist_ok=True)
    new = [
        dumps({"family": name, **_short(json.loads(line))}, indent=None)
        for name in known_families()
        for line in _lines(_place(arguments, name))
    ]
    path = KEPT / f"{arguments.draw}-{1 + len(_files(arguments.draw)):03d}.jsonl.xz"
    part = path.with_suffix(".part")
    with lzma.open(part, "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in new)
    part.rename(path)
    for name in known_families():
        _place(arguments, name).unlink(missing_ok=True)
    print(f"{len(new)} rows in {path}")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    for group, digits in (("claims", 4), ("numbers", 8)):
        for of_one in row[group].values():
            of_one |= {k: float(f"{v:.{digits}g}") for k, v in of_one.items() if isinstance(v, float)}
    return row


def _report(arguments: argparse.Namespace) -> None:
    rows = {family: _read(arguments, name) for name, family in known_families().items()}
    rows = {family: of_family for family, of_family in rows.items() if of_family}
    study = Study(
        draw=arguments.draw,
        budget=(FIRST, BUDGET),
        families=tuple(counting.told(*item) for item in rows.items()),
        rates=_all(counting.rates, rows),
        spreads=_all(counting.spreads, rows),
        coverage=_all(counting.coverage, rows) + _covered(),
        errors=_all(counting.errors, rows),
        thresholds=_thresholds(rows),
        found=_all(counting.found, rows),
    )
    study = replace(study, exceptions=_exceptions(study))
    (ROOT / "icl_interp" / "calibration.json").write_text(study_text(study))
    (ROOT / "CALIBRATION.md").write_text(calibration_markdown(study))
    (RESULTS / "calibration.html").write_text(calibration_html(study))
    first = {family.name: to_data(of_family[:AGAIN], tuple[Row, ...]) for family, of_family in rows.items()}
    (RESULTS / "calibration-rows.json").write_text(dumps(first, indent=None) + "\n")


def _covered() -> tuple[Coverage, ...]:
    """What `benchmarks/intervals.py` counted of intervals over prompts, if it was run."""
    return from_data(tuple[Coverage, ...], json.loads(COVERAGE.read_text())) if COVERAGE.exists() else ()


def _all(count: Callable[[Family, Sequence[Row]], Iterator[T]], rows: dict[Family, list[Row]]) -> tuple[T, ...]:
    return tuple(found for item in rows.items() for found in count(*item))


def _thresholds(rows: dict[Family, list[Row]]) -> tuple[ThresholdTold, ...]:
    """Of every claim, as the verdicts on the first member of each family have them."""
    told: dict[str, ThresholdTold] = {}
    for family, (row, *_) in rows.items():
        if not family.trained and not set(row.claims) <= set(told):
            told = thresholds(family, row.seed) | told
    return tuple(told.values())


def _exceptions(study: Study) -> tuple[tuple[str, str], ...]:
    """What is not as it should be, with its cause: that has to be found and written down by hand."""
    causes: dict[str, str] = json.loads(CAUSES.read_text()) if CAUSES.exists() else {}
    return tuple((what, causes.get(key, "not known")) for key, what in counting.exceptions(study))


def _lines(path: Path) -> Iterator[str]:
    """Whole lines: the last one may have been cut off."""
    if path.exists():
        with path.open() as file:
            yield from (line for line in file if line.endswith("\n"))


def _place(arguments: argparse.Namespace, family: str) -> Path:
    """Where a family's rows go as they come."""
    return arguments.work / arguments.draw / f"{family}.jsonl"


def _rows(arguments: argparse.Namespace, family: str) -> list[dict[str, Any]]:
    """Those that were kept, then those of this folder."""
    return _kept(arguments.draw)[family] + [json.loads(line) for line in _lines(_place(arguments, family))]


def _files(draw: str) -> list[Path]:
    return sorted(KEPT.glob(f"{draw}-*.xz"))


@cache
def _kept(draw: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in _files(draw):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                rows[row.pop("family")].append(row)
    return rows


def _read(arguments: argparse.Namespace, family: str) -> list[Row]:
    return sorted((from_data(Row, row) for row in _rows(arguments, family)), key=lambda row: row.seed)


if __name__ == "__main__":
    main()
