"""Figures 12 and 15: which preconditioner two heads learn for correlated covariates (arXiv 2503.12734, section 5.3).

KQ_11 is ±γΓ with Γ near Γ* (5.6), visibly not Σ⁻¹; whether it is Γ* or Γ_deb, a thousandth off, cannot be told
(`reproduce.preconditioners` has what they are).  Seeds are independent, and intervals are over them.
"""

from __future__ import annotations

import numpy as np

from icl_interp.probing import Cell, Estimate, Heatmap, Table, Text, Threshold, mean_of, rounded
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.preconditioners import (
    DEBIASED,
    FIRST_ORDER,
    INVERSE,
    PLAIN,
    Learned,
    distance,
    unit,
)
from icl_interp.reproduce.readings import Course
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.trainings import RHOS

DRAWN = 0.5  # the ρ of the heat maps
ENTRY = (0, 2)  # where Σ⁻¹, which is tridiagonal, has a zero

CLOSE = Threshold("single seeds are 0.002 to 0.008 off, their noise; Σ⁻¹ is 0.04 to 0.11 away", high=0.02)
NEARER = Threshold("half-way; runs are within 0.06 of 0", high=0.5)
PLAIN_SIDE = Threshold("half-way from Γ_deb, at 0, to Γ*, at 1", low=0.5)
OPPOSITE = Threshold("nothing that a heat map shows; runs are at 0.010 to 0.016, their noise", high=0.1)
SAME_SIZE = Threshold("a quarter, as far as colours go; one head has half of it", 0.75, 1.25)
ZERO_SUM = Threshold("0.001 to 0.02 in records of trained heads, 1 where all μ have one sign", high=0.03)
LOOKS_LIKE = Threshold("nothing that a heat map shows; I is 0.33 to 0.75 away", high=0.1)
BETTER = Threshold("a larger distance", low=0.0)

POPULATIONS = [f"kms-{rho:g}" for rho in RHOS]


# --- Figures ----------------------------------------------------------------------------------------------------------


@recipe("figure-12", "The preconditioner of two heads", "Figure 12, (5.3), Lemma E.4", runs=[*POPULATIONS, "h2"])
def figure_12(bench: Bench) -> Made:
    """KQ is ±γΓ with Γ near Γ*, not Σ⁻¹; OV is as for isotropic covariates."""
    populations = learned(bench)
    isotropic = float(np.abs(Course.of(bench.run("h2")).late_mu).mean())
    claims = [
        *(claim for each in populations.values() for claim in _shape_claims(each)),
        *(_debiased_claim(each, bench.schedule.whole) for each in populations.values()),
        _entry_claim(populations[DRAWN]),
        *_head_claims(list(populations.values()), isotropic),
    ]
    drawn = populations[DRAWN]
    return claims, [
        _learned_drawn(drawn),
        _candidates_drawn(drawn),
        _left_over(drawn),
        _distances(populations),
        _entries(populations),
        Text(
            "Σ_ij = ρ^|i−j|, d = 5, L = 40, σ² = 0.1; two heads. " + _seeds_said(populations) + " Runs in which both "
            "heads took one sign are not among them. Matrices are compared at one norm, and distances are relative to "
            "it."
        ),
    ]


@recipe("figure-15", "What KQ inverts", "Figure 15, section 5.3", runs=POPULATIONS)
def figure_15(bench: Bench) -> Made:
    """The inverse of each head's KQ block, beside Σ and (Γ*)⁻¹."""
    populations = learned(bench)
    claims = [claim for each in populations.values() for claim in _inverse_claims(each)]
    rows = tuple(
        (rho, *(mean_of(each.inverse_distances(target), "seeds") for target in (each.sigma, each.inverse_of(PLAIN))))
        for rho, each in populations.items()
    )
    return claims, [
        _inverses_drawn(populations[DRAWN]),
        Table(
            ("ρ", "to Σ", "to (Γ*)⁻¹"),
            rows,
            alt="Distance of the inverse KQ blocks from the covariance and from the inverse of Γ*, for each ρ.",
            title="Distances at one norm, the mean of both heads",
        ),
        Text(
            "KQ_11 of each head, averaged over the last fifth of training, then inverted. " + _seeds_said(populations)
        ),
    ]


def learned(bench: Bench) -> dict[float, Learned]:
    """All populations, by ρ."""
    return {rho: Learned.of(bench.runs(name)) for rho, name in zip(RHOS, POPULATIONS, strict=True)}


# --- What is claimed --------------------------------------------------------------------------------------------------


