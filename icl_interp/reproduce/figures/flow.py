"""Figures 7 and 22: two opposite heads under gradient descent on the approximate loss (arXiv 2503.12734, Appendix B).

Time is the paper's: learning rate × steps on half of L̃.  The published figures take 1e6 steps of learning rate 0.01;
the flow at t = 0.01·steps stands for them (Figure 7 takes the first of those steps too, and says how far apart the two
are).  Its numbers are read off plots, to about 2 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from jaxtyping import Float
from scipy.special import lambertw

from icl_interp import theory
from icl_interp.probing import Block, Equation, Estimate, Lines, Table, Text, Threshold, exact, rounded, slope_of
from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.readings import Course
from icl_interp.reproduce.recipes import Made, recipe
from icl_interp.reproduce.results import Claim, compare, within
from icl_interp.reproduce.trainings import MAIN, Setting, setting

START, RATE = 1e-3, 0.01  # ω = μ at time 0, and the learning rate, as published
PHASES = (5.5, 7.5)  # where Figure 22 draws the ends of its first two phases
EARLY, MIDDLE, PLATEAU = 12.0, 30.0, 1e4  # where the panels of Figure 22 end
LATE = (1e4, 1e6)  # over which the late exponent is fitted
BLOCKS = 10  # of a training's late record, over whose means a slope is fitted: their errors are nearly independent

RISES = Threshold("an integration to nine digits may wobble by as much", high=1e-6)
SETTLED = 0.01, "the plot shows no more"
AT_PLATEAU = Threshold("within 1 % of its limit: the plot shows no more", low=0.99, high=1.01)
PEAK = Threshold("0.576 to the width of the line in the plot", low=0.573, high=0.579)
PEAK_TIME = Threshold("7.5, to half a unit of the time axis: the line is drawn by eye", low=7.0, high=8.0)
SYNCHRONOUS = Threshold("1, to the 2 % that a plot can be read to", low=0.98, high=1.02)
RATIO_EARLY = Threshold("1.07, to the 2 % that a plot can be read to", low=1.05, high=1.09)
RATIO_LATE = Threshold("1.58, to the 2 % that a plot can be read to", low=1.55, high=1.61)
HALF_LOSS = Threshold("0.127, to the 2 % that a plot can be read to", low=0.1245, high=0.1295)
OMEGA_END = Threshold("0.139, to the 2 % that a plot can be read to", low=0.136, high=0.142)
MU_END = Threshold("3.15, to the 2 % that a plot can be read to", low=3.09, high=3.21)
ELIMINATION = Threshold("a tenth of the exponent −1/2", low=-0.55, high=-0.45)


@recipe("figure-7", "The effective step rises to its optimum and stays", "Figure 7 and (4.3)")
def figure_7(bench: Bench) -> Made:
    """⟨μ, ω⟩ under gradient descent on L̃ from two small opposite heads."""
    star = theory.optimal_step(**setting(MAIN))
    flow = Flow.of(np.union1d(np.geomspace(1, PLATEAU, 60), np.linspace(0, MIDDLE, 61)))
    error, last = _descended(np.arange(0, int(MIDDLE / RATE) + 1) * RATE)
    claims = [
        compare(
            "⟨μ, ω⟩ grows throughout",
            exact(max(0.0, float(-np.diff(flow.step).min()))),
            RISES,
            "The most that it falls from one of the moments drawn to the next, up to t = 10,000.",
        ),
        compare(
            "⟨μ, ω⟩ arrives at 1/(1 + φ) and stays",
            exact(flow.at(PLATEAU, flow.step) / star),
            AT_PLATEAU,
            f"It is {flow.at(PLATEAU, flow.step):.4f} at t = 10,000, against 1/(1 + φ) = {star:.4f}; the last tenth "
            f"takes long: {flow.at(EARLY, flow.step):.3f} at t = 12, {flow.at(MIDDLE, flow.step):.3f} at t = 30.",
            paper=f"1/(1 + φ) = {star:.4f}",
        ),
    ]
    return claims, [
        Lines(
            rounded(flow.times[1:]),
            rounded(np.array([flow.step[1:], np.full(len(flow.times) - 1, star)])),
            ("⟨μ, ω⟩", "1/(1 + φ)"),
            alt="The effective step grows from zero, fastest near t = 7, and levels out at 1/(1 + φ).",
            title="Effective step",
            x_label="t = learning rate × steps",
            y_label="⟨μ, ω⟩",
            log_x=True,
        ),
        Text(
            f"The flow from ω = μ = {START}; d = 5, L = 40, σ² = 0.1. Gradient descent itself, {MIDDLE / RATE:,.0f} "
            f"steps of learning rate {RATE}, is at most {error:.3f} from it in ⟨μ, ω⟩, while ⟨μ, ω⟩ rises, and ends "
            f"{last:.0e} from it. The parameters are those of Figure 22."
        ),
    ]


def _descended(times: Float[np.ndarray, "steps"]) -> tuple[float, float]:
    """How far ⟨μ, ω⟩ of gradient descent itself is from the flow's: at most, and at the last of its steps."""
    omega, mu = START, START
    step = [2 * omega * mu]
    for _ in times[1:]:
        d_omega, d_mu = theory.two_head_flow_velocity(omega, mu, **setting(MAIN))
        omega, mu = omega + RATE * d_omega, mu + RATE * d_mu
        step.append(2 * omega * mu)
    error = np.abs(np.array(step) - Flow.of(times).step)
    return float(error.max()), float(error[-1])


