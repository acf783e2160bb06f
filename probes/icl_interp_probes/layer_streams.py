"""The residual stream of a deep model at the query, layer by layer, and what linear probes find in it.

The question is whether x̃ = r̂ ∘ x is there (arXiv 2408.04532), beside controls that say what a probe finds anyway (see
`layer_algorithm`).  No probe is declared here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp import passes
from icl_interp.circuits import defined
from icl_interp.estimators import preprocess
from icl_interp.probing import Context, Estimate, mean_of, ratio_of, rounded
from icl_interp.tasks import Prompt
from icl_interp_probes.linear_probes import LinearProbe, fit_probes
from icl_interp_probes.shown import extreme
from icl_interp_probes.task_steps import shortened

WEIGHED, CORRELATIONS, OTHER_PROMPTS, OTHER_PAIRS = TARGETS = ("x̃", "r̂", "x̃ of other prompts", "other pairs r̂_k x_j")
CONTROLS = (OTHER_PROMPTS, OTHER_PAIRS)
PIECE = 512  # prompts that go through the model at once
HELD = 32_000_000  # numbers (256 MB) of the stream of either half

Targets = dict[str, Float[Tensor, "prompts dim"]]


@dataclass(frozen=True, eq=False)
class Stream:
    """Prompts, and the residual stream at their queries: before the first layer (index 0) and after each.

    Args:
        prompt: of one response.
        at_query: float64.
        read: what the model's own read-out makes of it, the logit lens.
    """

    prompt: Prompt
    at_query: Float[Tensor, "layers_and_one prompts d_model"]
    read: Float[Tensor, "layers_and_one prompts"]

    @classmethod
    def draw(cls, context: Context, label: str, n: int) -> Stream:
        """On `n` prompts.  Needs WEIGHTS and TASK.

        Raises:
            NumericsError: the denominator of an activation is next to zero at some prompt.
        """
        prompt, config, weights = context.sample(label, n), context.config, context.weights
        pieces: list[Tensor] = []
        for start in range(0, n, PIECE):
            piece = prompt[start : start + PIECE]
            layers = [stream[:, -1] for stream in passes.residuals(weights, config, piece.z)]
            pieces.append(defined(torch.stack(layers, 1), piece, config.activation))
        at_query = torch.cat(pieces).transpose(0, 1).contiguous()
        return cls(prompt, at_query, passes.read_out(weights, config, at_query)[..., 0])

    @property
    def y(self) -> Float[Tensor, " prompts"]:
        """The responses, y_q."""
        return self.prompt.y_q[:, 0]

    @cached_property
    def weighed(self) -> Float[Tensor, "prompts dim"]:
        """x̃_q."""
        return preprocess(self.prompt).x_q

    def targets(self, rng: np.random.Generator) -> Targets:
        """By `TARGETS`; other prompts are others for each call.

        Other pairs are covariates with the correlation of the one that is half of all away.
        """
        x, y, x_q = self.prompt.x, self.prompt.y, self.prompt.x_q
        r = (x * y).mean(1)
        others = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        return dict(
            zip(TARGETS, (self.weighed, r, self.weighed[others], r.roll(x.shape[2] // 2, 1) * x_q), strict=True)
        )


@dataclass(frozen=True, eq=False)
class Contents:
    """What linear probes read off the stream at the query, before the first layer (index 0) and after each.

    Args:
        explained: of each of `TARGETS`, R² = 1 − Σ errors²/Σ (targets − their mean where the probe was fitted)², over
            the prompts that judge and all coordinates.
        coordinates: R² of each x̃_j.
        selectivity: of x̃ in view of the control that leaves it least, 1 − (1 − R²)/(1 − R² of the control).
        penalties: of the probe for each of `TARGETS`.
    """

    explained: tuple[tuple[Estimate, ...], ...]
    coordinates: Float[np.ndarray, "layers_and_one dim"]
    selectivity: tuple[Estimate, ...]
    penalties: Float[np.ndarray, "layers_and_one targets"]

    @classmethod
    def of(cls, fit: Stream, held: Stream, rng: np.random.Generator) -> Contents:
        """Fitted on one half of the prompts, judged on the other."""
        wanted, truth = fit.targets(rng), held.targets(rng)
        layers = [
            _Layer.of(fit_probes(features, *wanted.values()), seen, wanted, truth)
            for features, seen in zip(fit.at_query, held.at_query, strict=True)
        ]
        return cls(
            explained=tuple(tuple(layer.explained(name) for layer in layers) for name in TARGETS),
            coordinates=rounded([layer.by_coordinate() for layer in layers]),
            selectivity=tuple(extreme(min, [layer.selectivity(name) for name in CONTROLS]) for layer in layers),
            penalties=np.array([layer.penalties for layer in layers]),
        )


@dataclass(frozen=True, eq=False)
class _Layer:
    """Squares, prompt by prompt and by target: of errors, and of what there was to explain."""

    errors: dict[str, Float[np.ndarray, "prompts dim"]]
    totals: dict[str, Float[np.ndarray, "prompts dim"]]
    penalties: tuple[float, ...]

    @classmethod
    def of(
        cls, probes: list[LinearProbe], stream: Float[Tensor, "prompts d_model"], wanted: Targets, truth: Targets
    ) -> _Layer:
        named = dict(zip(TARGETS, probes, strict=True))
        errors = {name: (truth[name] - probe(stream)).square().cpu().numpy() for name, probe in named.items()}
        totals = {name: (truth[name] - wanted[name].mean(0)).square().cpu().numpy() for name in TARGETS}
        return cls(errors, totals, tuple(probe.penalty for probe in probes))

    def explained(self, name: str) -> Estimate:
        missed = ratio_of(self.errors[name].sum(1), self.totals[name].sum(1))
        return shortened(missed.map(lambda part: 1 - part))

    def by_coordinate(self) -> Float[np.ndarray, " dim"]:
        with np.errstate(invalid="ignore", divide="ignore"):  # a covariate that is always zero
            return 1 - self.errors[WEIGHED].mean(0) / self.totals[WEIGHED].mean(0)

    def selectivity(self, control: str) -> Estimate:
        """One minus a ratio of two ratios of means, by the delta method."""
        (missed, by), (left, by_control) = (self._missed(name) for name in (WEIGHED, control))
        with np.errstate(invalid="ignore", divide="ignore"):  # a control that is there exactly leaves nothing
            ratio = missed / left
            return shortened(mean_of(1 - ratio - (by - ratio * by_control) / left))

    def _missed(self, name: str) -> tuple[np.floating, Float[np.ndarray, "prompts"]]:
        """1 − R², and what each prompt adds to its error."""
        errors, totals = self.errors[name].sum(1), self.totals[name].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            missed = errors.mean() / totals.mean()
            return missed, (errors - missed * totals) / totals.mean()
