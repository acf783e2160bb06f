"""The course that heads take in (ω, μ): gradient flow on the approximate loss, and the phases of a training.

arXiv 2503.12734, Observation 4, Figure 21 and Appendix B.  Phases: heads grow until η = Σ ωμ is half of what it ends
with; γ, the mean |ω|, peaks; then it declines along the valley, at an η that hardly changes.

The flow is on L̃(ω, μ), (4.1): each head is one ω and one μ, and there is no noise.  Two heads that start at (a, −a) and
(b, −b) stay so, and follow (B.4).  Time is that of half the loss, as in `theory.two_head_flow`.  A training keeps no
time with it, so the two are compared at equal Σ|μ|, which grows in both.  A tenth of a second a flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from scipy import integrate, stats

from icl_interp import theory
from icl_interp.estimates import LEVEL, Estimate, exact, mean_of
from icl_interp.manifold import Groups

LONGEST = 1e6  # by then (B.4) is at |ω| = 0.065 in the paper's main setting, half of what training reaches
STARTS = 0.05  # of the final η: KQ is by then a multiple of the identity, which at first it is not
STEEP = 10.0  # dω² from which on L̃ says nothing about attention, and exp(dω²) soon overflows
POINTS = 24  # of a path, even in log Σ|μ|
LATE = 0.8  # of the last step: what follows is averaged to final values
BATCHES = 5  # batch means: the late iterates are autocorrelated, their means over a fifth of them hardly are
Z = 1.96
BETWEEN = "time between records"

Heads = Float[np.ndarray, " heads"]
Path = Float[np.ndarray, "times heads"]
Series = Float[np.ndarray, " times"]

# --- Gradient flow ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Flow:
    """A path of (ω, μ), at the times that were asked for or, without any, that the solver chose."""

    times: Series
    omega: Path
    mu: Path


def approximate_loss_flow(
    omega: Heads,
    mu: Heads,
    until: float = np.inf,
    times: Series | None = None,
    *,
    dim: int,
    length: int,
    noise_var: float,
    signal_var: float = 1.0,
    covariate_var: float = 1.0,
) -> Flow:
    """dω/dt = −∂(L̃/2)/∂ω and dμ/dt = −∂(L̃/2)/∂μ from (ω, μ) at time 0, until Σ|μ| has grown to `until`.

    A path that never comes so far, such as one that ends with all heads of one sign, is followed to the last of the
    times, or else to `LONGEST`.

    Args:
        omega, mu: where to start.
        until: Σ|μ| to stop at.
        times: where to report it, ascending.
        dim, length, noise_var, signal_var: of the task, as in `theory`.
        covariate_var: v of covariates N(0, v·I), which are unit ones with v·ω in place of ω and v times the signal.

    Raises:
        ValueError: ω and μ of different heads or not finite, an `until` or a variance that is not above 0, and what
            `theory.approximate_loss_gradients` refuses.
    """
    heads = len(omega)
    if np.shape(omega) != (heads,) or np.shape(mu) != (heads,) or not np.isfinite([omega, mu]).all():
        raise ValueError(f"omega and mu must be finite, one number for each head; got {omega} and {mu}")
    if not until > 0:
        raise ValueError(f"until must be above 0; got {until!r}")
    if not 0 < covariate_var < np.inf:
        raise ValueError(f"covariate_var must be finite and above 0; got {covariate_var!r}")
    gradients = partial(
        theory.approximate_loss_gradients,
        dim=dim,
        length=length,
        noise_var=noise_var,
        signal_var=signal_var * covariate_var,
    )

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        d_omega, d_mu = gradients(covariate_var * state[:heads], state[heads:])
        return -np.concatenate([covariate_var * d_omega, d_mu]) / 2

    def short_of_the_end(_: float, state: np.ndarray) -> float:
        return float(until - np.abs(state[heads:]).sum())

    short_of_the_end.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    short_of_the_end.direction = -1  # pyright: ignore[reportFunctionMemberAccess]
    start = np.concatenate([omega, mu]).astype(np.float64)
    # LSODA, because the late flow is stiff: a slow drift along the valley, a fast fall into it.
    last, events = LONGEST if times is None else times[-1], short_of_the_end if until < np.inf else None
    solution = integrate.solve_ivp(velocity, (0, last), start, "LSODA", times, events=events, rtol=1e-7, atol=1e-10)
    return Flow(solution.t, solution.y[:heads].T, solution.y[heads:].T)


@dataclass(frozen=True, eq=False)
class Beside:
    """Gradient flow from an early record of a training, at the same Σ|μ| as the training; NaN where it never came.

    Args:
        step: of the record it starts from.
        mu_sum: Σ|μ|/2, which is the Σμ of positive heads where μ cancels.
        gamma: γ of the training, of the flow, and of the two-head flow (B.4) from the same γ and Σ|μ|.
        top: largest γ of the two flows.
        trained, flow: ω of every head, in training and in the flow.
        omega, mu: where the flow ends.
    """

    step: int
    mu_sum: Float[np.ndarray, "points"]
    gamma: Float[np.ndarray, "paths points"]
    top: tuple[float, float]
    trained: Float[np.ndarray, "heads points"]
    flow: Float[np.ndarray, "heads points"]
    omega: Float[np.ndarray, "heads"]
    mu: Float[np.ndarray, "heads"]


def flow_beside(
    steps: Series,
    omega: Path,
    mu: Path,
    groups: Groups,
    *,
    dim: int,
    length: int,
    noise_var: float,
    signal_var: float = 1.0,
    covariate_var: float = 1.0,
) -> Beside | None:
    """The flow from where a recorded training had `STARTS` of its final η; None if L̃ says nothing about that start.

    Args:
        steps, omega, mu: the record.
        groups: the heads that γ is the mean |ω| of.
        dim, length, noise_var, signal_var, covariate_var: of the task, as for `approximate_loss_flow`.
    """
    eta = (omega * mu).sum(1)
    start = int(np.argmax(eta >= STARTS * eta[steps >= LATE * steps[-1]].mean()))
    step, omega, mu = int(steps[start]), omega[start:], mu[start:]
    first, last = (float(np.abs(iterate).sum()) for iterate in (mu[0], mu[-1]))
    gamma = groups.gamma(omega[0], mu[0])
    if not (0 < first < last and gamma > 0 and dim * np.square(covariate_var * omega[0]).max() <= STEEP):
        return None
    flow = partial(
        approximate_loss_flow,
        until=1.001 * last,  # a little beyond, so that the last point is reached whatever the rounding
        dim=dim,
        length=length,
        noise_var=noise_var,
        signal_var=signal_var,
        covariate_var=covariate_var,
    )
    sign, pair = np.array([1.0, -1.0]), Groups(np.array([True, False]), np.array([False, True]))
    whole, two = flow(omega[0], mu[0]), flow(sign * gamma, sign * first / 2)
    sizes = np.geomspace(first, last, POINTS)
    paths = ((omega, mu, groups), (whole.omega, whole.mu, groups), (two.omega, two.mu, pair))
    gammas = [np.array([of.gamma(*iterate) for iterate in zip(w, m, strict=True)]) for w, m, of in paths]
    return Beside(
        step=step,
        mu_sum=sizes / 2,
        gamma=np.array([_at(sizes, m, g) for (_, m, _), g in zip(paths, gammas, strict=True)]),
        top=(float(gammas[1].max()), float(gammas[2].max())),
        trained=np.array([_at(sizes, mu, head) for head in omega.T]),
        flow=np.array([_at(sizes, whole.mu, head) for head in whole.omega.T]),
        omega=whole.omega[-1],
        mu=whole.mu[-1],
    )


def _at(sizes: np.ndarray, mu: Path, series: Series) -> np.ndarray:
    """`series` where Σ|μ| first was of these sizes; NaN where it never was."""
    reached = np.abs(mu).sum(1)
    new = np.append(True, reached[1:] > np.maximum.accumulate(reached)[:-1])
    return np.interp(sizes, reached[new], series[new], right=np.nan)


# --- The phases of a training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A step of the record, and a quantity there and at the end; no step if the record does not show one."""

    step: int | None
    then: float | None
    last: float


