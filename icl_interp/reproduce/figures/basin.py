"""How often two heads end with one sign, which the paper does not report (arXiv 2503.12734, Observations 1 and 2).

Its account has the heads converge to opposite ones.  Two heads of one sign are stuck: together they do what one head
does, at that one's risk.  The population shares streams of prompts between runs of different initialisation, which is
cheaper; the interval counts streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from icl_interp import theory
from icl_interp.estimators import best_kernel
from icl_interp.flow import approximate_loss_flow
from icl_interp.probing import Block, Estimate, Lines, Table, Text, Threshold, mean_of, rounded, thinned
from icl_interp.records import Runs
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.readings import Course, share_of
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.trainings import MAIN, SCHEDULES, setting
from icl_interp.surfaces import pattern_moments

WORKING = 0.05  # a head works if |μω| is above this fraction of the largest
LATE = 0.2  # of a training, over which its loss is averaged
STARTS, SPREAD, END = 64, 0.1, 100.0  # flows on L̃: how many, their standard deviation at time 0, and how long

NEVER = Threshold("always is a share of zero", high=0.0)


@recipe("same-sign", "Seeds whose heads take one sign", "Observations 1 and 2", runs=("same-sign",))
def same_sign(bench: Bench) -> Made:
    """The share of seeds that end so, their risk, and what L̃ has to do with it."""
    population = Population.of(bench.runs("same-sign"))
    one_head, flows = one_head_risk(bench), flow_share()
    claims = [
        sign_claim(population, reached=population.steps[-1] >= SCHEDULES["paper"].basin_steps),
        *_risk_claims(population, one_head),
        Claim(
            "L̃ has the same basin",
            "shown",
            f"Gradient flow of two heads on L̃, from ω, μ ~ N(0, {SPREAD}²), ends with both of one sign for "
            f"{flows.value:.0%} of {STARTS} starts.",
            ours=flows,
        ),
    ]
    return claims, [*_blocks(population, one_head), _design(population)]


@dataclass(frozen=True, eq=False)
class Population:
    """What became of every run.

    Args:
        steps: of the records, the same for all runs.
        one_sign: whether all working heads have ω of one sign, at each record.
        late_loss: mean loss over the last fifth of training.
        streams: which stream of prompts each run saw.
    """

    steps: Int[np.ndarray, "records"]
    one_sign: Bool[np.ndarray, "runs records"]
    late_loss: Float[np.ndarray, "runs"]
    streams: Int[np.ndarray, "runs"]

    @classmethod
    def of(cls, runs: Runs) -> Population:
        """Read it off the records, one run at a time."""
        signs, losses, streams = [], [], []
        steps = np.zeros(0, dtype=int)
        for run in runs:
            course = Course.of(run)
            assert run.dynamics is not None
            assert run.training is not None
            steps = course.steps
            signs.append(of_one_sign(course.omega, course.mu))
            losses.append(float(run.dynamics.loss[steps >= (1 - LATE) * steps[-1]].mean()))
            streams.append(run.training.prompt_seed)
        return cls(steps, np.array(signs), np.array(losses), np.array(streams))

    def share(self, record: int) -> Estimate:
        """Of runs whose heads have one sign at a record."""
        return share_of(self.one_sign[:, record], self.streams)


def sign_claim(population: Population, *, reached: bool) -> Claim:
    """Whether heads always come to be opposite."""
    share, hits = population.share(-1), population.one_sign
    half = hits[:, np.abs(population.steps - population.steps[-1] / 2).argmin()].mean()
    return compare(
        "The heads of a model of several heads come to be opposite: positive ones and negative ones",
        share,
        NEVER,
        f"{hits[:, -1].sum()} of {len(hits)} runs of two heads end {population.steps[-1]:,} steps with all working "
        f"heads of one sign: {share.value:.1%} (95 % {share.low:.1%} to {share.high:.1%}), after {half:.1%} half-way. "
        "benchmarks/same_sign.py follows such runs to 100,000 steps, where most are still there.",
        paper="always",
        reached=reached,
        otherwise="does_not_hold",
    )


def of_one_sign(omega: Float[np.ndarray, "records heads"], mu: Float[np.ndarray, "records heads"]) -> np.ndarray:
    """Whether the ω of all working heads have one sign, at each record."""
    work = np.abs(omega * mu)
    working = work > WORKING * work.max(1, keepdims=True)
    return ~((omega > 0) & working).any(1) | ~((omega < 0) & working).any(1)


def one_head_risk(bench: Bench) -> Estimate:
    """The least risk of one head, over both ω and μ."""
    head = best_kernel(next(bench.prompts("same-sign, tuning", MAIN, 4_096)), scaled=True, task=MAIN)
    moments = pattern_moments(np.array([head.omega]), bench.prompts("same-sign", MAIN), MAIN)
    return moments.risk(moments.best_mu())


def flow_share() -> Estimate:
    """Of random starts of two heads on L̃ that gradient flow takes to heads of one sign."""
    hits = []
    for seed in range(STARTS):
        omega, mu = np.random.default_rng(seed).normal(0, SPREAD, (2, 2))
        ends = approximate_loss_flow(omega, mu, times=np.array([END]), **setting(MAIN)).omega
        hits.append(bool(ends[-1].prod() > 0))
    return share_of(np.array(hits), np.arange(STARTS))


def _risk_claims(population: Population, one_head: Estimate) -> list[Claim]:
    debiased = theory.debiased_gd_risk(theory.optimal_step(**setting(MAIN)), **setting(MAIN))
    stuck, losses = population.one_sign[:, -1], population.late_loss
    kinds = (
        ("Two heads of one sign do no better than one head", stuck, f"one head at its best has {one_head}"),
        ("Opposite heads do what debiased gradient descent does", ~stuck, f"that has {debiased:.4f}"),
    )
    return [
        Claim(
            claim,
            "shown",
            f"Their loss over the last fifth of training is {loss}, the mean over {of.sum()} runs; {beside}.",
            ours=loss,
        )
        for claim, of, beside in kinds
        if of.any()
        for loss in [mean_of(losses[of], covers="seeds")]
    ]


def _blocks(population: Population, one_head: Estimate) -> list[Block]:
    kept = thinned(population.steps)[1:]  # not step 0, for which a logarithmic axis has no place
    shares = [population.share(int(record)) for record in kept]
    values, low, high = (np.array([[getattr(share, end) for share in shares]]) for end in ("value", "low", "high"))
    stuck = population.one_sign[:, -1]
    rows = [
        (
            name,
            int(of.sum()),
            *(float(f"{number:.4f}") for number in np.quantile(population.late_loss[of], (0, 0.5, 1))),
        )
        for name, of in (("one sign", stuck), ("both signs", ~stuck))
        if of.any()
    ]
    return [
        Lines(
            population.steps[kept].astype(float),
            rounded(values),
            ("share of seeds",),
            alt="The share of seeds whose working heads have one sign, over the steps of training, with its interval.",
            title="Heads of one sign",
            x_label="step",
            y_label="share",
            log_x=True,
            low=rounded(low),
            high=rounded(high),
        ),
        Table(
            ("working heads", "runs", "lowest loss", "median", "highest"),
            (*rows, ("one head at its best", None, None, one_head, None)),
            alt="Losses over the last fifth of training, of runs whose heads have one sign and of the others.",
            title="Their losses",
        ),
    ]


def _design(population: Population) -> Text:
    runs, streams = len(population.streams), len(np.unique(population.streams))
    return Text(
        f"{runs} seeds of two heads in the paper's setting (d = 5, L = 40, σ² = 0.1), {population.steps[-1]:,} steps. "
        f"There are {streams} streams of prompts, each for {runs / streams:.3g} runs (data_seed), which start from "
        "different weights. Intervals: Clopper–Pearson, 95 %, with the runs counted as fewer where those of one stream "
        f"go together. Working heads: |μω| above {WORKING:.0%} of the largest."
    )
