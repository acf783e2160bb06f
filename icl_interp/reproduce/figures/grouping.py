"""Figure 21: four heads on the approximate loss take the places that heads take in a real training (arXiv 2503.12734).

The published code gives (b) σ² = 0.01, where everything else has 0.1, and 1e6 steps of learning rate 0.01 on half of
L̃; the flow to t = 10,000 stands for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from icl_interp.flow import approximate_loss_flow
from icl_interp.manifold import Groups
from icl_interp.probing import Block, Lines, Table, Text, Threshold, exact, mean_of, rounded, thinned
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.readings import Course, groups_of, head_names, heads_of
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.trainings import MAIN

STARTS, HEADS = 8, 4
SPREAD = 0.1  # standard deviation of ω and μ at time 0, as published
NOISE = 0.01  # σ² of the published code
END = 1e4  # the published 1e6 steps of learning rate 0.01
IDLE = 0.05  # a head adds less than this much of what the foremost one adds to η

GAMMA = Threshold("±0.125, read off curves that differ by some 0.005", low=0.115, high=0.135)
ONE_SIZE = Threshold("|ω| differs by 0.1 to 3 % between the heads of a trained run", high=0.1)
EVERY = Threshold("every start", low=1.0)


@recipe("figure-21", "The approximate loss groups heads as training does", "Figure 21", runs=("h4",))
def figure_21(bench: Bench) -> Made:
    """ω and μ of a real training of four heads, and of gradient descent on L̃ with as many."""
    run = bench.run("h4")
    course, heads = Course.of(run), heads_of(bench, run)
    times = np.geomspace(0.1, END, 60)
    flows = [random_flow(seed, times) for seed in range(STARTS)]
    ends = [End(omega[-1], mu[-1]) for omega, mu in flows]
    groups, dummies = groups_of(heads), int(heads.are("dummy").sum())
    claims = [
        *flow_claims(ends),
        compare(
            "In a real training the heads that work take two values too, ω = γ and ω = −γ",
            course.measured(groups.spread),
            ONE_SIZE,
            f"The relative scatter of |ω| over heads; theirs are {', '.join(heads.roles)}.",
        ),
        Claim(
            "Superfluous heads become dummies",
            "shown",
            f"In the real training {dummies} of {len(heads.roles)} after {course.steps[-1]:,} steps. On L̃ "
            f"{sum(end.idle for end in ends)} of the {STARTS * HEADS} heads at t = 10,000: nothing there takes from a "
            "head what it has, as long as the sums over heads of one sign are right.",
        ),
    ]
    return claims, [
        *_real_lines(course, head_names(heads)),
        *_flow_lines(times, *flows[0]),
        _table(ends),
        Text(
            f"On L̃: {HEADS} heads from ω, μ ~ N(0, {SPREAD}²), seeds 0 to {STARTS - 1}, of which the first is drawn; "
            f"d = 5, L = 40, σ² = {NOISE} as in the published code (0.1 in the real training); gradient flow to "
            f"t = {END:,.0f}, which is the published 10⁶ steps of learning rate 0.01."
        ),
    ]


def random_flow(seed: int, times: Float[np.ndarray, "times"]) -> tuple[np.ndarray, np.ndarray]:
    """(ω, μ) of `HEADS` heads on L̃, each (times, heads), from a random start."""
    omega, mu = np.random.default_rng(seed).normal(0, SPREAD, (2, HEADS))
    path = approximate_loss_flow(omega, mu, times=times, dim=MAIN.dim, length=MAIN.length, noise_var=NOISE)
    return path.omega, path.mu


class End:
    """Where heads on L̃ have come to.  Their roles are the signs of ω: all of them are kernels."""

    def __init__(self, omega: Float[np.ndarray, "heads"], mu: Float[np.ndarray, "heads"]):
        self.groups = Groups(omega > 0, omega < 0)
        self.gamma, self.spread = self.groups.gamma(omega, mu), self.groups.spread(omega, mu)
        self.sums = self.groups.positive_sum(omega, mu), self.groups.negative_sum(omega, mu)
        self.idle = int((np.abs(omega * mu) < IDLE * np.abs(omega * mu).max()).sum())

    @property
    def both(self) -> bool:
        """Whether there are heads of either sign."""
        return bool(self.groups.positive.any() and self.groups.negative.any())


def flow_claims(ends: Sequence[End]) -> list[Claim]:
    """What (b) shows."""
    both, worst = sum(end.both for end in ends), max(end.spread for end in ends)
    gammas = np.array([end.gamma for end in ends])
    return [
        compare(
            "On L̃ there are positive and negative heads in the end",
            exact(both / len(ends)),
            EVERY,
            f"From {both} of {len(ends)} random starts.",
        ),
        compare(
            "On L̃ heads take two values, ω = γ and ω = −γ",
            exact(worst),
            ONE_SIZE,
            "The relative scatter of |ω| over heads, where it is largest.",
        ),
        compare(
            "On L̃ |ω| has fallen to 0.125 by t = 10,000",
            mean_of(gammas, covers="starts"),
            GAMMA,
            f"Mean over {len(ends)} starts, which end between {gammas.min():.4f} and {gammas.max():.4f}: "
            "the more uneven the groups, the larger |ω|.",
            paper="0.125",
        ),
    ]


def _real_lines(course: Course, names: tuple[str, ...]) -> list[Block]:
    kept = thinned(course.steps)[1:]  # not step 0, for which a logarithmic axis has no place
    return [
        Lines(
            course.steps[kept].astype(float),
            rounded(values[kept].T),
            names,
            alt=f"{name} of each head over a real training: heads part early, and dummies end at zero.",
            title=f"(a) {name} in a real training",
            x_label="step",
            y_label=name,
            log_x=True,
        )
        for name, values in (("ω", course.omega), ("μ", course.mu))
    ]


def _flow_lines(times: np.ndarray, omega: np.ndarray, mu: np.ndarray) -> list[Block]:
    return [
        Lines(
            rounded(times),
            rounded(values.T),
            tuple(f"head {h}" for h in range(HEADS)),
            alt=f"{name} of each head under gradient flow on the approximate loss: two groups of opposite sign.",
            title=f"(b) {name} on L̃",
            x_label="t = learning rate × steps",
            y_label=name,
            log_x=True,
        )
        for name, values in (("ω", omega), ("μ", mu))
    ]


def _table(ends: Sequence[End]) -> Table:
    rows = tuple(
        (
            seed,
            int(end.groups.positive.sum()),
            int(end.groups.negative.sum()),
            *(float(f"{number:.4g}") for number in (end.gamma, *end.sums)),
        )
        for seed, end in enumerate(ends)
    )
    return Table(
        ("start", "positive heads", "negative heads", "|ω|", "Σμ, positive", "Σμ, negative"),
        rows,
        alt="For each random start: heads of either sign at t = 10,000, their |ω|, and their sums of μ.",
        title="On L̃ at t = 10,000",
    )