def settled(steps: np.ndarray, series: np.ndarray, holds: Bool[np.ndarray, "records"]) -> Moment:
    """The first record from which on it `holds`, and the series there."""
    broken = np.flatnonzero(~holds)
    return _moment(steps, series, int(broken[-1]) + 1 if len(broken) else 0)


def peaked(steps: np.ndarray, series: np.ndarray) -> Moment:
    """The record where the series is largest; none if it is not finite."""
    return _moment(steps, series, int(series.argmax()) if np.isfinite(series).all() else len(steps))


def _moment(steps: np.ndarray, series: np.ndarray, at: int) -> Moment:
    there = at < len(steps)
    return Moment(int(steps[at]) if there else None, float(series[at]) if there else None, float(series[-1]))


@dataclass(frozen=True)
class Course:
    """The phases of a training, and the numbers of Observation 4.

    Final values are means over the last fifth of the training.

    Args:
        grown: the step at which η = Σ ωμ first was half of its final value.
        peak: the step at which γ, the |μ|-weighted mean |ω|, was largest (medians of five records).
        valley: the step at which γ had come half the way down (in logarithms) from there to its final value.
        length: the last step, in units of `grown`.
        records: after `grown`.
        signs: η, relative to its final value, when signs came to match for good; 1 if they do not match in the end.
        imbalance: mean of |Σμ| / Σ|μ| from the peak on, every factor of steps counting alike.
        spread: the same of the relative spread of |ω| (`manifold.Groups`).
        top: γ at its peak.
        overshoot: `top` over final γ.
        rise: final Σ|μ| over what it was at γ's peak.
        fall: the largest relative fall of Σ|μ| after growth (medians of five records).
        decay: slope of log γ over log step in the last decade of steps; None where γ peaks there, or has few records.
    """

    grown: int
    peak: int
    valley: int
    length: float
    records: int
    signs: Estimate
    imbalance: Estimate
    spread: Estimate
    top: float
    overshoot: Estimate
    rise: Estimate
    fall: Estimate
    decay: Estimate | None


