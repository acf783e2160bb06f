"""How often do 95 % intervals hold the truth?  Every interval that a probe's result or one of its verdicts carries.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/intervals.py --work FOLDER [--seeds 170] [--drawn 3000]

What an interval covers says what its truth is:

    prompts             the same number of the same model from `MORE` times as many prompts of another seed; it has an
                        error of its own, so an interval holds it if the two are closer than the root of the sum of the
                        squares of both half-widths, which for independent errors is the same question (but repetitions
                        of one model share its truth, so that one that is off by chance shows in all of them).
                        Where something is fitted or chosen first, by probes of deep models, the fit is the same
    KQ's diagonal,      the number of the model without its perturbation, or without the scatter of its iterates: models
    measurement,        are drawn anew each time, as what varies is the model
    training time, …

Repetitions differ in nothing but their seed.  Each is a line of FOLDER/journal.jsonl, so that what is killed and
started again goes on; a journal is of one version of the library.  Averages hide: `measure` tells models apart.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch

from icl_interp.calibration import Coverage
from icl_interp.estimates import Estimate
from icl_interp.probing import Context, NotApplicable, Probe, discover
from icl_interp.records import Run
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task, kms
from icl_interp.testing import construct_descent, courses, plant, plant_tasks
from icl_interp_probes import (
    algorithm_finding,
    faithfulness,
    head_utilization,
    layer_algorithm,
    length_generalization,
    risk,
    task_costs,
)
from icl_interp_probes.shown import around

RESULTS = Path(__file__).parent / "results" / "coverage.json"  # what the calibration study has of it
BUDGETS = (2_048, 8_192)
RARER = 10  # repetitions at the small budget for one at the large
ROUNDING = 1e-6  # of weights in float32: what is narrower is exact
MORE = 32  # as many prompts for the truth as for the small budget
TRUTH_SEED = 1_000_003
DEEP_BUDGET, DEEP_MORE = 8_192, 16  # of deep models, whose probes leave open what they have seen on fewer prompts
FITTED = ("tuning", "fitting")  # the prompts on which probes of deep models choose or fit something
SAMPLING = (
    "head_roles",
    "kernel_fit",
    "faithfulness",
    "risk",
    "length_generalization",
    "optimality",
    "approximate_loss",
    "activation",
    "preconditioner",
    "task_allocation",
    "superposition",
)
OF_LAYERS = ("head_utilization", "layer_algorithm", "algorithm_match")
OF_WEIGHTS = ("kernel_fit", "dynamics")  # probes whose intervals cover more than prompts
# What varies with the training.  What records leave open of the time between them is not among it: the scatter that
# courses are freed of for the truth is a part of what is asked, and only a denser record would tell.
OF_COURSES = ("training time", "noise of iterates")
# Of what is propagated, these are made of μ alone, and so vary with the prompts only.
OF_MU = re.compile(
    r"kernel_fit\.(positive_mu|negative_mu|zero_sum)|kernel_fit:zero_sum_ov|superposition|task_allocation"
)

# --- Every interval of a result ---------------------------------------------------------------------------------------

# Which field a field of half-widths belongs to, if its name does not say so, and what such intervals cover.
_HALF_OF = ("value", "matrix", "found")
_COVERS = {"omega": "KQ's diagonal", "matrix": "batch means", "found": "measurement"}


def walk(data: Any, path: str = "") -> Iterator[tuple[str, Estimate]]:
    """Every interval in a probe's result, as JSON data, by its dotted path."""
    if isinstance(data, list):
        for i, part in enumerate(data):
            yield from walk(part, f"{path}.{i}")
    elif isinstance(data, dict) and data.keys() >= {"value", "low", "high"}:
        ends = (np.array(data[end], dtype=float) for end in ("value", "low", "high"))
        value, low, high = np.broadcast_arrays(*ends)
        for at in np.ndindex(value.shape):
            here = ".".join([path, *map(str, at)])
            yield here, Estimate(float(value[at]), float(low[at]), float(high[at]), data.get("covers", "prompts"))
    elif isinstance(data, dict):
        for name, part in data.items():
            half = data.get(f"{name}_half", data.get("half") if name in _HALF_OF else None)
            here = path if name == "value" else f"{path}.{name}"
            yield from walk(part, here) if half is None else _around(here, part, half, _COVERS.get(name, "prompts"))
            if name == "eigenvalues":
                values, halves = zip(*part, strict=True)
                yield from _around(here, values, halves, "batch means")