@recipe("figure-22", "Two heads in three phases", "Figure 22 and Appendix B", runs=("h2",))
def figure_22(bench: Bench) -> Made:
    """The flow (B.4) from 1e-3: both grow, ω turns, and ω falls while μ rises."""
    flow = Flow.of(np.unique([*np.linspace(0, MIDDLE, 6001), *np.geomspace(MIDDLE, LATE[1], 120), *LATE]))
    return [*phase_claims(flow), *late_claims(flow, Course.of(bench.run("h2")))], [
        Equation(
            r"\dot\omega = \mu - 2\omega\mu^2\,(1 + \varphi\cosh d\omega^2),\qquad "
            r"\dot\mu = \omega - 2\mu\,(\omega^2 + \tfrac{\varphi}{d}\sinh d\omega^2)",
            alt="dω/dt = μ − 2ωμ²(1 + φ cosh dω²) and dμ/dt = ω − 2μ(ω² + (φ/d) sinh dω²), with φ = d(1 + σ²)/L.",
        ),
        *_panels(flow),
        _peaks_table(),
        Text(
            f"d = 5, L = 40, σ² = 0.1, ω = μ = {START} at time 0; time and loss are those of half of L̃, as published, "
            f"where the phases end at t = {PHASES[0]} and {PHASES[1]}. Why not t^(−1/2): with μ = μ*(ω) put into it, "
            "dω/dt would be proportional to −ω³. But late it is ω that moves fast, as the loss is curved by "
            "2μ²(1 + φ) along ω and by 2ω²(1 + φ) along μ; ω follows μ, and along the valley dω/dt = −(2/3)φd²ω⁷."
        ),
    ]


@dataclass(frozen=True, eq=False)
class Flow:
    """Two heads (ω, −ω) and (μ, −μ) in the main setting, at ascending times."""

    times: Float[np.ndarray, "times"]
    omega: Float[np.ndarray, "times"]
    mu: Float[np.ndarray, "times"]

    @classmethod
    def of(cls, times: Float[np.ndarray, "times"]) -> Flow:
        """From ω = μ = `START` at time 0."""
        return cls(times, *theory.two_head_flow(times, start=START, **setting(MAIN)))

    @property
    def step(self) -> Float[np.ndarray, "times"]:
        """⟨μ, ω⟩."""
        return 2 * self.omega * self.mu

    def at(self, time: float, values: Float[np.ndarray, "times"]) -> float:
        """One of the courses, at the time that is nearest."""
        return float(values[np.abs(self.times - time).argmin()])

    def half_loss(self, index: int) -> float:
        """L̃/2 at one of the times."""
        sign = np.array([1.0, -1.0])
        return theory.approximate_loss(self.omega[index] * sign, self.mu[index] * sign, **setting(MAIN)) / 2

    def upto(self, end: float, points: int) -> np.ndarray:
        """Indices of about so many times, evenly from 0 to `end`."""
        return np.unique(np.searchsorted(self.times, np.linspace(0, end, points)))


