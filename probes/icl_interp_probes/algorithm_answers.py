"""What a model and known algorithms answer to the same prompts, and how far they are from each other and the truth.

No probe is declared here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.errors import NumericsError
from icl_interp.estimators import Predictor
from icl_interp.passes import bounds
from icl_interp.probing import Context, Estimate, mean_of, ratio_of
from icl_interp.tasks import Prompt
from icl_interp_probes.known_algorithms import (
    DEAR,
    PREPROCESSED,
    Members,
    nearest_family,
    ordinary,
    steepness,
)
from icl_interp_probes.prompt_kinds import Kind
from icl_interp_probes.shown import extreme

Each = Float[np.ndarray, "prompts"]


@dataclass(frozen=True, eq=False)
class Answers:
    """To prompts of one kind, nothing where the model has none.

    Args:
        nearest, best: members of each family: nearest to the model, and of least squared error.
        model: ŷ.
        truth: the responses.
        by_member: predictions of each member, those of dear families to the first prompts only.
        ordinary: the prompts that distances are over.
        clipped: the part of the model's predictions that was beyond the bound; NaN if it has none.
        undefined: why the model has no predictions, or nothing.
    """

    nearest: Members
    best: Members
    model: Each = field(default_factory=lambda: np.empty(0))
    truth: Each = field(default_factory=lambda: np.empty(0))
    by_member: dict[Predictor, Each] = field(default_factory=dict)
    ordinary: Bool[np.ndarray, "prompts"] = field(default_factory=lambda: np.empty(0, dtype=bool))
    clipped: float = np.nan
    undefined: str = ""

    @classmethod
    def collect(
        cls, context: Context, kind: Kind, nearest: Members, best: Members, *, energy: float, prompts: int, few: int
    ) -> Answers:
        """To so many prompts, and so few of families that are dear; clipped to `passes.bounds`.  Needs FORWARD."""
        bound = partial(bounds, energy=energy)
        asked: dict[Predictor, int] = dict.fromkeys((context.predict, _truth, bound, _steepness), prompts)
        for members in (nearest, best):
            asked |= {member: few if family in DEAR else prompts for family, member in members.items()}
        try:
            each = _asked(context, kind, asked)
        except NumericsError as error:
            return cls(nearest, best, undefined=str(error))
        truth, most, steep = each.pop(_truth), each.pop(bound), torch.from_numpy(each.pop(_steepness))
        clipped = np.mean(np.abs(each[context.predict]) > most).item()
        each = {predictor: np.clip(own, -most[: len(own)], most[: len(own)]) for predictor, own in each.items()}
        return cls(nearest, best, each.pop(context.predict), truth, each, ordinary(steep).numpy(), clipped)

    def nearest_family(self, *, but: str = "") -> str:
        """The family whose nearest member misses least of the model; of all `but` one."""
        return nearest_family({family: missed for family, missed in self._missed().items() if family != but})

    def distance(self) -> list[Estimate]:
        """E(ŷ − a)²/E ŷ² of each family's nearest member, over ordinary prompts."""
        energy = self.model[self.ordinary] ** 2
        return [_size(ratio_of(missed, energy[: len(missed)])) for missed in self._missed().values()]

    def ratio(self) -> Estimate:
        """Distance to GD on x̃ over the least distance to another family: the greatest of the ratios to each."""
        missed = self._missed()
        own = missed.pop(PREPROCESSED)
        return _size(extreme(max, [_over(own[: len(other)], other) for other in missed.values()]))

    def excess(self) -> list[Estimate]:
        """Mean squared error of the model, of the best members, and of predicting zero."""
        errors = [self._error(self.model), *map(self._error, self._bests()), self.truth**2]
        return [_size(mean_of(error)) for error in errors]

    def difference(self) -> list[Estimate]:
        """The model's mean squared error minus that of each best member."""
        return [mean_of(own - other) for own, other in self._pairs()]

    def gain(self) -> list[Estimate]:
        """The same, relative to the member's."""
        return [ratio_of(own - other, other) for own, other in self._pairs()]

    def _missed(self) -> dict[str, Each]:
        """Squared differences from the nearest members, on ordinary prompts."""
        return {
            family: ((self.model[: len(a)] - a) ** 2)[self.ordinary[: len(a)]]
            for family, a in self._answers(self.nearest).items()
        }

    def _bests(self) -> list[Each]:
        return list(self._answers(self.best).values())

    def _pairs(self) -> list[tuple[Each, Each]]:
        own = self._error(self.model)
        return [(own[: len(a)], self._error(a)) for a in self._bests()]

    def _answers(self, members: Members) -> dict[str, Each]:
        return {family: self.by_member.get(member, np.empty(0)) for family, member in members.items()}

    def _error(self, answers: Each) -> Each:
        return (answers - self.truth[: len(answers)]) ** 2


def _asked(context: Context, kind: Kind, asked: dict[Predictor, int]) -> dict[Predictor, Each]:
    """What each predictor says of so many prompts of this kind, the first ones."""
    parts: dict[Predictor, list[np.ndarray]] = {predictor: [] for predictor in asked}
    seen = 0
    for drawn in context.chunks(kind.name, max(asked.values()), length=kind.length, task=kind.task):
        prompt = kind.edit(drawn)
        for predictor, most in asked.items():
            if len(first := prompt[: max(most - seen, 0)]):
                parts[predictor].append(predictor(first)[:, 0].cpu().numpy())
        seen += len(prompt)
    return {predictor: np.concatenate(each) for predictor, each in parts.items()}


def _size(estimate: Estimate) -> Estimate:
    """Of what cannot be negative."""
    return estimate.map(lambda value: max(value, 0.0))


def _over(own: Each, other: Each) -> Estimate:
    """The ratio of their means, infinite over nothing."""
    if own.any() and not other.any():
        return Estimate(np.inf, np.inf, np.inf, "prompts")
    return ratio_of(own, other)


def _steepness(prompt: Prompt) -> Float[Tensor, "batch 1"]:
    return steepness(prompt)[:, None]


def _truth(prompt: Prompt) -> Float[Tensor, "batch outputs"]:
    return prompt.y_q
