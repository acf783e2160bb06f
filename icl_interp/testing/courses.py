"""Records of trainings that never were, of which it is known how they went.

The course "paper" is what Observation 4 of arXiv 2503.12734 says: signs match early, |ω| overshoots and declines while
Σ|μ| rises on, Σμ stays zero, heads stay alike.  It is the two-head gradient flow on the approximate loss from a small
start until |ω| is down from its peak by 1.6 to 3 (trained runs: 1.3 to 3.2), stretched to every head's own (ω, μ).  At
the start heads are random; that is forgotten by the time η has 3 % of its end.  Other courses bend it:

    one_sign_first  heads of one sign at first have the other and turn late, ω before μ
    no_overshoot    |ω| and |μ| both grow as √η
    mu_falls        Σ|μ| rises beyond its end half way, and falls from there
    unbalanced      Σμ is far from zero until late
    unequal         |ω| differs between heads of either sign until late

Bends are over before the last fifth, in which (ω, μ) stand still: iterates scatter there about the planted values
without drift, the last one like the others.  The clock is the paper's: 500,000 steps, of which growth takes 150 to 400;
flow time is step by a power law after it, as a training slows down less than the flow does.

The scatter is an AR(1) process in steps.  In trained runs of the main setting (Adam, learning rate 10⁻³) late iterates
of ω and μ scatter by 0.7 to 1.0 % and records, 2,083 steps apart, correlate by 0.1 to 0.3: as iterates do that forget
in 1/lr = 1,000 steps.  So five batch means of the last fifth, 20,000 steps each, correlate by 0.05 or less.

The course "settled" is the last fifth alone, of which no theory is needed: any model has one.  In it every entry of
KQ_11 scatters by itself, by 4 % of its norm in all (trained runs: 3 to 4 % off the diagonal); that makes ω scatter by
4 %/d, the 0.8 % above at d = 5.  Under other Σ the scatter has Σ^−½ on either side: it is alike in all directions
of whitened covariates.  As wide where covariates are large, it would change η by 4 %.  Σμ scatters by a tenth of what
independent μ would make of it, and stays within 0.3 % of Σ|μ|: where γ is small μ is large, and more would outweigh all
that heads do.  The loss is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from icl_interp import theory
from icl_interp.config import check_choice
from icl_interp.errors import ConfigError
from icl_interp.flow import STEEP, approximate_loss_flow
from icl_interp.manifold import manifold_mu
from icl_interp.tasks import LinearRegression
from icl_interp.training.recording import record_steps

STEPS, RECORDS, BATCH = 500_000, 300, 256  # of the paper's training; BATCH is of the loss' own scatter
GROWN = (150, 400)  # steps at which η is half of its end; 245 in the paper's setting
SETTLED = (0.2, 0.7)  # of all steps; trained runs have all but settled at the lower one
OVERSHOOT = (1.6, 3.0)
START = 0.02  # |ω| and |μ| of the flow's start
FORGOTTEN = 0.03  # η, relative to its end, by which heads no longer show how they started
SCATTER = 0.008  # of late iterates, relative to the largest |ω| and to each |μ|
MEMORY = 1_000  # steps in which it is forgotten
SETTLED_RECORDS = 48  # as in the last fifth of the other courses
OF_SUM = 0.1  # what is left of the scatter of Σμ
ENTRIES = 0.04  # what the entries of KQ_11 scatter by in all, relative to its norm, where each does by itself

# The claims of the dynamics probe that are false of a course, if it ends with heads of both signs on the solution
# manifold.  All others are true of it, but for "one_sign_first", of whose others nothing is said.
VIOLATES: Mapping[str, tuple[str, ...]] = {
    "paper": (),
    "one_sign_first": ("signs_match_early", "zero_sum_throughout"),
    "no_overshoot": ("omega_overshoots", "mu_rises"),
    "mu_falls": ("mu_never_falls",),
    "unbalanced": ("zero_sum_throughout",),
    "unequal": ("homogeneous_throughout",),
}
COURSES = (*VIOLATES, "settled")


@dataclass(frozen=True, eq=False)
class Course:
    """ω and μ of every head at the recorded steps of a training, and the loss: (4.1) with a batch's own scatter.

    `entries` is what KQ_11 is beside ω·G, relative to the norm of that; None where it is ω·G.
    """

    steps: Int[np.ndarray, "records"]
    loss: Float[np.ndarray, "records"]
    omega: Float[np.ndarray, "records heads"]
    mu: Float[np.ndarray, "records heads"]
    entries: Float[np.ndarray, "records heads dim dim"] | None = None

    def KQ_11(self, shapes: Float[np.ndarray, "heads dim dim"]) -> Float[np.ndarray, "records heads dim dim"]:
        """Of heads that attend along these G."""
        ideal = self.omega[..., None, None] * shapes
        if self.entries is None:
            return ideal
        return ideal + self.entries * np.linalg.norm(ideal, axis=(-2, -1), keepdims=True)


def draw_course(
    name: str,
    task: LinearRegression,
    omega: Float[np.ndarray, "heads"],
    mu: Float[np.ndarray, "heads"],
    rng: np.random.Generator,
) -> Course:
    """A course that ends about these (ω, μ).

    Raises:
        ConfigError: another course; or, unless it is "settled", covariates that are not isotropic and centred, heads of
            one sign only, or an |ω| so large that the approximate loss says nothing about it.
    """
    check_choice("course", name, COURSES)
    if name == "settled":
        return _settled(task, omega, mu, rng)
    if manifold_mu(task) is None:
        raise ConfigError("a course can be planted under isotropic, centred covariates only")
    if not (omega > 0).any() or not (omega < 0).any():
        raise ConfigError(f"a course takes heads of both signs, got omega = {omega}")
    if task.dim * (task.sigma[0, 0] * np.abs(omega).max()) ** 2 > STEEP:
        raise ConfigError(f"a course takes ω that the approximate loss speaks of, d·(vω)² ≤ {STEEP:g}, got {omega}")
    steps = np.array(record_steps(STEPS, RECORDS))
    ideal = _flow(task, steps, rng)
    bent = _BENDS[name](ideal, np.sign(omega), rng) if name in _BENDS else _bare(ideal)
    w, m = (_begun(end * path, ideal.share, rng) for end, path in zip((omega, mu), bent, strict=True))
    w = w + SCATTER * np.abs(w).max(1, keepdims=True) * _scatter(steps, len(omega), rng)
    m = m * (1 + SCATTER * _scatter(steps, len(mu), rng))
    return Course(steps, _losses(task, steps, w, m, rng), w, m)


def _settled(task: LinearRegression, omega: np.ndarray, mu: np.ndarray, rng: np.random.Generator) -> Course:
    steps, heads, d = np.linspace(0.8 * STEPS, STEPS, SETTLED_RECORDS).round().astype(int), len(omega), task.dim
    values, vectors = np.linalg.eigh(task.sigma)
    white = vectors * (d / np.sum(1 / values) / values) ** 0.5 @ vectors.T  # Σ^−½, of which tr white² = d
    entries = white @ _scatter(steps, heads * d**2, rng).reshape(-1, heads, d, d) @ white * (ENTRIES / d)
    m = mu * (1 + SCATTER * _scatter(steps, heads, rng))
    m -= (1 - OF_SUM) * (m - mu).sum(1, keepdims=True) * np.abs(mu) / np.abs(mu).sum()
    return Course(steps, np.full(len(steps), np.nan), np.broadcast_to(omega, m.shape), m, entries)


# --- The ideal course -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ideal:
    """|ω|, |μ| and their product relative to their ends; and how far a record is from growth to the end, in log step.

    `phase` is 0 until growth and 1 from where the course has settled.
    """

    omega: Float[np.ndarray, "records 1"]
    mu: Float[np.ndarray, "records 1"]
    phase: Float[np.ndarray, "records 1"]

    @property
    def share(self) -> Float[np.ndarray, "records 1"]:
        return self.omega * self.mu


_Paths = tuple[Float[np.ndarray, "records heads"], Float[np.ndarray, "records heads"]]
_Bend = Callable[[_Ideal, Float[np.ndarray, "heads"], np.random.Generator], _Paths]


def _flow(task: LinearRegression, steps: np.ndarray, rng: np.random.Generator) -> _Ideal:
    sign = np.array([1.0, -1.0])
    flow = approximate_loss_flow(
        START * sign,
        START * sign,
        dim=task.dim,
        length=task.length,
        noise_var=task.noise_var,
        signal_var=task.signal_var,
        covariate_var=float(task.sigma[0, 0]),
    )
    omega, mu = flow.omega[:, 0], flow.mu[:, 0]
    peak = int(omega.argmax())
    down = omega[peak:] <= omega[peak] / rng.uniform(*OVERSHOOT)
    if not down.any():
        raise ConfigError(f"the flow on the approximate loss has no peak of |ω| to come down from under {task}")
    last = peak + int(down.argmax())
    grown = int(np.argmax(omega * mu >= omega[last] * mu[last] / 2))
    first, settled = rng.uniform(*GROWN), STEPS * np.exp(rng.uniform(*np.log(SETTLED)))
    phase = np.clip(np.log(np.maximum(steps, 1) / first) / np.log(settled / first), 0, 1)
    after = flow.times[grown] * (flow.times[last] / flow.times[grown]) ** phase
    times = np.where(steps < first, flow.times[grown] * steps / first, after)
    of_omega, of_mu = (np.interp(times, flow.times, path) / path[last] for path in (omega, mu))
    return _Ideal(of_omega[:, None], of_mu[:, None], phase[:, None])


def _begun(path: Float[np.ndarray, "records heads"], share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The path from a random start of its own size."""
    left = np.maximum(1 - share / FORGOTTEN, 0)
    return path + left * np.abs(path[0]).max() * rng.standard_normal(path.shape[1])


