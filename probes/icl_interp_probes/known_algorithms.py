"""Algorithms that a deep model may be, each family with the member that comes nearest to given answers.

Of gradient descent, on x and on x̃ = r̂ ∘ x (arXiv 2408.04532), steps and rate are chosen, and whether the rate is one
for all prompts or relative to each prompt's 1/λ_max; of Newton's iterations (arXiv 2310.17086) their number; of ridge
and Lasso the penalty.  Answers may be a model's predictions (which member is the model most like?) or the responses
(which member predicts best?).

All of gradient descent and ridge are filters of the eigenvalues of X̂ᵀX̂/L, so that after one decomposition a prompt a
member of the grid costs O(d).  No probe is declared here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.estimators import (
    GradientSteps,
    Lasso,
    NewtonSteps,
    OrthogonalMatchingPursuit,
    Predictor,
    Ridge,
    SparseBayes,
    best_lasso,
    best_ridge,
    preprocess,
)
from icl_interp.probing import NotApplicable
from icl_interp.tasks import LinearRegression, Prompt, SparseRegression, Task

PLAIN, PREPROCESSED, NEWTON, RIDGE = "GD on x", "GD on x̃", "Newton", "ridge"
LASSO, PURSUIT, BAYES = "Lasso", "matching pursuit", "Bayes"
DEAR = (LASSO, PURSUIT, BAYES)  # from half a millisecond to several a prompt

STEPS = (1, 2, 3, 5, 10, 20)  # of gradient descent
NEWTON_STEPS = 8
RATES = np.geomspace(0.02, 1.98, 116)
"""Of gradient descent relative to 1/λ_max of each prompt, up to where it ceases to converge; 4 % apart."""
SHARED_RATES = np.geomspace(0.001, 4.0, 208)
"""The same for all prompts, in units of 1/λ_max of the median prompt; 4 % apart."""
RIDGE_PENALTIES = np.geomspace(1e-4, 1e2, 61)
"""In units of L·E[x²], the mean of the eigenvalues of XᵀX."""
ORDINARY = 0.99  # of prompts: those that distances are over
MOST_SUPPORTS = 5_000  # of a Bayes predictor that is compared with: it takes a millisecond for some 1,200

_AT_ONCE, _TINY = 2**17, 1e-300  # numbers; and what to divide by rather than by zero

Answers = Float[Tensor, "batch 1"]
Members = dict[str, Predictor]  # one of each family


@dataclass(frozen=True, eq=False)
class Given:
    """Answers to prompts, of a model or as they should be.

    Args:
        prompt: the prompts.
        answers: one of each.
        bound: predictions are clipped to ±bound before they are compared (`passes.bounds`).
    """

    prompt: Prompt
    answers: Answers
    bound: Float[Tensor, "batch 1"]

    def missed(self, own: Float[Tensor, "*members batch 1"]) -> Float[Tensor, "*members batch"]:
        """(answer − own)² of each prompt."""
        return (own.clamp(-self.bound, self.bound) - self.answers).square()[..., 0]

    def distance(self, own: Float[Tensor, "*members batch 1"]) -> Float[Tensor, "*members"]:
        """E(answer − own)²/E answer², infinite where it is too large to be computed."""
        return (self.missed(own).mean(-1) / self.answers.square().mean()).nan_to_num(np.inf)

    def __getitem__(self, index: slice | Tensor) -> Given:
        return Given(self.prompt[index], self.answers[index], self.bound[index])


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was found on tuning prompts.

    Args:
        members: of each family, the member nearest to the answers.
        distance: theirs, E(answer − its)²/E answer², on the tuning prompts.
        nearest: the family that comes nearest.
        by_steps: the least distance of gradient descent on x, and on x̃, after each of `STEPS` steps.
    """

    members: Members
    distance: dict[str, float]
    nearest: str
    by_steps: Float[np.ndarray, "2 steps"]


