"""What preprocessing is worth in sparse regression, and where it costs (arXiv 2408.04532): excess risks of estimators.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/sparse_risks.py [--precision 0.01] [--tuning 4096]

Prompts of `SparseRegression(16, 4)` at several lengths and noises, with a query that carries no noise, so that the mean
squared error is E‖ŵ − w‖².  Every predictor sees the same prompts, and more of them until its standard error is below
`--precision` of its risk (twice that for those that are slow), or below `KNOWN`, or there were `MOST`.

Rates and the Lasso's penalty are those of least squared error on other prompts, from the grids `RATES` and `PENALTIES`;
gradient descent has a rate of its own for each number of steps.  Ridge has λ = dσ², the best that there is; its risk
without noise is known in closed form.  Twenty minutes on one core.  Prints a table, and writes it to
results/sparse_risks.md and all numbers to results/sparse_risks.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from icl_interp import theory
from icl_interp.estimators import (
    PENALTIES,
    RATES,
    OrthogonalMatchingPursuit,
    Predictor,
    bayes,
    best_lasso,
    best_rate,
    best_ridge,
)
from icl_interp.tasks import SparseRegression

RESULTS = Path(__file__).parent / "results"
SETTINGS = ((10, 0.0), (10, 0.5), (20, 0.5), (40, 0.5), (40, 1.0), (80, 0.5), (40, 0.1), (40, 0.0))  # (L, σ)
STEPS = (1, 5, 20)
SLOW = ("Lasso", "OMP", "Bayes")
SLOW_TUNING = 1_000  # prompts for the Lasso's penalty
MOST = {False: 1_000_000, True: 200_000}  # prompts for a predictor, by whether it is slow
CHUNK = 5_000
KNOWN = 1e-5  # a standard error that is small enough, however small the risk


@dataclass(frozen=True)
class Row:
    """One predictor in one setting: its excess risk with its standard error."""

    length: int
    noise: float
    predictor: str
    described: str
    excess: float
    error: float
    prompts: int


def predictors(task: SparseRegression, tuning: int) -> dict[str, Predictor]:
    prompt = task.sample(tuning, generator=torch.Generator().manual_seed(1))
    descents = {
        f"{name}, {steps}": best_rate(steps, prompt, preprocessed=name != "GD")
        for name in ("GD", "preprocessed")
        for steps in STEPS
    }
    slow = {"Lasso": best_lasso(prompt[:SLOW_TUNING]), "OMP": OrthogonalMatchingPursuit(task.sparsity)}
    return {"ridge": best_ridge(task, prompt), **descents, **slow, "Bayes": bayes(task)}


def measured(task: SparseRegression, name: str, predict: Predictor, precision: float) -> Row:
    slow = name in SLOW
    generator, squares = torch.Generator().manual_seed(2), np.zeros(0)
    while True:
        prompt = task.sample(CHUNK, generator=generator)
        squares = np.append(squares, (predict(prompt) - prompt.y_q).double().square().numpy())
        mean, error = squares.mean(), squares.std(ddof=1) / math.sqrt(len(squares))
        if error < max(KNOWN, precision * (1 + slow) * mean) or len(squares) >= MOST[slow]:
            return Row(task.length, task.noise_var**0.5, name, repr(predict), mean, error, len(squares))


def rows(precision: float, tuning: int) -> Iterator[Row]:
    for length, noise in SETTINGS:
        task = SparseRegression(length=length, noise_var=noise**2, query_noise=False)
        for name, predict in predictors(task, tuning).items():
            row = measured(task, name, predict, precision)
            print(f"L {length} σ {noise} {name:>16}: {row.excess:.5f} ± {row.error:.5f}  {row.described}", flush=True)
            yield row
        if noise == 0:
            known = theory.ridgeless_excess_risk(task.dim, length)
            print(f"L {length} σ {noise} ridge in closed form: {known:.5f}", flush=True)


# --- The table -------------------------------------------------------------------------------------------------------


def best(setting: list[Row]) -> str:
    """Who has the least excess risk, and who else may have: within three standard errors of the difference, or 1e-4."""
    least = min(setting, key=lambda row: row.excess)
    margin = {row: max(1e-4, 3 * math.hypot(row.error, least.error)) for row in setting}
    return " or ".join(row.predictor for row in setting if row.excess - least.excess <= margin[row])


def said(row: Row, least: float, precision: float) -> str:
    """The risk, in bold if it is the least, with its standard error where that is not as small as was asked for."""
    number = f"{row.excess:.4f}" if row.excess >= 5e-5 else "0"
    wide = row.error > max(KNOWN, precision * (1 + (row.predictor in SLOW)) * row.excess)
    return (f"**{number}**" if row.excess == least else number) + (f" ± {row.error:.1g}" if wide else "")


def table(found: list[Row], precision: float) -> str:
    """Settings by predictors; in bold the least of those that do not know the law of the task."""
    names = list(dict.fromkeys(row.predictor for row in found))
    lines = [f"| L | σ | {' | '.join(names)} | least of ridge and GD | least but for Bayes |"]
    lines += ["|---:" * (len(names) + 2) + "|---|---|"]
    for length, noise in SETTINGS:
        setting = [row for row in found if (row.length, row.noise) == (length, noise)]
        learned = [row for row in setting if row.predictor != "Bayes"]
        least = min(row.excess for row in learned)
        numbers = [said(row, least, precision) for row in setting]
        winners = best([row for row in learned if row.predictor not in SLOW]), best(learned)
        lines.append(f"| {' | '.join([str(length), f'{noise:g}', *numbers, *winners])} |")
    return "\n".join(lines)


def page(found: list[Row], precision: float) -> str:
    return f"""# Excess risks in sparse regression

d = 16, s = 4, E‖w‖² = 1; E‖ŵ − w‖² by Monte Carlo (`benchmarks/sparse_risks.py`), with standard errors below
{precision:.0%}, of Lasso, OMP and Bayes below {2 * precision:.0%}, where none is given.

- "GD, 5" is five steps of gradient descent, "preprocessed, 5" five steps on r̂ ∘ x, each at the best of {len(RATES)}
  rates from {RATES[0]:.2g} to {RATES[-1]:.3g} relative to 1/λ_max of its prompt.
- Ridge has λ = dσ². The Lasso has the best of {len(PENALTIES)} penalties from {PENALTIES[-1]:g} to {PENALTIES[0]:g}
  of rms(x)·rms(y). OMP knows s. Bayes knows the law of the task.
- In bold the least but for Bayes. "Or" stands between those that are not told apart.

{table(found, precision)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", type=float, default=0.01, help="standard error relative to the risk")
    parser.add_argument("--tuning", type=int, default=4096, help="prompts that rates are chosen on")
    arguments = parser.parse_args()
    found = list(rows(arguments.precision, arguments.tuning))
    grids = {"rates": RATES.tolist(), "penalties": PENALTIES.tolist()}
    data = {"dim": 16, "sparsity": 4, **vars(arguments), **grids, "rows": [asdict(row) for row in found]}
    (RESULTS / "sparse_risks.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "sparse_risks.md").write_text(page(found, arguments.precision))
    print(page(found, arguments.precision))


if __name__ == "__main__":
    main()