def _scatter(steps: np.ndarray, count: int, rng: np.random.Generator) -> Float[np.ndarray, "records count"]:
    """So many stationary AR(1) processes of unit variance."""
    kept = np.exp(-np.diff(steps) / MEMORY)[:, None]
    series = rng.standard_normal((len(steps), count))
    for i, k in enumerate(kept, start=1):
        series[i] = k * series[i - 1] + np.sqrt(1 - k**2) * series[i]
    return series


def _losses(
    task: LinearRegression, steps: np.ndarray, omega: np.ndarray, mu: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "records"]:
    """(4.1) at each record; as the mean over batches since the one before, whose squared errors scatter by √2."""
    v = float(task.sigma[0, 0])
    sizes = {"dim": task.dim, "length": task.length, "noise_var": task.noise_var, "signal_var": task.signal_var * v}
    pairs = zip(v * omega, mu, strict=True)
    losses = np.array([theory.approximate_loss(w, m, **sizes) for w, m in pairs])  # pyright: ignore[reportArgumentType]
    prompts = BATCH * np.diff(steps, prepend=steps[0] - 1)
    return losses * (1 + np.sqrt(2 / prompts) * rng.standard_normal(len(steps)))


# --- What bends it ----------------------------------------------------------------------------------------------------


def _bare(ideal: _Ideal) -> _Paths:
    return ideal.omega, ideal.mu