def _around(path: str, values: Any, halves: Any, covers: str) -> Iterator[tuple[str, Estimate]]:
    """The intervals of an array of values and one of half-widths."""
    value, half = np.array(values, float), np.array(halves, float)
    for at in np.ndindex(value.shape):
        yield ".".join([path, *map(str, at)]), around(float(value[at]), float(half[at]), covers)


def intervals(probe: Probe[Any], context: Context) -> dict[str, Estimate]:
    """Those of a probe's result, by "probe.path", and of its verdicts, by "probe:claim"; none that is exact."""
    needed = probe.needs | probe.uses
    if probe.needs & ~context.available:
        return {}
    try:
        value = probe.run(context.restricted(needed))
    except NotApplicable:
        return {}
    found = dict(walk(to_data(value), probe.name))
    found |= {f"{probe.name}:{v.claim}": v.estimate for v in probe.judge(value) if v.estimate is not None}
    return {path: each for path, each in found.items() if each.covers != "exact"}


def collapsed(path: str) -> str:
    """The path without the numbers of heads, lengths, predictors."""
    return re.sub(r"\.\d+", ".*", path)


# --- What is measured on ----------------------------------------------------------------------------------------------

MAIN = LinearRegression(5, 40, 0.1)
TASKS = MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], 48, 0.1)
MODELS: dict[str, Callable[[], Run]] = {
    "two heads": lambda: plant(MAIN, roles=["positive", "negative"], noise=0.02, seed=1).run,
    "two exact heads": lambda: plant(LinearRegression(3, 30, 0.3), roles=["positive", "negative"], seed=2).run,
    "three perturbed heads": lambda: (
        plant(LinearRegression(4, 24, 0.1), roles=["positive", "positive", "negative"], noise=0.1, seed=3).run
    ),
    "five heads of all roles": lambda: (
        plant(MAIN, roles=["positive", "negative", "dummy", "mean", "mean"], noise=0.02, seed=4).run
    ),
    "four heads at large γ": lambda: (
        plant(LinearRegression(6, 60, 0.1), roles=["positive", "negative"] * 2, gamma=0.25, noise=0.03, seed=5).run
    ),
    "one head": lambda: plant(MAIN, omega=[0.5], mu=[1.5], noise=0.03, seed=6).run,
    "two heads of one sign": lambda: plant(MAIN, omega=[0.5, 0.48], mu=[0.8, 0.7], noise=0.03, seed=7).run,
    "unbalanced heads": lambda: plant(MAIN, omega=[0.14, -0.1], mu=[3.4, -2.6], noise=0.05, seed=8).run,
    "tanh": lambda: plant(MAIN, roles=["positive", "negative"], activation="tanh", gamma=0.15, noise=0.03, seed=9).run,
    "correlated covariates": lambda: (
        plant(
            LinearRegression(5, 40, 0.1, covariance=kms(0.5)), omega=[0.12, -0.12], mu=[3.0, -3.0], noise=0.03, seed=10
        ).run
    ),
    **{
        f"mode {mode}": lambda mode=mode: plant_tasks(TASKS, mode, noise=0.03, seed=11).run
        for mode in ("I", "II", "III", "IV")
    },
}