def phase_claims(flow: Flow) -> list[Claim]:
    """What Figure 22 shows, up to t = 10,000."""
    peak, ratio = int(flow.omega.argmax()), flow.mu / flow.omega
    star = theory.optimal_step(**setting(MAIN))
    first, free = flow.at(PHASES[0], flow.omega), START * exp(PHASES[0])
    loss = flow.half_loss(int(np.abs(flow.times - EARLY).argmin()))
    half = flow.at(PLATEAU, flow.step) / 2
    numbers = (
        ("Phase I: ω and μ grow as one", flow.at(PHASES[0], ratio), SYNCHRONOUS, "1"),
        ("Phase II: ω rises to 0.576", float(flow.omega[peak]), PEAK, "0.576"),
        ("Phase II ends where ω turns, at t = 7.5", float(flow.times[peak]), PEAK_TIME, "7.5"),
        ("μ/ω has left 1 by the end of phase II", flow.at(PHASES[1], ratio), RATIO_EARLY, "1.07"),
        ("μ/ω is 1.58 at t = 12", flow.at(EARLY, ratio), RATIO_LATE, "1.58"),
        ("Half the loss falls from 0.55 to 0.127", loss, HALF_LOSS, "0.127"),
        ("Phase III: ωμ tends to 1/(2(1 + φ))", half, within(*SETTLED, star / 2), f"{star / 2:.4f}"),
        ("ω falls to 0.139 by t = 10,000", flow.at(PLATEAU, flow.omega), OMEGA_END, "0.139"),
        ("μ rises to 3.15 by t = 10,000", flow.at(PLATEAU, flow.mu), MU_END, "3.15"),
    )
    sentences = (
        f"μ/ω at t = {PHASES[0]}. Growth has then slowed already: ω is {first:.3f}, where αeᵗ would be {free:.3f}.",
        f"The largest ω, at t = {flow.times[peak]:.2f}, where μ is {flow.mu[peak]:.3f}.",
        "When ω is largest.",
        f"μ/ω at t = {PHASES[1]}.",
        "μ/ω there.",
        f"L̃/2 at t = 12; it starts at {flow.half_loss(0):.4f}.",
        "ωμ at t = 10,000.",
        "ω there.",
        "μ there.",
    )
    return [
        compare(claim, exact(ours), threshold, sentence, paper=paper)
        for (claim, ours, threshold, paper), sentence in zip(numbers, sentences, strict=True)
    ]


def late_claims(flow: Flow, trained: Course) -> list[Claim]:
    """How fast ω falls in the end: on L̃, and in a real training."""
    late = (flow.times >= LATE[0]) & (flow.times <= LATE[1])
    slope = float(np.polyfit(np.log(flow.times[late]), np.log(flow.omega[late]), 1)[0])
    ours, law = flow.at(LATE[1], flow.omega), theory.late_time_omega(LATE[1], **setting(MAIN))
    real = late_slope(trained)
    return [
        compare(
            "Phase III: with μ at its optimum for every ω, ω falls as t^(−1/2)",
            exact(slope),
            ELIMINATION,
            f"Between t = 10⁴ and 10⁶ the ω of the ODE falls with exponent {slope:.4f}, as t^(−1/6). So does the "
            "published curve, which is down to 0.139 only by t = 10⁴. Late it is μ that is slow, and ω that follows.",
            paper="−1/2",
            otherwise="does_not_hold",
        ),
        Claim(
            "Derived from the same ODE: late, ω = (4φd²t)^(−1/6)",
            "shown",
            f"At t = 10⁶ ω is {ours:.5f}, and this law gives {law:.5f}.",
            ours=exact(ours / law),
        ),
        Claim(
            "How fast |ω| falls in a real training",
            "shown",
            f"With exponent {real.value:.3f} over the last nine tenths of {trained.steps[-1]:,} steps; steps "
            "of Adam are not the time of the flow.",
            ours=real,
        ),
    ]