def _one_sign_first(ideal: _Ideal, signs: np.ndarray, rng: np.random.Generator) -> _Paths:
    """Heads of one sign are turned round, and smaller than they will be; the others make up for them, so that η is as
    in the paper if both signs make half of it in the end.

    Between the turns of ω and of μ signs do not match: for 0.15 of the phase, which no two records span.
    """
    late, begins, size = signs == rng.choice([-1, 1]), rng.uniform(0.4, 0.6), rng.uniform(0.3, 0.6)
    of_omega, of_mu = (-size + (1 + size) * _ramp(ideal.phase, begins + by, begins + by + 0.1) for by in (0, 0.15))
    others = np.where(signs == 0, 1, 2 - of_omega * of_mu)
    return ideal.omega * np.where(late, of_omega, 1), ideal.mu * np.where(late, of_mu, others)


def _no_overshoot(ideal: _Ideal, signs: np.ndarray, rng: np.random.Generator) -> _Paths:
    root = np.sqrt(ideal.share)
    return root, root


def _mu_falls(ideal: _Ideal, signs: np.ndarray, rng: np.random.Generator) -> _Paths:
    """From growth on even in the logarithm, up and down."""
    top, grown = rng.uniform(1.15, 1.6), ideal.mu[ideal.phase == 0][-1]
    up, down = grown * (top / grown) ** (2 * ideal.phase), top ** (2 - 2 * ideal.phase)
    return ideal.omega, np.where(ideal.phase == 0, ideal.mu, np.where(ideal.phase < 0.5, up, down))


def _unbalanced(ideal: _Ideal, signs: np.ndarray, rng: np.random.Generator) -> _Paths:
    return ideal.omega, ideal.mu * _favoured(ideal, signs, rng)


def _unequal(ideal: _Ideal, signs: np.ndarray, rng: np.random.Generator) -> _Paths:
    return ideal.omega * _favoured(ideal, signs, rng), ideal.mu


def _favoured(ideal: _Ideal, signs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heads of one sign get 25 to 50 % more than in the end, those of the other as much less; until late."""
    more = rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)
    return 1 + more * signs * (1 - _ramp(ideal.phase, 0.8, 1.0))


def _ramp(phase: np.ndarray, low: float, high: float) -> np.ndarray:
    """From 0 at `low` to 1 at `high`."""
    return np.clip((phase - low) / (high - low), 0, 1)


_BENDS: dict[str, _Bend] = {
    "one_sign_first": _one_sign_first,
    "no_overshoot": _no_overshoot,
    "mu_falls": _mu_falls,
    "unbalanced": _unbalanced,
    "unequal": _unequal,
}
