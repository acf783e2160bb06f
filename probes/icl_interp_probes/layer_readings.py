"""What a deep model predicts after each layer, and which algorithm answers so.  No probe is declared here.

Algorithms are gradient descent on x̃ = r̂ ∘ x (arXiv 2408.04532) and on x, and Newton's iterations (arXiv 2310.17086), on
a grid of steps and rates.  The member of a family that comes nearest to a reading is found on prompts for tuning.

Distances are over `ordinary` prompts, risks over all: of a construction with noise on its weights 22 of 23 intervals of
95 % from 512 prompts held the truth so, and 12 of 40 where distances were over all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.estimators import GradientSteps, NewtonSteps, preprocess
from icl_interp.probing import Estimate, mean_of, ratio_of, rounded
from icl_interp.tasks import Prompt
from icl_interp_probes.known_algorithms import (
    NEWTON,
    NEWTON_STEPS,
    PLAIN,
    PREPROCESSED,
    RATES,
    SHARED_RATES,
    Spectrum,
    described,
    ordinary,
)
from icl_interp_probes.layer_streams import Stream
from icl_interp_probes.linear_probes import fit_probes, read_beside
from icl_interp_probes.shown import KEPT
from icl_interp_probes.task_steps import shortened

FAMILIES = (PREPROCESSED, PLAIN, NEWTON)  # the one that claims are about comes first
STEPS = (1, 2, 3, 4, 5, 6, 8, 12, 20)  # of gradient descent, and as many as there are layers
TUNING = 2_048  # prompts, the first ordinary ones of those that are fitted to
NOTHING = 0.01  # what is read reads nothing yet if its mean square is less of that after the last layer

Algorithm: TypeAlias = GradientSteps | NewtonSteps
Answers: TypeAlias = Float[Tensor, "prompts candidates"]
Batch: TypeAlias = tuple[Sequence[Algorithm], Answers]
Read: TypeAlias = Callable[[Answers], Answers]
_AT_ONCE, _TINY = 2**17, 1e-300  # numbers that stay in the processor's cache; what to divide by rather than by zero


class Answering:
    """The algorithms' answers to some prompts."""

    def __init__(self, prompt: Prompt):
        self._prompt = prompt
        self._spectra = {False: Spectrum.of(prompt), True: Spectrum.of(preprocess(prompt))}

    def __call__(self, algorithm: Algorithm) -> Float[Tensor, " prompts"]:
        """What `algorithm` answers, after its last step."""
        if isinstance(algorithm, NewtonSteps):
            return algorithm(self._prompt)[:, 0]
        rate, steps = np.array([algorithm.rate]), algorithm.steps
        return self._descents(algorithm.preprocessed, [steps], rate, algorithm.relative)[steps][:, 0]

    @property
    def steepness(self) -> Float[Tensor, " prompts"]:
        """λ_max of X̃ᵀX̃/L."""
        return self._spectra[True].values[:, -1]

    def grid(self, family: str, steps: Sequence[int]) -> Iterator[Batch]:
        """Candidates of a family and their answers, in batches of so many steps of either kind of rate."""
        if family == NEWTON:
            path = NewtonSteps(NEWTON_STEPS).path(self._prompt)
            yield from (([NewtonSteps(k)], answers) for k, answers in enumerate(path, 1))
            return
        preprocessed = family == PREPROCESSED
        typical = self._spectra[preprocessed].values[:, -1].median().clamp(min=_TINY).item()
        for relative, rates in ((True, RATES), (False, SHARED_RATES / typical)):
            for count, answers in self._descents(preprocessed, steps, rates, relative).items():
                yield [GradientSteps(count, rate, preprocessed, relative) for rate in rates.tolist()], answers

    def _descents(
        self, preprocessed: bool, steps: Sequence[int], rates: Float[np.ndarray, " rates"], relative: bool
    ) -> dict[int, Float[Tensor, "prompts rates"]]:
        """Answers of gradient descent after each of `steps`, at each of `rates`: a filter (1 − (1 − ηλ)^t)/λ of λ."""
        spectrum = self._spectra[preprocessed]
        values, scaled = spectrum.values, spectrum.moments / spectrum.values.clamp(min=_TINY)
        unit = 1 / values[:, -1:].clamp(min=_TINY) if relative else torch.ones_like(values[:, -1:])
        answers: dict[int, list[Tensor]] = {count: [] for count in steps}
        for some in torch.from_numpy(rates).to(unit).split(max(1, _AT_ONCE // values.numel())):
            factor = 1 - some[:, None, None] * unit * values
            left = torch.ones_like(factor)
            for count in range(1, max(steps) + 1):
                left *= factor
                if count in answers:
                    answers[count].append(((1 - left) * scaled).sum(-1).mT)
        return {count: torch.cat(parts, 1) for count, parts in answers.items()}


def nearest(
    readings: Float[Tensor, "readings prompts"], grid: Iterable[Batch], read: Read = lambda answers: answers
) -> list[Algorithm]:
    """For each of `readings` the candidate whose answers, as they are read, have the least squared distance from it."""
    best: dict[int, tuple[float, Algorithm]] = {}
    for candidates, answers in grid:
        distances = (readings[:, :, None] - read(answers)).square().mean(1).nan_to_num(torch.inf, torch.inf)
        for i, (least, at) in enumerate(zip(*distances.min(1), strict=True)):
            if i not in best or least < best[i][0]:
                best[i] = least.item(), candidates[int(at)]
    return [best[i][1] for i in range(len(readings))]


@dataclass(frozen=True, eq=False)
class Reading:
    """What is predicted after each layer, read in one way, and the nearest member of each of `FAMILIES`.

    Args:
        size: mean square of what is read.
        risk: its mean squared error.
        members: the nearest.
        distance: of theirs from what is read, mean squared difference over mean square, on ordinary prompts.
        risks: theirs, as they are read.
        ratio: distance to GD on x̃ over that to each of the other families.
    """

    size: tuple[float, ...]
    risk: tuple[Estimate, ...]
    members: tuple[tuple[str, ...], ...]
    distance: tuple[tuple[Estimate, ...], ...]
    risks: tuple[tuple[Estimate, ...], ...]
    ratio: tuple[tuple[Estimate, ...], ...]

    @property
    def reads(self) -> tuple[bool, ...]:
        """After which layers anything is predicted: after the last one in any case."""
        return (*(size > NOTHING * self.size[-1] for size in self.size[:-1]), True)

    @classmethod
    def of(
        cls,
        read: Float[Tensor, "layers prompts"],
        y: Float[Tensor, " prompts"],
        members: Sequence[Sequence[Algorithm]],
        answers: Sequence[Sequence[Float[Tensor, " prompts"]]],
        ordinary: Bool[Tensor, " prompts"],
    ) -> Reading:
        """Members and their answers by family, then layer; distances are over `ordinary` prompts."""
        own, truth = read.cpu().numpy(), y.cpu().numpy()
        theirs = np.array([[answer.cpu().numpy() for answer in family] for family in answers]).swapaxes(0, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # descents that diverge
            errors, missed = (theirs - truth) ** 2, ((own[:, None] - theirs) ** 2)[..., ordinary.cpu().numpy()]
        squares = own[:, ordinary.cpu().numpy()] ** 2
        return cls(
            size=tuple(rounded((own**2).mean(1), KEPT).tolist()),
            risk=tuple(shortened(mean_of(each)) for each in (own - truth) ** 2),
            members=tuple(tuple(map(described, layer)) for layer in zip(*members, strict=True)),
            distance=tuple(
                tuple(shortened(ratio_of(each, size)) for each in layer)
                for layer, size in zip(missed, squares, strict=True)
            ),
            risks=tuple(tuple(shortened(mean_of(each)) for each in layer) for layer in errors),
            ratio=tuple(tuple(shortened(ratio_of(first, each)) for each in others) for first, *others in missed),
        )


class Readings:
    """What is predicted after each layer, read in either way; fitted and tuned on one half of prompts.

    Args:
        fit: the half that is fitted to.
        held: the half that judges.
    """

    def __init__(self, fit: Stream, held: Stream):
        self._fit, self._held = fit, held
        self._answers_of_fit, self._answers_of_held = Answering(fit.prompt), Answering(held.prompt)
        self._ordinary = ordinary(self._answers_of_held.steepness)
        self._tuning = ordinary(self._answers_of_fit.steepness).nonzero()[:TUNING, 0]
        tuning, steps = Answering(fit.prompt[self._tuning]), sorted({*STEPS, *range(1, len(fit.read))})
        self._grids = {family: list(tuning.grid(family, steps)) for family in FAMILIES}

    def by_read_out(self) -> Reading:
        """By the model's own, the logit lens: compared with the answers themselves."""
        members = [nearest(self._fit.read[1:, self._tuning], self._grids[family]) for family in FAMILIES]
        answers = [[self._answers_of_held(member) for member in family] for family in members]
        return Reading.of(self._held.read[1:], self._held.y, members, answers, self._ordinary)

    def by_probe(self) -> Reading:
        """By a linear probe for y_q: compared with what the same probe reads off the algorithm's own stream."""
        fit, held = self._fit, self._held
        probes = [fit_probes(stream, fit.y[:, None])[0] for stream in fit.at_query[1:]]
        own, judged = (
            torch.cat([probe(stream) for probe, stream in zip(probes, half.at_query[1:], strict=True)], 1).mT
            for half in (fit, held)
        )
        members: list[list[Algorithm]] = []
        for family in FAMILIES:
            read = partial(read_beside, _beside(fit, family)[self._tuning], target=fit.y[self._tuning])
            members.append(nearest(own[:, self._tuning], self._grids[family], read))
        answers = [
            [self._probed(member, family) for member in layers]
            for family, layers in zip(FAMILIES, members, strict=True)
        ]
        return Reading.of(judged, held.y, members, answers, self._ordinary)

    def _probed(self, member: Algorithm, family: str) -> Float[Tensor, " prompts"]:
        fit, held = (
            torch.cat([_beside(half, family), answer(member)[:, None]], 1)
            for half, answer in ((self._fit, self._answers_of_fit), (self._held, self._answers_of_held))
        )
        (probe,) = fit_probes(fit, self._fit.y[:, None])
        return probe(held)[:, 0]

    def stepwise(self) -> Float[np.ndarray, "families layers"]:
        """Risk of each of `FAMILIES` if every layer were a step, at the rate of least risk for so many.

        The first layer of GD on x̃ preprocesses, and predicts zero; Newton's iterations end with `NEWTON_STEPS`.
        """
        layers = range(1, len(self._fit.read))
        return rounded([[self._risk_after(family, layer) for layer in layers] for family in FAMILIES])

    def _risk_after(self, family: str, layer: int) -> float:
        steps = layer - 1 if family == PREPROCESSED else min(layer, NEWTON_STEPS) if family == NEWTON else layer
        if not steps:
            return self._held.y.square().mean().item()
        of_so_many = [batch for batch in self._grids[family] if batch[0][0].steps == steps]
        (best,) = nearest(self._fit.y[None, self._tuning], of_so_many)
        return (self._answers_of_held(best) - self._held.y).square().mean().item()


def _beside(stream: Stream, family: str) -> Float[Tensor, "prompts features"]:
    """What the algorithm's own stream holds beside the prediction."""
    return torch.cat([stream.prompt.x_q, stream.weighed], 1) if family == PREPROCESSED else stream.prompt.x_q
