"""How did the heads come about?  (arXiv 2503.12734, Observation 4 and Figures 1, 5, 13.)

The record of a training, as curves of ω, μ and the loss and as the circuits at its snapshots; and the steps from which
on what Observations 2 and 4 speak of is there: signs match, Σμ = 0, |ω| overshoots and declines while |μ| goes on
rising.  ω is the mean of KQ_11's diagonal and μ is OV_22, as recorded.

A result is a part of every report, so it is small: curves are thinned to a hundred points at most and circuits to forty
moments, fewer of a large model, evenly in log(1 + step); and numbers that are only drawn keep so many significant
digits as can be seen.  The moments rest on the full record.  Cost: folding forty snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from icl_interp.circuits import Circuits
from icl_interp.probing import Block, Context, Frames, Lines, Need, Table, Text, Verdict, probe
from icl_interp.records import Dynamics
from icl_interp_probes.kernel_fit import ZERO_SUM
from icl_interp_probes.shown import UNKNOWN, coordinates, head_names, roles_of

POINTS, FRAMES = 100, 40
NUMBERS = 5_000  # that a picture may hold, unless two moments take more: a report has room for little more
DIGITS = 4  # of what is only drawn


@dataclass(frozen=True)
class Moment:
    """A step of the record, and a quantity there and at the end; no step if the record does not show one."""

    step: int | None
    then: float | None
    last: float


@dataclass(frozen=True, eq=False)
class HeadDynamics:
    """The course of a training; see the module for what is thinned and rounded.

    Args:
        roles: of each head in the end ("?" where the task is not known).
        records: how many points the full record has.
        steps, loss, omega, mu: the thinned record.
        signs_match: from when on sign(ω)·μ > 0 in every attending head, and the smallest of them; None where no head
            attends, or there are several responses.
        zero_sum: from when on |Σμ| / Σ|μ| (of several responses the worst) stays within kernel_fit's threshold; None
            where no head attends, or there is one head.
        omega_peak: when |ω| of an attending head is largest; None where no head attends.
        mu_peak: the same for |μ|.
        snapshot_steps: of the circuits.
        KQ, OV: the parts of the circuits that reach the prediction.
    """

    roles: tuple[str, ...]
    records: int
    steps: Int[np.ndarray, "points"]
    loss: Float[np.ndarray, "points"]
    omega: Float[np.ndarray, "points heads"]
    mu: Float[np.ndarray, "points heads outputs"]
    signs_match: Moment | None
    zero_sum: Moment | None
    omega_peak: Moment | None
    mu_peak: Moment | None
    snapshot_steps: Int[np.ndarray, "snapshots"]
    KQ: Float[np.ndarray, "snapshots heads d_model dim"]
    OV: Float[np.ndarray, "snapshots heads outputs d_model"]


@probe(
    name="dynamics",
    title="How did the heads come about?",
    needs=Need.WEIGHTS | Need.DYNAMICS,
    uses=Need.FORWARD | Need.TASK,
    cost="under a second",
)
class DynamicsProbe:
    """Follows the loss, each head's ω (the mean of KQ_11's diagonal) and μ (OV_22), and the circuits over the recorded
    steps of the training, and reads off when the signs of ω and μ came to match, when Σμ came to vanish, and when |ω|
    and |μ| were largest.
    """

    def run(self, context: Context) -> HeadDynamics:
        """Thin the record, and look for the moments in all of it."""
        context.one_layer()
        record, config = context.dynamics, context.config
        assert record is not None
        roles = roles_of(context)
        shown = _spread(record.steps, POINTS, config.n_heads * (1 + config.n_outputs))
        kept = record.snapshot_steps[_spread(record.snapshot_steps, FRAMES, config.n_heads * config.d_model**2)]
        circuits = [Circuits.from_weights(record.weights(step), config) for step in kept]
        return HeadDynamics(
            roles=roles,
            records=len(record.steps),
            steps=record.steps[shown],
            loss=_rounded(record.loss[shown]),
            omega=_rounded(record.omega[shown, 0]),
            mu=_rounded(record.mu[shown, 0]),
            **_moments(record, _attending(roles)),
            snapshot_steps=kept,
            KQ=_rounded(np.array([c.KQ[0, :, :, : c.dim] for c in circuits])),
            OV=_rounded(np.array([c.OV[0, :, c.dim :] for c in circuits])),
        )

    def blocks(self, result: HeadDynamics) -> list[Block]:
        """ω, μ and the loss over steps; the moments; the circuits at snapshots."""
        dim, outputs = result.KQ.shape[-1], result.OV.shape[-2]
        heads = head_names(result.roles)
        mu_names = heads if outputs == 1 else tuple(f"{head}, y{n}" for head in heads for n in range(outputs))
        labels = coordinates(dim, outputs)
        moments = _moments_table(result)
        return [
            _curves(result, result.omega, heads, "ω", "ω of every head over the training."),
            _curves(result, result.mu.reshape(len(result.mu), -1), mu_names, "μ", "μ of every head over the training."),
            _curves(result, result.loss[:, None], ("loss",), "loss", "Loss on fresh prompts over the training."),
            *([moments] if moments.rows else []),
            Frames(
                result.KQ,
                result.snapshot_steps,
                heads,
                alt="KQ of every head over the training, keys down and queries across: what reaches the prediction.",
                title="KQ",
                row_labels=labels,
                column_labels=labels[:dim],
            ),
            Frames(
                result.OV,
                result.snapshot_steps,
                heads,
                alt="OV of every head over the training, outputs down and inputs across: what reaches the prediction.",
                title="OV",
                row_labels=labels[dim:],
                column_labels=labels,
            ),
            Text(
                f"{result.records:,} points of the training were recorded, up to step {result.steps[-1]:,}; a moment "
                "is the first of them that shows it. Heads are named by their roles in the end."
            ),
        ]

    def judge(self, result: HeadDynamics) -> list[Verdict]:
        """None: claims about the course of training are not made here yet."""
        return []


def _curves(result: HeadDynamics, values: np.ndarray, names: tuple[str, ...], title: str, alt: str) -> Lines:
    positive = result.steps > 0  # the axis is logarithmic
    return Lines(
        result.steps[positive].astype(float),
        values[positive].T,
        names,
        alt=alt,
        title=title,
        x_label="step",
        y_label=title,
        log_x=True,
    )


def _moments_table(result: HeadDynamics) -> Table:
    heads = "all heads" if UNKNOWN in result.roles else "attending heads"
    named = (
        (f"signs match from here on: smallest sign(ω)·μ of {heads}", result.signs_match),
        (f"|Σμ| / Σ|μ| is at most {ZERO_SUM.high} from here on", result.zero_sum),
        (f"largest |ω| of {heads}", result.omega_peak),
        (f"largest |μ| of {heads}", result.mu_peak),
    )
    rows = tuple(
        (name, "not within this record" if m.step is None else m.step, m.then, m.last) for name, m in named if m
    )
    return Table(("moment", "step", "then", "at the end"), rows, alt="When what came about.", title="Moments")


def _attending(roles: tuple[str, ...]) -> list[int]:
    """The heads that the moments are about; all of them where no role is known."""
    return [h for h, role in enumerate(roles) if role in ("positive", "negative", "mixed", UNKNOWN)]


@np.errstate(all="ignore")  # what is not finite meets no condition
def _moments(record: Dynamics, attending: list[int]) -> dict[str, Moment | None]:
    found: dict[str, Moment | None] = dict.fromkeys(("signs_match", "zero_sum", "omega_peak", "mu_peak"))
    if not attending:
        return found
    omega, mu = record.omega[:, 0, attending], record.mu[:, 0, attending]
    found["omega_peak"] = _peak(record.steps, np.abs(omega).max(1))
    found["mu_peak"] = _peak(record.steps, np.abs(mu).max((1, 2)))
    if mu.shape[-1] == 1:
        smallest = (np.sign(omega) * mu[..., 0]).min(1)
        found["signs_match"] = _settled(record.steps, smallest, smallest > 0)
    if record.mu.shape[2] > 1:
        every = record.mu[:, 0]
        imbalance = (np.abs(every.sum(1)) / np.abs(every).sum(1)).max(-1)
        found["zero_sum"] = _settled(record.steps, imbalance, imbalance <= ZERO_SUM.high)
    return found


def _settled(steps: np.ndarray, series: np.ndarray, holds: Bool[np.ndarray, "records"]) -> Moment:
    """The first record from which on it `holds`."""
    broken = np.flatnonzero(~holds)
    return _moment(steps, series, int(broken[-1]) + 1 if len(broken) else 0)


def _peak(steps: np.ndarray, series: np.ndarray) -> Moment:
    return _moment(steps, series, int(series.argmax()) if np.isfinite(series).all() else len(steps))


def _moment(steps: np.ndarray, series: np.ndarray, at: int) -> Moment:
    there = at < len(steps)
    return Moment(int(steps[at]) if there else None, float(series[at]) if there else None, float(series[-1]))


def _spread(steps: Int[np.ndarray, "steps"], most: int, numbers: int) -> Int[np.ndarray, "chosen"]:
    """Which steps to show, of `numbers` each: even in log(1 + step), the first and the last among them."""
    most = min(most, max(2, NUMBERS // numbers))
    if len(steps) <= most:
        return np.arange(len(steps))
    logs = np.log1p(steps)
    return np.unique(np.searchsorted(logs, np.linspace(logs[0], logs[-1], most)))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: float(f"{value:.{DIGITS}g}"), otypes=[float])(values)