SPARSE = SparseRegression(5, 3, 40, noise_var=0.2)
DEEP: dict[str, Callable[[], Run]] = {
    "a perturbed descent": lambda: construct_descent(SPARSE, perturbation=0.003, seed=12),
    "descent on plain covariates": lambda: construct_descent(SPARSE, preprocessed=False, n_heads=4, seed=13),
}


def models_of(trained: Sequence[Path] = (), only: Sequence[str] = ()) -> dict[str, Callable[[], Run]]:
    """The planted models, or `only` some, and trained ones as if nothing were known of their training."""
    opened = {f"trained {path.name}": lambda path=path: replace(Run.load(path), dynamics=None) for path in trained}
    planted = MODELS | DEEP
    return {name: planted[name] for name in only or planted} | opened


# Models that are drawn anew: how they are planted, with perturbed circuits or with a record of a training.
_UNEQUAL: dict[str, Any] = {"omega": [0.15, -0.11, 0.12], "mu": [1.5, -3.0, 1.3]}
PERTURBED: dict[str, dict[str, Any]] = {
    "two drawn heads": {"roles": ["positive", "negative"]},
    "four drawn heads": {"roles": ["positive", "negative", "negative", "dummy"]},
    "drawn unequal heads": _UNEQUAL,
}
COURSES: dict[str, dict[str, Any]] = {
    "a course of two heads": {"roles": ["positive", "negative"]},
    "a course of unequal heads": _UNEQUAL,
}


def drawn_models(seed: int) -> dict[str, tuple[Run, Run]]:
    """Models with what varies between them, and the same without: small enough that no number's curvature counts.

    What varies are perturbations of the circuits, and in courses the scatter of iterates.
    """
    perturbed = {
        name: (plant(MAIN, **kind, noise=0.02, seed=seed).run, plant(MAIN, **kind, seed=seed).run)
        for name, kind in PERTURBED.items()
    }
    return perturbed | {name: _with_course(kind, seed) for name, kind in COURSES.items()}


def _with_course(kind: Mapping[str, Any], seed: int) -> tuple[Run, Run]:
    scatters = plant(MAIN, **kind, course="paper", seed=seed).run
    with changed([(courses, "SCATTER", 0.0)]):
        return scatters, plant(MAIN, **kind, course="paper", seed=seed).run


def analysed(run: Run, seed: int, budget: int, probes: Iterable[str] = SAMPLING) -> dict[str, Estimate]:
    """Every interval of these probes; the seed is of their prompts."""
    view = _Fitted if set(probes) & set(OF_LAYERS) else Context
    context, known = view(run, seed=seed, budget=budget), discover()[0]
    return {path: each for name in probes for path, each in intervals(known[name], context).items()}


class _Fitted(Context):
    """Whatever the seed and the budget, what is fitted is fitted to the same prompts."""

    def chunks(
        self, label: str, n: int | None = None, *, length: int | None = None, task: Task | None = None
    ) -> Iterator[Prompt]:
        if label not in FITTED:
            return super().chunks(label, n, length=length, task=task)
        most = DEEP_BUDGET // 2
        return Context(self._run).chunks(label, min(n or most, most), length=length, task=task)


def uncapped(prompts: int) -> AbstractContextManager[None]:
    """Probes that look at fewer prompts than the budget look at so many."""
    modules = (faithfulness, length_generalization, risk, task_costs)
    names = ("PROMPTS", "TUNING_PROMPTS")
    return changed([(module, name, prompts) for module in modules for name in names if hasattr(module, name)])


def enlarged() -> AbstractContextManager[None]:
    """Probes of deep models look at `DEEP_MORE` times as many prompts."""
    caps = {
        head_utilization: ("PROMPTS",),
        layer_algorithm: ("PROMPTS",),
        algorithm_finding: ("TRAINING", "OTHER", "TRAINING_DEAR"),
    }
    return changed(
        [(module, name, DEEP_MORE * getattr(module, name)) for module, names in caps.items() for name in names]
    )