def fitted(task: Task, given: Given, few: int) -> Fitted:
    """Of every family that is defined for `task` the member nearest to the answers given.

    Args:
        task: the model's.
        given: answers to tuning prompts.
        few: of these prompts, for families that are dear.

    Raises:
        NotApplicable: answers that are all zero, or most prompts.
    """
    if not given.answers.any():
        raise NotApplicable("the model answers zero to every prompt: it is no algorithm")
    descents = [_descents(given, flag) for flag in (False, True)]
    plain, preprocessed = (_least(found)[1] for found in descents)
    members: Members = {PLAIN: plain, PREPROCESSED: preprocessed, NEWTON: _newton(given), RIDGE: _ridge(task, given)}
    members |= _dear(task, given[:few])
    seen = {family: given[:few] if family in DEAR else given for family in members}
    answers = {family: member(seen[family].prompt) for family, member in members.items()}
    return Fitted(
        members=members,
        distance={family: seen[family].distance(own).item() for family, own in answers.items()},
        nearest=nearest_family({family: seen[family].missed(own).cpu().numpy() for family, own in answers.items()}),
        by_steps=np.array([[_least(f for f in group if f[1].steps == t)[0] for t in STEPS] for group in descents]),
    )


def nearest_family(missed: dict[str, Float[np.ndarray, "prompts"]]) -> str:
    """Which of several families misses least, given (answer − its)² of each prompt.

    What is known of dear families, on the first prompts only, is compared with what others miss of the same.
    """
    dear = [family for family in missed if family in DEAR and len(missed[family])]  # of very few none may be ordinary
    found = min((family for family in missed if family not in DEAR), key=lambda family: missed[family].mean())
    for family in dear:
        if missed[family].mean() < missed[found][: len(missed[family])].mean():
            found = family
    return found


def steepness(prompt: Prompt) -> Float[Tensor, "batch"]:
    """λ_max of X̃ᵀX̃/L, by which `ordinary` prompts are told."""
    x = preprocess(prompt).x.double()
    return torch.linalg.eigvalsh(x.mT @ x / prompt.length)[:, -1]