@np.errstate(all="ignore")  # what is not finite ends in None
def course_of(steps: Series, omega: Path, mu: Path, groups: Groups, matched: int | None) -> Course | None:
    """The phases of a recorded training; None if numbers are not finite, or η is not above 0 in the end.

    Args:
        steps, omega, mu: the record.
        groups: the heads that attend.
        matched: the step from which on sign(ω) = sign(μ) in each of them; None if there is none.
    """
    late, iterates = steps >= LATE * steps[-1], list(zip(omega, mu, strict=True))
    eta, imbalance, spread = (
        np.array([quantity(*iterate) for iterate in iterates])
        for quantity in (groups.step, groups.imbalance, groups.spread)
    )
    gamma = np.log([groups.gamma(*iterate) for iterate in iterates])
    mu_sum = np.log([np.abs(mu[groups.attending]).sum() for _, mu in iterates])
    end = eta[late].mean()
    if not (np.isfinite([eta, imbalance, spread, gamma, mu_sum]).all() and end > 0):
        return None
    grown, smooth = int(np.argmax(eta >= end / 2)), _smoothed(gamma)
    peak = int(smooth.argmax())
    down = smooth[peak:] <= (smooth[peak] + gamma[late].mean()) / 2
    since = slice(min(peak, int(late.argmax())), None)
    return Course(
        grown=int(steps[grown]),
        peak=int(steps[peak]),
        valley=int(steps[peak + int(down.argmax())]) if down.any() else int(steps[-1]),
        length=float(steps[-1] / max(steps[grown], 1)),
        records=len(steps) - 1 - grown,
        signs=_share_at(np.maximum(eta / end, 0), steps, matched),
        imbalance=_mean_over_course(steps[since], imbalance[since]),
        spread=_mean_over_course(steps[since], spread[since]),
        top=float(np.exp(smooth[peak])),
        overshoot=_change(gamma, np.array([peak]), late).map(lambda change: float(np.exp(-change))),
        rise=_change(mu_sum, _peaks(smooth, _noise(gamma[late])), late).map(lambda change: float(np.exp(change))),
        fall=_largest_fall(mu_sum[grown:], _noise(mu_sum[late])).map(lambda change: float(1 - np.exp(-change))),
        decay=_late_slope(steps, gamma, peak),
    )


def _share_at(share: Series, steps: np.ndarray, step: int | None) -> Estimate:
    """What `share` was when signs came to match: between the record of that step and the one before."""
    if step is None:
        return exact(1.0)
    at = int(np.searchsorted(steps, step))
    before, then = (float(share[at - 1]) if at else 0.0), float(share[at])
    return Estimate(then, min(before, then), max(before, then), BETWEEN)