@contextmanager
def changed(constants: Iterable[tuple[ModuleType, str, float]]) -> Iterator[None]:
    """With other values for constants of modules."""
    kept = [(module, name, getattr(module, name)) for module, name, _ in constants]
    try:
        for constant in constants:
            setattr(*constant)
        yield
    finally:
        for constant in kept:
            setattr(*constant)


# --- The journal ------------------------------------------------------------------------------------------------------


_Key: TypeAlias = tuple[str, int, int, bool]


@dataclass(frozen=True)
class Entry:
    """One analysis: of a model, on so many prompts; `truth` is what the intervals of others should hold."""

    model: str
    prompts: int
    seed: int
    truth: bool
    intervals: dict[str, tuple[float, float, float, str]]

    @property
    def key(self) -> _Key:
        """What tells it from others."""
        return self.model, self.prompts, self.seed, self.truth


def read(journal: Path) -> Iterator[Entry]:
    """All that was written; a last line that was cut off is left out."""
    if journal.exists():
        with journal.open() as file:
            yield from (Entry(**json.loads(line)) for line in file if line.endswith("\n"))


def fill(journal: Path, seeds: int, drawn: int, models: Mapping[str, Callable[[], Run]]) -> None:
    """Analyse whatever is not in the journal yet."""
    done = {entry.key for entry in read(journal)}
    for (model, prompts, seed, truth), run, probes in _schedule(seeds, drawn, models):
        if (model, prompts, seed, truth) in done:
            continue
        larger = (enlarged() if model in DEEP else uncapped(prompts)) if truth else nullcontext()
        with larger:
            found = analysed(run, TRUTH_SEED + seed if truth else seed, prompts, probes)
        flat = {path: (e.value, e.low, e.high, e.covers) for path, e in found.items()}
        with journal.open("a") as file:
            file.write(json.dumps(asdict(Entry(model, prompts, seed, truth, flat))) + "\n")


def _schedule(
    seeds: int, drawn: int, models: Mapping[str, Callable[[], Run]]
) -> Iterator[tuple[_Key, Run, Sequence[str]]]:
    """What is analysed: the truths first, then the models in turn, so that it can be stopped at any time."""
    runs = {name: build() for name, build in models.items() if name not in DEEP}
    deep = {name: build() for name, build in models.items() if name in DEEP}
    yield from (((name, MORE * BUDGETS[0], 0, True), run, SAMPLING) for name, run in runs.items())
    yield from (((name, DEEP_MORE * DEEP_BUDGET, 0, True), run, OF_LAYERS) for name, run in deep.items())
    for seed in range(max(seeds, drawn)):
        if seed < seeds:
            for budget in BUDGETS[: 1 + (seed % RARER == 0)]:
                yield from (((name, budget, seed, False), run, SAMPLING) for name, run in runs.items())
            yield from (((name, DEEP_BUDGET, seed, False), run, OF_LAYERS) for name, run in deep.items())
        if seed < drawn:
            for name, pair in drawn_models(seed).items():
                yield from (((name, BUDGETS[0], seed, bool(i)), run, OF_WEIGHTS) for i, run in enumerate(pair))


# --- Judging ----------------------------------------------------------------------------------------------------------


def held(found: Estimate, truth: Estimate) -> bool:
    """Whether the interval holds the truth, which has an interval of its own."""
    above = truth.value > found.value
    side = found.high - found.value if above else found.value - found.low
    error = truth.value - truth.low if above else truth.high - truth.value
    return bool(abs(truth.value - found.value) <= math.hypot(side, error) * (1 + 1e-9))