def late_slope(trained: Course) -> Estimate:
    """d log|ω| / d log step over the last nine tenths of a training, |ω| averaged over heads.

    The interval is that of a line through the means of blocks that are even in log step.
    """
    late = trained.steps >= 0.1 * trained.steps[-1]
    logs = np.log(trained.steps[late]), np.log(np.abs(trained.omega[late]).mean(1))
    edges = np.linspace(logs[0][0], log(trained.steps[-1]), BLOCKS + 1)[1:-1]
    block = np.digitize(logs[0], edges)
    x, y = (np.array([values[block == b].mean() for b in np.unique(block)]) for values in logs)
    return slope_of(y - y.mean(), x - x.mean(), covers="training time")


def _panels(flow: Flow) -> list[Block]:
    """The panels of Figure 22, and how fast ω falls."""
    early, middle = flow.upto(EARLY, 80), flow.upto(MIDDLE, 80)
    late = np.unique(np.searchsorted(flow.times, np.geomspace(0.1, LATE[1], 90)))
    losses = np.array([flow.half_loss(i) for i in early])
    best = np.array([_best_mu(omega) for omega in flow.omega[middle]])
    return [
        _lines(flow, late, (flow.omega[late], flow.mu[late]), ("ω", "μ"), "All times", "ω peaks and falls, μ rises."),
        _late_lines(flow, late),
        _lines(flow, early, (flow.omega[early], flow.mu[early]), ("ω", "μ"), "Early", "ω and μ part where ω turns."),
        _lines(
            flow,
            early,
            ((flow.mu / flow.omega)[early], losses),
            ("μ/ω", "L̃/2"),
            "Ratio and loss",
            "μ/ω stays at 1 until t = 6 and then grows; half the loss falls from 0.55 to 0.127.",
        ),
        _lines(
            flow,
            middle,
            (flow.step[middle] / 2, flow.mu[middle], best),
            ("ωμ", "μ", "μ*(ω)"),
            "μ and its optimum",
            "ωμ levels out; μ comes close to the best μ for the ω of the moment.",
        ),
    ]


def _lines(
    flow: Flow, shown: np.ndarray, values: tuple[np.ndarray, ...], names: tuple[str, ...], title: str, alt: str
) -> Lines:
    times = flow.times[shown]
    return Lines(
        rounded(times), rounded(np.array(values)), names, alt, title=title, x_label="t", log_x=bool(times[0] > 0)
    )


def _late_lines(flow: Flow, shown: np.ndarray) -> Lines:
    """ω beside the two laws, each from where the third phase is under way."""
    times, omega = flow.times[shown], flow.omega[shown]
    law = np.array([theory.late_time_omega(float(t), **setting(MAIN)) for t in times])
    half = flow.at(MIDDLE, flow.omega) * np.sqrt(MIDDLE / times)
    laws = np.where(times >= MIDDLE, [law, half], np.nan)
    return Lines(
        rounded(times),
        rounded(np.log10([omega, *laws])),
        ("ω", "(4φd²t)^(−1/6)", "t^(−1/2) through ω at t = 30"),
        alt="From t = 1,000 on ω falls along t to the power −1/6, and stays far above t to the power −1/2.",
        title="How fast ω falls",
        x_label="t",
        y_label="log₁₀ ω",
        log_x=True,
    )


def _best_mu(omega: float) -> float:
    return float(theory.optimal_mu_given_omega(np.array([omega, -omega]), **setting(MAIN))[0])


def _peaks_table() -> Table:
    rows = []
    for dim in (5, 20, 100, 400):
        given = Setting(dim=dim, length=8 * dim, noise_var=MAIN.noise_var)
        times = np.linspace(0, 10, 1001)
        omega, _ = theory.two_head_flow(times, start=START, **given)
        phi = 1 / theory.optimal_step(**given) - 1
        root = sqrt(float(lambertw(dim / phi).real) / dim)
        rows.append((dim, float(f"{omega.max():.4f}"), float(f"{times[omega.argmax()]:.2f}"), float(f"{root:.4f}")))
    return Table(
        ("d (L = 8d)", "largest ω", "at t", "√(W(d/φ)/d)"),
        tuple(rows),
        alt="The peak of ω in four dimensions, beside its form for large d, with Lambert's W.",
        title="The peak falls as √(log d / d)",
    )
