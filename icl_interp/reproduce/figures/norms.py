"""Figure 20 and Proposition 4.1: how evenly a head attends (arXiv 2503.12734).

The approximate loss rests on E pᵀp̃ ≈ exp(dωω̃)/L for the attention p, p̃ of two heads, while |ω| ≤ √(κ log L/d).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import hypot, log, sqrt

import numpy as np
import torch
from jaxtyping import Float

from icl_interp import theory
from icl_interp.probing import Estimate, Lines, Table, Text, Threshold, mean_of, rounded
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare
from icl_interp.reproduce.trainings import MAIN
from icl_interp.surfaces import pattern_moments
from icl_interp.tasks import LinearRegression

DRAWS = 10_000  # a histogram, as published
SCALES = {"a": 0.5, "b": 0.5, "c": 0.35}
PAIRS = {
    "a": ((40, 5), (100, 5), (500, 5)),
    "b": ((40, 5), (200, 25), (800, 100)),
    "c": ((40, 5), (200, 25), (800, 100)),
}  # (L, d) in its panels
BINS = np.linspace(0, 1, 51)
KAPPA = 0.1  # in the condition of the informal Proposition 4.1
HEADS = np.array([0.13, -0.13, 0.3, -0.3])  # whose attention is compared: a trained pair, and a wider one
OVERLAPS = ((0, 0), (0, 1), (2, 2), (2, 3))
LENGTHS = (40, 200, 1000)

INVERSE_ROOT = Threshold("the exponent −1/2 is that of L → ∞; at d = 5 and these L it is 0.05 off", -0.6, -0.4)
GROWS = Threshold("a norm that concentrates would fall", low=1.0)
REPAIRED = Threshold("a fifth less is seen in a histogram", high=0.8)
OVERLAP = Threshold("exp(dωω̃) is a limit in L and d, both within 0.5 % of it at |ω| = 0.13", 0.98, 1.02)

Norms = dict[tuple[int, int], Float[np.ndarray, "draws"]]


@recipe("figure-20", "How evenly a head attends", "Figure 20 and Proposition 4.1")
def figure_20(bench: Bench) -> Made:
    """Histograms of ‖softmax(ω·x_ℓᵀx_q)‖₂, and E pᵀp̃ beside its two limits."""
    norms = {
        panel: {pair: attention_norms(bench, SCALES[panel], *pair) for pair in pairs} for panel, pairs in PAIRS.items()
    }
    overlaps = {length: _overlaps(bench, length) for length in LENGTHS}
    return [*norm_claims(norms), overlap_claim(overlaps)], [
        *(_histogram(panel, norms[panel]) for panel in PAIRS),
        _norm_table(norms),
        _overlap_table(overlaps),
        Text(
            f"{DRAWS:,} draws a histogram, as published. Given x_q, scores are independent and normal, so L of them "
            f"are drawn instead of L covariates. Proposition 4.1 asks for |ω| ≤ √(κ log L/d); with κ = {KAPPA} that is "
            f"{_largest(40, 5):.2f} at L = 40, d = 5, where trained heads are at 0.13, and {_largest(800, 100):.2f} at "
            "L = 800, d = 100. The scales of the figure are beyond both."
        ),
    ]


def _largest(length: int, dim: int) -> float:
    return sqrt(KAPPA * log(length) / dim)


def attention_norms(bench: Bench, omega: float, length: int, dim: int) -> Float[np.ndarray, "draws"]:
    """‖softmax_ℓ(ω x_ℓᵀx_q)‖₂ for `DRAWS` prompts with isotropic covariates: x_ℓᵀx_q ~ N(0, ‖x_q‖²) given x_q."""
    label = f"figure-20, L = {length}, d = {dim}"
    queries = bench.prompts(label, LinearRegression(dim, 1), DRAWS)
    normals = bench.prompts(f"{label}, scores", LinearRegression(1, length), DRAWS)
    return torch.cat(
        [
            torch.softmax(omega * query.x_q.norm(dim=-1, keepdim=True) * normal.x[..., 0], -1).norm(dim=-1)
            for query, normal in zip(queries, normals, strict=True)
        ]
    ).numpy()


def norm_claims(norms: dict[str, Norms]) -> list[Claim]:
    """What the histograms show."""
    first, last = norms["a"][40, 5], norms["a"][500, 5]
    wide = norms["b"][800, 100]
    narrow_first, narrow = norms["c"][40, 5], norms["c"][800, 100]
    span = log(500 / 40)
    return [
        compare(
            "(a) At fixed d the norm falls as 1/√L",
            _ratio(last, first).map(lambda ratio: log(ratio) / span),
            INVERSE_ROOT,
            f"The exponent of the mean norm between L = 40 ({first.mean():.3f}) and 500 ({last.mean():.4f}).",
            paper="−1/2",
        ),
        compare(
            "(b) It does not fall if d grows with L at a fixed scale",
            _ratio(wide, first),
            GROWS,
            f"The mean norm at L = 800, d = 100 ({wide.mean():.3f}) over that at L = 40, d = 5 ({first.mean():.3f}).",
        ),
        compare(
            "(c) A smaller scale repairs this in part",
            _ratio(narrow, wide),
            REPAIRED,
            f"The mean norm at scale 0.35 ({narrow.mean():.3f}) over that at 0.5 ({wide.mean():.3f}), at L = 800, "
            f"d = 100. It is still {narrow.mean() / narrow_first.mean():.2f} times that at L = 40, d = 5.",
        ),
    ]


def _ratio(top: np.ndarray, bottom: np.ndarray) -> Estimate:
    """Of the means of two independent samples, by the delta method."""
    means = [mean_of(sample, covers="draws") for sample in (top, bottom)]
    value = means[0].value / means[1].value
    half = value * hypot(*(mean.half / mean.value for mean in means))
    return Estimate(value, value - half, value + half, "draws")


def _histogram(panel: str, norms: Norms) -> Lines:
    density = [np.histogram(norm, BINS, density=True)[0] for norm in norms.values()]
    return Lines(
        np.array([(low + high) / 2 for low, high in pairwise(BINS)]),
        rounded(np.array(density)),
        tuple(f"L = {length}, d = {dim}" for length, dim in norms),
        alt=f"Densities of the norm of attention weights at scale {SCALES[panel]}, for three pairs of L and d.",
        title=f"({panel}) Scale {SCALES[panel]}",
        x_label="‖p‖₂",
        y_label="density",
    )


def _norm_table(norms: dict[str, Norms]) -> Table:
    rows = tuple(
        (
            f"({panel}) {SCALES[panel]}",
            length,
            dim,
            mean_of(norm, covers="draws"),
            float(f"{length**-0.5:.4f}"),
            mean_of(length * norm**2, covers="draws"),
            f"{theory.attention_overlap_approximate(SCALES[panel], SCALES[panel], dim=dim, length=1):.3g}",
            f"{theory.attention_overlap(SCALES[panel], SCALES[panel], dim=dim, length=1):.3g}",
        )
        for panel, pairs in norms.items()
        for (length, dim), norm in pairs.items()
    )
    return Table(
        ("panel, scale", "L", "d", "mean ‖p‖", "1/√L", "L·E‖p‖²", "exp(dω²)", "as L → ∞: (1 − 2ω²)^(−d/2)"),
        rows,
        alt="For each histogram: the mean norm beside that of even attention, L times the mean square beside limits.",
        title="The norm of attention",
    )


def _overlaps(bench: Bench, length: int) -> list[Estimate]:
    """L·E pᵀp̃ for each of `OVERLAPS`, on the fewer prompts the longer they are."""
    task = LinearRegression(MAIN.dim, length, MAIN.noise_var)
    prompts = bench.prompts(f"figure-20, overlap, {length}", task, max(2, bench.schedule.prompts * 40 // length))
    moments = pattern_moments(HEADS, prompts, task)
    return [moments.overlap(*pair).map(lambda value: length * value) for pair in OVERLAPS]


def overlap_claim(overlaps: dict[int, list[Estimate]]) -> Claim:
    """What Proposition 4.1 says of trained heads, from L·E pᵀp̃ for each of `OVERLAPS` at each length."""
    own, other = (_overlap_limit(pair) for pair in OVERLAPS[:2])
    ratios = [overlaps[40][0].map(lambda v: v / own), overlaps[40][1].map(lambda v: v / other)]
    furthest = max(ratios, key=lambda ratio: abs(ratio.value - 1))
    return compare(
        "Proposition 4.1: E pᵀp̃ ≈ exp(dωω̃)/L",
        furthest,
        OVERLAP,
        f"Trained heads (ω = ±0.13, L = 40, d = 5): L·E pᵀp̃ is {overlaps[40][0].value:.4f} for a head with itself, "
        f"against {own:.4f}, and {overlaps[40][1].value:.4f} for opposite heads, against {other:.4f}. The number is "
        "the ratio that is further from 1.",
        paper="1",
    )


def _overlap_limit(pair: Sequence[int]) -> float:
    omega, other = HEADS[list(pair)]
    return theory.attention_overlap_approximate(float(omega), float(other), dim=MAIN.dim, length=1)


def _overlap_table(overlaps: dict[int, list[Estimate]]) -> Table:
    rows = tuple(
        (
            f"{HEADS[pair[0]]:+g}, {HEADS[pair[1]]:+g}",
            *(overlaps[length][i] for length in LENGTHS),
            float(f"{theory.attention_overlap(*(float(w) for w in HEADS[list(pair)]), dim=MAIN.dim, length=1):.4f}"),
            float(f"{_overlap_limit(pair):.4f}"),
        )
        for i, pair in enumerate(OVERLAPS)
    )
    return Table(
        ("ω, ω̃", *(f"L = {length}" for length in LENGTHS), "L → ∞", "exp(dωω̃)"),
        rows,
        alt="L times the mean product of the attention of two heads, at three lengths, beside its two limits; d = 5.",
        title="L·E pᵀp̃ at d = 5",
    )