def _shape_claims(population: Learned) -> list[Claim]:
    rho, apart = _rho(population), float(distance(population.candidates[PLAIN], population.candidates[INVERSE]))
    near, far = (mean_of(population.distances(candidate), "seeds") for candidate in (PLAIN, INVERSE))
    return [
        compare(
            f"KQ is ±γΓ*, ρ = {rho:g}: the distance of Γ̂ from Γ*",
            near,
            CLOSE,
            f"The mean over seeds of their distances at one norm, noise included; the mean of the seeds' Γ̂ is "
            f"{float(distance(unit(population.products).mean(0), population.candidates[PLAIN])):.4f} off.",
            paper="≈ 0",
        ),
        compare(
            f"KQ is closer to Γ* than to Σ⁻¹, ρ = {rho:g}: the position of Γ̂ from Γ* (0) to Σ⁻¹ (1)",
            mean_of(population.position(PLAIN, INVERSE), "seeds"),
            NEARER,
            f"Γ* and Σ⁻¹ are {apart:.4f} apart. Seeds are {far} from Σ⁻¹, {near} from Γ*.",
            paper="closer to Γ*",
        ),
    ]


def _debiased_claim(population: Learned, whole: bool) -> Claim:
    apart = float(distance(population.candidates[DEBIASED], population.candidates[PLAIN]))
    found = mean_of(population.position(DEBIASED, PLAIN), "seeds")
    allowed = FIRST_ORDER / apart
    return compare(
        f"Γ is Γ* rather than Γ_deb, ρ = {_rho(population):g}: the position of Γ̂ from Γ_deb (0) to Γ* (1)",
        Estimate(found.value, found.low - allowed, found.high + allowed, "seeds, and what is beyond first order"),
        PLAIN_SIDE,
        f"They are {apart:.4f} apart, no more than the {FIRST_ORDER:g} to which a Γ can be read off heads of finite γ, "
        f"so they stay tied. Over seeds Γ̂ is at {found}.",
        paper="1: Γ*",
        reached=whole,  # at the larger γ of shorter trainings more is beyond first order
        otherwise="does_not_hold",
    )


def _entry_claim(population: Learned) -> Claim:
    expected = float(unit(population.candidates[PLAIN])[ENTRY])
    deb = float(unit(population.candidates[DEBIASED])[ENTRY])
    ours = mean_of(unit(population.products)[:, *ENTRY], "seeds")
    return compare(
        f"Γ is not tridiagonal as Σ⁻¹ is, ρ = {_rho(population):g}: its entry (1, 3) at norm 1",
        ours,
        Threshold("half of what Γ* has there; Σ⁻¹ has 0", high=float(f"{expected / 2:.3g}")),
        f"The entry of Γ̂ is {ours}; that of Γ* {expected:.5f}, of Γ_deb {deb:.5f}, of Σ⁻¹ 0.",
        paper=f"{expected:.4f}, of Γ*",
    )


def _head_claims(populations: list[Learned], isotropic: float) -> list[Claim]:
    """The two heads are each other's negative, and their μ are as without correlations."""
    unlike = {_rho(each): mean_of(distance(each.KQ[:, 0], -each.KQ[:, 1]), "seeds") for each in populations}
    sizes = {_rho(each): mean_of(np.abs(each.OV).mean(1) / isotropic, "seeds") for each in populations}
    sums = {
        _rho(each): mean_of(np.abs(each.OV.sum(1)) / np.abs(each.OV).sum(1), "seeds") for each in populations
    }  # relative to Σ|μ|
    furthest = max(sizes, key=lambda rho: abs(sizes[rho].value - 1))
    return [
        compare(
            "Both heads have the same Γ, with opposite signs: the distance between the shapes of their KQ",
            max(unlike.values(), key=lambda each: each.high),
            OPPOSITE,
            f"Noise included: {_by_rho(unlike)}.",
            paper="0: ±γΓ",
        ),
        compare(
            "OV is as large as for isotropic covariates: |μ| over that of two heads under Σ = I",
            sizes[furthest],
            SAME_SIZE,
            f"{_by_rho(sizes)}; under Σ = I |μ| is {isotropic:.3f}.",
            paper="about 1",
        ),
        compare(
            "Σμ is zero, relative to Σ|μ|",
            max(sums.values(), key=lambda each: each.high),
            ZERO_SUM,
            f"{_by_rho(sums)}.",
            paper="0",
        ),
    ]


def _inverse_claims(population: Learned) -> list[Claim]:
    rho = _rho(population)
    to_sigma, to_optimum = (
        population.inverse_distances(target) for target in (population.sigma, population.inverse_of(PLAIN))
    )
    return [
        *(
            compare(
                f"The inverses of the KQ blocks look like {name} after scaling, ρ = {rho:g}",
                mean_of(distances, "seeds"),
                LOOKS_LIKE,
                f"The distance at one norm is {mean_of(distances, 'seeds')}, noise included.",
                paper="close",
            )
            for name, distances in (("Σ", to_sigma), ("(Γ*)⁻¹", to_optimum))
        ),
        compare(
            f"They are closer to (Γ*)⁻¹, ρ = {rho:g}",
            mean_of(to_sigma - to_optimum, "seeds"),
            BETTER,
            "By how much their distance to Σ is the larger one.",
        ),
    ]