def count(entries: Iterable[Entry]) -> list[Coverage]:
    """Of every model, of every interval by its path without numbers: how often it held the truth."""
    truths: dict[tuple[str, int], dict[str, Estimate]] = {}
    repetitions: list[Entry] = []
    for entry in entries:
        if entry.truth:
            truths[entry.model, entry.seed] = {path: Estimate(*each) for path, each in entry.intervals.items()}
        else:
            repetitions.append(entry)
    hits: dict[tuple[str, str, int, str], list[int]] = {}
    for entry in repetitions:
        truth = truths.get((entry.model, entry.seed if entry.model in {*PERTURBED, *COURSES} else 0), {})
        for path, ends in entry.intervals.items():
            found = Estimate(*ends)
            if path in truth and _asked(entry.model, path, found, truth[path]):
                key = collapsed(path), found.covers, entry.prompts, entry.model
                hits.setdefault(key, []).append(held(found, truth[path]))
    return [
        Coverage(path, covers, prompts, sum(each), len(each), model)
        for (path, covers, prompts, model), each in sorted(hits.items())
    ]


def _asked(model: str, path: str, found: Estimate, truth: Estimate) -> bool:
    """Whether there is an interval, and the truth is one of what it covers."""
    finite = np.isfinite([found.low, found.high, truth.low, truth.high]).all()
    if not finite or found.high - found.low <= ROUNDING * abs(found.value):
        return False
    if found.covers == "measurement":
        return (model in PERTURBED) != bool(OF_MU.match(path))
    of = PERTURBED if found.covers == "KQ's diagonal" else COURSES if found.covers in OF_COURSES else None
    return model in of if of else model not in {*PERTURBED, *COURSES}


def summed(rows: Iterable[Coverage]) -> list[Coverage]:
    """Over all models."""
    totals: dict[tuple[str, str, int], list[Coverage]] = {}
    for row in rows:
        totals.setdefault((row.estimate, row.covers, row.prompts), []).append(row)
    return [
        Coverage(*key, sum(row.held for row in of), sum(row.of for row in of), f"{len(of)} models")
        for key, of in totals.items()
    ]


def measure(
    work: Path, seeds: int = 150, drawn: int = 2_000, models: Mapping[str, Callable[[], Run]] | None = None
) -> list[Coverage]:
    """How often every interval held the truth, model by model; what is in `work` already is not repeated.

    Args:
        work: folder of the journal.
        seeds: repetitions of every model at the smaller budget.
        drawn: repetitions of those that are drawn anew.
        models: None means those of one layer that are planted.
    """
    work.mkdir(parents=True, exist_ok=True)
    fill(work / "journal.jsonl", seeds, drawn, MODELS if models is None else models)
    return count(read(work / "journal.jsonl"))


def table(rows: Sequence[Coverage]) -> str:
    """One line an interval and budget: over all models, and the model where it is furthest from 95 %."""
    lines = [f"{'interval':58} {'covers':14} {'prompts':>7} {'held/of':>13} {'%':>6}  worst model"]
    for total in summed(rows):
        of = [r for r in rows if (r.estimate, r.covers, r.prompts) == (total.estimate, total.covers, total.prompts)]
        worst = max(of, key=lambda row: abs(row.held / row.of - 0.95) / math.sqrt(0.0475 / row.of))
        lines.append(
            f"{total.estimate:58} {total.covers:14} {total.prompts:7} {f'{total.held}/{total.of}':>13} "
            f"{total.held / total.of:6.1%}  {worst.models}: {worst.held}/{worst.of} {worst.held / worst.of:.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the journal")
    parser.add_argument("--seeds", type=int, default=150, help="repetitions of each model at the smaller budget")
    parser.add_argument("--drawn", type=int, default=2_000, help="repetitions of models that are drawn anew")
    parser.add_argument("--trained", type=Path, nargs="*", default=(), help="folders of trained runs")
    parser.add_argument(
        "--models", nargs="*", default=(), choices=[*MODELS, *DEEP], help="of the planted ones, these only"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given.work, given.seeds, given.drawn, models_of(given.trained, given.models))
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")
    print(table(rows))


if __name__ == "__main__":
    main()
