"""What preprocessing is worth on sparse regression, and where it costs (arXiv 2408.04532): estimators, no model.

Gradient descent on x̃ = r̂ ∘ x beside that on x and ridge, over lengths, noises and numbers of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from icl_interp import theory
from icl_interp.probing import Estimate, Table, Text, Threshold, mean_of, ratio_of
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.deep_readings import (
    PLAIN,
    PREPROCESSED,
    RIDGE,
    TUNING,
    Errors,
    descents,
    excesses,
    named,
    ridge,
)
from icl_interp.reproduce.lengths import count
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare, within
from icl_interp.tasks import SparseRegression

DIM, SPARSITY = 16, 4
SETTINGS = ((10, 0.0), (10, 0.5), (20, 0.5), (40, 0.5), (40, 1.0), (80, 0.5), (40, 0.1), (40, 0.0))  # (L, σ)
STEPS = (1, 5, 20)
NOISY = tuple(setting for setting in SETTINGS if setting[0] < DIM or setting[1] >= 0.5)

LESS = Threshold("the paired difference has to be negative beyond its error", high=0.0)

Setting = tuple[int, float]
Difference = Callable[[Errors], Float[np.ndarray, "prompts"]]


@recipe(
    "sparse-risk",
    "Preprocessed gradient descent beside gradient descent and ridge",
    "arXiv 2408.04532, sections 4 and 5",
)
def sparse_risk(bench: Bench) -> Made:
    """A table of excess risks, and who has the least where."""
    found = {setting: _measured(bench, *setting) for setting in SETTINGS}
    ridgeless = SparseRegression(DIM, SPARSITY, 10, noise_var=0.0)
    exact = excesses(bench, "sparse-risk, ridge", ridgeless, {RIDGE: ridge(bench, ridgeless)})[RIDGE]
    return [*_claims(found), _ridge_claim(mean_of(exact))], [
        _table(found),
        Text(
            f"E‖ŵ − w‖² at d = {DIM}, s = {SPARSITY}, E‖w‖² = 1, on {count(bench):,} prompts a row, the same "
            "for all. Each number of steps has its own best rate, relative to 1/λ_max of its prompt and chosen on "
            f"{TUNING:,} others; ridge has λ = dσ², the best there is. Lasso, matching pursuit and Bayes are in "
            "benchmarks/results/sparse_risks.md."
        ),
    ]


def _measured(bench: Bench, length: int, noise: float) -> Errors:
    task = SparseRegression(DIM, SPARSITY, length, noise**2)
    predictors = {RIDGE: ridge(bench, task), **descents(bench, task, STEPS)}
    return excesses(bench, f"sparse-risk, {length}, {noise}", task, predictors, count(bench))


def _claims(found: dict[Setting, Errors]) -> list[Claim]:
    few = _most(found, SETTINGS, lambda e: e[named(PREPROCESSED, 1)] - e[named(PLAIN, 1)])
    noisy = _most(found, NOISY, _against_best)
    everywhere = _most(found, SETTINGS, _against_best)
    loses = [setting for setting in SETTINGS if LESS.judge(mean_of(_against_best(found[setting]))) == "fails"]
    return [
        compare(
            "Preprocessed gradient descent does better than gradient descent and ridge, with fewer demonstrations than "
            "covariates or with noise",
            noisy[1],
            LESS,
            f"At its best number of steps, minus the least of the others' at theirs. It does least better at "
            f"{_where(noisy[0])}.",
        ),
        compare(
            "One step does better than one step without preprocessing",
            few[1],
            LESS,
            f"Excess risk minus that of gradient descent; of all settings the largest, at {_where(few[0])}.",
        ),
        compare(
            "It does better whatever the noise and the length",
            everywhere[1],
            LESS,
            f"It loses at {' and at '.join(map(_where, loses)) or 'no setting'}: with little noise and more "
            "demonstrations than covariates others come to the truth, while weights that were shrunk take many steps.",
            otherwise="does_not_hold",
        ),
    ]


def _ridge_claim(found: Estimate) -> Claim:
    exact = theory.ridgeless_excess_risk(DIM, 10)
    return compare(
        "Ridge without noise has 1 − L/d while L < d",
        found,
        within(0.03, "three standard errors of 40,000 prompts", exact),
        f"L = 10, d = {DIM}; in closed form {exact:g}.",
    )


def _least(errors: Errors, names: list[str]) -> np.ndarray:
    """The errors of whoever has the least mean."""
    return min((errors[name] for name in names), key=lambda each: each.mean())


def _against_best(errors: Errors) -> np.ndarray:
    """Of preprocessed gradient descent, minus those of the best of the others; each at its best number of steps."""
    own = _least(errors, [named(PREPROCESSED, steps) for steps in STEPS])
    return own - _least(errors, [RIDGE, *(named(PLAIN, steps) for steps in STEPS)])


def _most(
    found: dict[Setting, Errors], settings: tuple[Setting, ...], difference: Difference
) -> tuple[Setting, Estimate]:
    """Where a difference is largest, and its mean there."""
    means = {setting: mean_of(difference(found[setting])) for setting in settings}
    where = max(means, key=lambda setting: means[setting].value)
    return where, means[where]


def _where(setting: Setting) -> str:
    return f"L = {setting[0]}, σ = {setting[1]:g}"


def _table(found: dict[Setting, Errors]) -> Table:
    names = list(found[SETTINGS[0]])
    rows = []
    for (length, noise), errors in found.items():
        own, others = (
            _least(errors, [name for name in names if name.startswith(PREPROCESSED) == which])
            for which in (True, False)
        )
        gain = ratio_of(own - others, others) if others.mean() > 1e-9 else None
        rows.append((length, f"{noise:g}", *(mean_of(errors[name]) for name in names), gain))
    return Table(
        ("L", "σ", *names, "GD on x̃, at its best, over the best of the others, − 1"),
        tuple(rows),
        alt="Excess risks of ridge, gradient descent and preprocessed gradient descent for eight lengths and noises, "
        "and how much less the last one has than the best of the others.",
        title="Excess risks",
    )