def _mean_over_course(steps: np.ndarray, series: np.ndarray) -> Estimate:
    """The mean over log(1 + step).

    Two things are not known of the time between records: the course, which for a series that rises or falls is between
    what its first and its last values there make, and the noise of iterates, of which each record is one sample.  That
    is read off the differences of successive records.
    """
    if len(steps) < 2:
        return Estimate(np.nan, -np.inf, np.inf, BETWEEN)
    weights = np.diff(np.log1p(steps)) / (np.log1p(steps[-1]) - np.log1p(steps[0]))
    first, last = float(series[:-1] @ weights), float(series[1:] @ weights)
    noise = Z * float(np.sqrt((weights**2 * np.diff(series) ** 2).sum() / 2))
    return _around((first + last) / 2, float(np.hypot((last - first) / 2, noise)), BETWEEN)


def _change(series: np.ndarray, peaks: np.ndarray, late: np.ndarray) -> Estimate:
    """From the value at the first of `peaks` to the mean of the last fifth.

    The error is one iterate's noise and that of batch means; the interval holds what any of the `peaks` would give.
    """
    if late.sum() < 2 * BATCHES:
        return Estimate(np.nan, -np.inf, np.inf, "training time")
    batches = mean_of(np.array([batch.mean() for batch in np.array_split(series[late], BATCHES)]))
    changes = series[late].mean() - _smoothed(series)[peaks]
    half = np.hypot(batches.half, Z * _noise(series[late]))
    return Estimate(float(changes[0]), float(changes.min() - half), float(changes.max() + half), "training time")


def _peaks(smooth: np.ndarray, noise: float) -> np.ndarray:
    """Where a series may be largest: first the record where it is, then those where it is less by noise only."""
    peak = int(smooth.argmax())
    return np.append(peak, np.flatnonzero(smooth >= smooth[peak] - Z * noise))


def _largest_fall(series: np.ndarray, noise: float) -> Estimate:
    """Noise makes falls where there are none: the lower end is what is left of this one without the largest of those.

    Records are taken for independent, which makes the most of noise.
    """
    if not np.isfinite(noise):
        return Estimate(np.nan, -np.inf, np.inf, "noise of iterates")
    fall = float(_falls(_smoothed(series)))
    made = _falls(_smoothed(np.random.default_rng(0).normal(0, noise, (200, len(series)))))
    low, more = fall - float(np.quantile(made, (1 + LEVEL) / 2)), Z * 2**0.5 * noise
    return Estimate(fall, max(low, 0.0), fall + more, "noise of iterates")


def _falls(series: Float[np.ndarray, "*some times"]) -> Float[np.ndarray, "*some"]:
    """The largest fall from any value to a later one."""
    return (np.maximum.accumulate(series, -1) - series).max(-1)


def _late_slope(steps: np.ndarray, series: np.ndarray, peak: int) -> Estimate | None:
    """Over ten bins of the last decade, even in log step: neighbouring iterates depend on each other, bins hardly."""
    late = steps >= steps[-1] / 10
    logs, values = np.log(steps[late]), series[late]
    bins = np.minimum((10 * (logs - np.log(steps[-1] / 10)) / np.log(10)).astype(int), 9)
    filled = np.unique(bins)
    if steps[peak] > steps[-1] / 10 or len(filled) < 5:
        return None
    x, y = (np.array([series[bins == b].mean() for b in filled]) for series in (logs, values))
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    half = stats.t.ppf(0.975, len(filled) - 2) * covariance[0, 0] ** 0.5
    return _around(float(slope), float(half), "training time")


def _around(value: float, half: float, covers: str) -> Estimate:
    return Estimate(value, value - half, value + half, covers)


def _smoothed(series: Float[np.ndarray, "*some times"]) -> Float[np.ndarray, "*some times"]:
    """Medians of five; ends are repeated."""
    padded = np.pad(series, [(0, 0)] * (series.ndim - 1) + [(2, 2)], mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, -1), axis=-1)


def _noise(late: np.ndarray) -> float:
    """An iterate's standard deviation about a straight line, late in training.

    Earlier, records are so close that neighbours hardly differ, though each is as far from the course.
    """
    if len(late) < 3:
        return np.inf
    at = np.arange(len(late))
    return float(np.sqrt(((late - np.polyval(np.polyfit(at, late, 1), at)) ** 2).sum() / (len(late) - 2)))