def _rho(population: Learned) -> float:
    return float(population.sigma[0, 1])


def _by_rho(values: dict[float, Estimate]) -> str:
    return ", ".join(f"{each} at ρ = {rho:g}" for rho, each in values.items())


def _seeds_said(populations: dict[float, Learned]) -> str:
    return f"{len(populations[DRAWN].OV)} independent seeds for each of ρ = {', '.join(f'{rho:g}' for rho in RHOS)}."


# --- What is shown ----------------------------------------------------------------------------------------------------


def _heatmap(panels: dict[str, np.ndarray], alt: str, title: str) -> Heatmap:
    matrices = np.array([*panels.values()])
    labels = tuple(f"x{i}" for i in range(matrices.shape[-1]))
    return Heatmap(rounded(matrices), tuple(panels), alt, title, labels, labels)


def _learned_drawn(population: Learned) -> Heatmap:
    return _heatmap(
        {
            "positive head, one seed": population.KQ[0, 0],
            "negative head, one seed": population.KQ[0, 1],
            "positive head, all seeds": population.KQ[:, 0].mean(0),
            "negative head, all seeds": population.KQ[:, 1].mean(0),
        },
        "KQ_11 of both heads, of one seed and averaged over seeds: a diagonal and its neighbours, of opposite signs.",
        f"KQ, means over the last fifth of training, ρ = {_rho(population):g}",
    )


def _candidates_drawn(population: Learned) -> Heatmap:
    size = float(np.linalg.norm(population.candidates[PLAIN]))
    shown = {"Γ̂": unit(population.products).mean(0), **population.candidates}
    return _heatmap(
        {name: size * unit(matrix) for name, matrix in shown.items()},
        "The learned preconditioner and three candidates, which look alike but for the zeros of Σ⁻¹.",
        f"Γ̂ and the candidates at the norm of Γ*, ρ = {_rho(population):g}",
    )


def _left_over(population: Learned) -> Heatmap:
    mean = unit(unit(population.products).mean(0))
    return _heatmap(
        {f"Γ̂ − {name}": mean - unit(matrix) for name, matrix in population.candidates.items()},
        "What is left of the learned preconditioner without each candidate: noise, but a pattern without Σ⁻¹.",
        f"What is left, at norm 1, ρ = {_rho(population):g}",
    )


def _inverses_drawn(population: Learned) -> Heatmap:
    size = float(np.linalg.norm(population.sigma))
    plus, minus = (np.linalg.pinv(population.KQ[:, head].mean(0)) for head in (0, 1))
    one = np.linalg.pinv(population.KQ[0, 0])
    shown = {
        "positive head, one seed": one,
        "positive head, all seeds": plus,
        "negative head, all seeds": minus,
        "Σ": population.sigma,
        "(Γ*)⁻¹": population.inverse_of(PLAIN),
    }
    return _heatmap(
        {name: size * unit(matrix) for name, matrix in shown.items()},
        "Inverses of KQ_11 beside Σ and the inverse of Γ*: all fall off from the diagonal alike.",
        f"Inverses at the norm of Σ, ρ = {_rho(population):g}",
    )


def _distances(populations: dict[float, Learned]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            rho,
            *(mean_of(each.distances(candidate), "seeds") for candidate in (PLAIN, DEBIASED, INVERSE)),
            mean_of(each.position(PLAIN, INVERSE), "seeds"),
            mean_of(each.position(DEBIASED, PLAIN), "seeds"),
        )
        for rho, each in populations.items()
    ]
    return Table(
        ("ρ", "to Γ*", "to Γ_deb", "to Σ⁻¹", "Γ* 0 … Σ⁻¹ 1", "Γ_deb 0 … Γ* 1"),
        tuple(rows),
        alt="For each ρ: distances of the learned preconditioner from three candidates, and positions between them.",
        title="Distances and positions of Γ̂",
    )


def _entries(populations: dict[float, Learned]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            rho,
            mean_of(unit(each.products)[:, *ENTRY], "seeds"),
            *(float(f"{unit(matrix)[ENTRY]:.5f}") + 0.0 for matrix in each.candidates.values()),
        )
        for rho, each in populations.items()
    ]
    return Table(
        ("ρ", "Γ̂", PLAIN, DEBIASED, INVERSE),
        tuple(rows),
        alt="The entry (1, 3) of the learned preconditioner and of three candidates, at norm 1.",
        title="Entry (1, 3), at norm 1",
    )
