"""Pictures that several figures share: the circuits of every head, at the end and over the training, and ω and μ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from icl_interp.circuits import Circuits
from icl_interp.probing import Block, Frames, Heatmap, Lines, Table
from icl_interp.reproduce.readings import Course, head_names
from icl_interp.roles import Heads

SHOWN = (1, 1_000, 2_000, 10_000, 100_000, 500_000)  # the paper's steps in Figures 5 and 14
FRAMES = 40


def circuits_drawn(circuits: Circuits, heads: Heads, whose: str = "") -> list[Block]:
    """KQ and OV of every head."""
    KQ, OV = circuits.masked()
    names, labels = head_names(heads), _coordinates(circuits.dim)
    return [
        Heatmap(
            KQ[0],
            names,
            alt="KQ of every head, keys down and queries across; what no prediction sees is left out.",
            title=f"{whose}KQ",
            row_labels=labels,
            column_labels=labels,
        ),
        Heatmap(
            OV[0, :, circuits.dim :],
            names,
            alt="The row of every head's OV that predictions read.",
            title=f"{whose}OV",
            row_labels=labels[circuits.dim :],
            column_labels=labels,
        ),
    ]


def curves_drawn(course: Course, heads: Heads, whose: str = "") -> list[Block]:
    """ω and μ of every head over the training, and Σμ."""
    after = course.steps > 0  # the axis is logarithmic
    omega, mu = course.omega[after].T, course.mu[after].T
    drawn = (("ω", omega, ""), ("μ", np.concatenate([mu, mu.sum(0, keepdims=True)]), ", and their sum"))
    return [
        Lines(
            course.steps[after].astype(float),
            curves,
            (*head_names(heads), "Σμ")[: len(curves)],
            alt=f"{symbol} of every head over the training{more}.",
            title=f"{whose}{symbol}",
            x_label="step",
            y_label=symbol,
            log_x=True,
        )
        for symbol, curves, more in drawn
    ]


def snapshots(course: Course, steps: Sequence[int]) -> list[int]:
    """The snapshots that are nearest to `steps`, each once; later steps than the last are left out."""
    assert course.run.dynamics is not None  # `Course.of` has seen to it
    kept = course.run.dynamics.snapshot_steps
    wanted = [step for step in steps if step <= kept[-1]] or [kept[-1]]
    return sorted({int(kept[np.abs(kept - step).argmin()]) for step in wanted})


def frames_drawn(course: Course, heads: Heads) -> list[Block]:
    """The circuits at the paper's steps and between them, evenly in log(1 + step)."""
    between = np.expm1(np.linspace(0, np.log1p(course.steps[-1]), FRAMES - len(SHOWN)))
    steps = snapshots(course, [*SHOWN, *between.astype(int).tolist()])
    circuits = [course.run.circuits(step) for step in steps]
    dim, names = circuits[0].dim, head_names(heads)
    labels = _coordinates(dim)
    KQ, OV = np.array([c.KQ[0, :, :, :dim] for c in circuits]), np.array([c.OV[0, :, dim:] for c in circuits])
    said = "of every head over the training: what reaches the prediction."
    return [
        Frames(KQ, np.array(steps), names, f"KQ {said}", "KQ", row_labels=labels, column_labels=labels[:dim]),
        Frames(OV, np.array(steps), names, f"OV {said}", "OV", row_labels=labels[dim:], column_labels=labels),
    ]


def diagonal_ratios(circuits: Circuits) -> Float[np.ndarray, "heads"]:
    """‖diag KQ_11‖₂/‖KQ_11‖_F, as the paper's authors measure it; 1 is diagonal."""
    KQ_11 = circuits.KQ_11[0]
    return np.linalg.norm(np.diagonal(KQ_11, axis1=-2, axis2=-1), axis=-1) / np.linalg.norm(KQ_11, axis=(-2, -1))


def ratios_tabled(course: Course, heads: Heads) -> Table:
    """`diagonal_ratios` at the paper's steps."""
    rows = tuple((step, *map(float, diagonal_ratios(course.run.circuits(step)))) for step in snapshots(course, SHOWN))
    return Table(
        ("step", *head_names(heads)),
        rows,
        alt="The diagonal's part of the norm of KQ_11, a row a step.",
        title="‖diag KQ_11‖ / ‖KQ_11‖",
    )


def _coordinates(dim: int) -> tuple[str, ...]:
    return (*(f"x{i}" for i in range(dim)), "y")