def ordinary(steepness: Float[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """The prompts that distances are over: all but 1 % of them, where λ_max of X̃ᵀX̃/L is largest.

    With one rate for all prompts descents on x̃ diverge on a few of those, which would decide every mean square: even
    clipped to `passes.bounds`, of constructions with noise on their weights 32 to 87 % of 95 % intervals held it.
    Risks are over all prompts.
    """
    return steepness <= steepness.quantile(ORDINARY)


def left_out(task: Task) -> str:
    """Which families are not compared with, and why; empty if all are."""
    if not isinstance(task, SparseRegression):
        bayes = "ridge is Bayes here" if isinstance(task, LinearRegression) else "Bayes is not known"
        return f"{PURSUIT.capitalize()} is left out, for this is no task of sparse regression; {bayes}."
    if task.sparsity == task.dim:
        return "Ridge is Bayes here, as no coefficient is zero."
    if (supports := comb(task.dim, task.sparsity)) > MOST_SUPPORTS:
        return f"The Bayes predictor is left out: it goes through {supports:,} supports, more than {MOST_SUPPORTS:,}."
    return ""


def described(member: Predictor) -> str:
    """A member by its parameters."""
    match member:
        case GradientSteps(steps, rate, _, relative):
            return f"{_counted(steps)}, η = {rate:.3g}" + ("/λ_max of each prompt" if relative else "")
        case NewtonSteps(steps):
            return _counted(steps)
        case Ridge(penalty):
            return f"λ = {penalty:.3g}"
        case Lasso(penalty):
            return f"penalty {penalty:.3g}"
        case OrthogonalMatchingPursuit(sparsity):
            return f"{sparsity} covariates"
        case SparseBayes(task):
            return f"{task.sparsity} of {task.dim}, σ² = {task.noise_var:g}"
        case _:
            return "as the task has it"


def _counted(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"


def _least(found: Iterable[tuple[float, GradientSteps]]) -> tuple[float, GradientSteps]:
    return min(found, key=lambda each: each[0])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """X̂ᵀX̂/L = Σ λ_i u_i u_iᵀ of each prompt; what a filter f of it answers is Σ_i f(λ_i)·(u_iᵀX̂ᵀy/L)·(u_iᵀx̂_q).

    Args:
        values: λ_i, ascending.
        moments: (u_iᵀX̂ᵀy/L)·(u_iᵀx̂_q).
    """

    values: Float[Tensor, "batch dim"]
    moments: Float[Tensor, "batch dim"]

    @classmethod
    def of(cls, prompt: Prompt) -> Spectrum:
        """In float64."""
        x, y, x_q = prompt.x.double(), prompt.y.double(), prompt.x_q.double()
        values, vectors = torch.linalg.eigh(x.mT @ x / prompt.length)
        moments = (vectors.mT @ (x.mT @ y) / prompt.length)[..., 0]
        return cls(values.clamp(min=0.0), moments * (vectors.mT @ x_q[..., None])[..., 0])

    def descents(self, steps: int, rates: Float[Tensor, "rates #batch 1"]) -> Float[Tensor, "rates batch 1"]:
        """After so many steps of gradient descent, at each rate: f(λ) = (1 − (1 − ηλ)^t)/λ.

        Where λ is zero, up to rounding, so are the moments, and whatever f is there makes no difference.
        """
        filtered = (1 - (1 - rates * self.values) ** steps) / self.values.clamp(min=_TINY)
        return (filtered * self.moments).sum(-1, keepdim=True)

    def ridges(self, penalties: Float[Tensor, "penalties"]) -> Float[Tensor, "penalties batch 1"]:
        """With each penalty, in units of L: f(λ) = 1/(λ + penalty)."""
        return (self.moments / (self.values + penalties[:, None, None])).sum(-1, keepdim=True)


def _descents(given: Given, preprocessed: bool) -> list[tuple[float, GradientSteps]]:
    """For each number of steps, and both kinds of rates, the best rate."""
    spectrum = Spectrum.of(preprocess(given.prompt) if preprocessed else given.prompt)
    largest = spectrum.values[:, -1:]
    if not (typical := largest.median().item()) > 0:
        raise NotApplicable("covariates or labels of most prompts are all zero")
    grids = [(True, RATES, 1 / largest.clamp(min=_TINY)), (False, SHARED_RATES / typical, torch.ones_like(largest))]
    found: list[tuple[float, GradientSteps]] = []
    for relative, rates, unit in grids:
        each = torch.from_numpy(rates).to(unit)[:, None, None] * unit
        for steps in STEPS:
            parts = [given.distance(spectrum.descents(steps, some)) for some in each.split(_at_once(spectrum))]
            distance, best = torch.cat(parts).min(0)
            found.append((distance.item(), GradientSteps(steps, float(rates[best]), preprocessed, relative)))
    return found


def _at_once(spectrum: Spectrum) -> int:
    """How many members of a grid: so many that what they answer stays in the processor's cache."""
    return max(1, _AT_ONCE // spectrum.values.numel())


def _newton(given: Given) -> NewtonSteps:
    paths = NewtonSteps(NEWTON_STEPS).path(given.prompt)
    return NewtonSteps(1 + int(given.distance(paths).argmin()))


def _ridge(task: Task, given: Given) -> Predictor:
    """The best of a grid, or the ridge that is best for the task if that is nearer still."""
    prompt, spectrum, best = given.prompt, Spectrum.of(given.prompt), best_ridge(task, given.prompt)
    penalties = torch.from_numpy(RIDGE_PENALTIES).to(prompt.x.device) * prompt.x.square().mean()
    distances = [given.distance(spectrum.ridges(some)) for some in penalties.split(_at_once(spectrum))]
    distance, at = torch.cat(distances).min(0)
    return best if given.distance(best(prompt)) <= distance else Ridge(prompt.length * penalties[at].item())


def _dear(task: Task, given: Given) -> Members:
    """Those that are solved a prompt at a time, or support by support; the Lasso is that of least squared error."""
    members: Members = {LASSO: best_lasso(replace(given.prompt, y_q=given.answers))}
    if isinstance(task, SparseRegression):
        members[PURSUIT] = OrthogonalMatchingPursuit(task.sparsity)
        if not left_out(task):
            members[BAYES] = SparseBayes(task)
    return members
