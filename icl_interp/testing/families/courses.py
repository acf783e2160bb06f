"""Families with a record of a training: one that takes the course of arXiv 2503.12734, Observation 4, and others.

All end on the solution manifold.  Of the others `icl_interp.testing.courses` says which claims are false.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from icl_interp.records import Run
from icl_interp.testing.courses import VIOLATES
from icl_interp.testing.families.members import (
    CIRCUITS,
    FIT,
    ROLES,
    claims,
    draw_gamma,
    draw_task,
    drawn_family,
    hiding,
    known_of,
)
from icl_interp.testing.known import Known
from icl_interp.testing.planting import plant

COURSE = claims(
    "dynamics",
    "signs_match_early",
    "zero_sum_throughout",
    "homogeneous_throughout",
    "omega_overshoots",
    "mu_rises",
    "mu_never_falls",
    "signs_of_the_flow",
)
IN_FLOW = COURSE[-1:]
TITLES = {
    "one_sign_first": "heads of both signs that had one sign for most of their growth",
    "no_overshoot": "opposite heads whose |ω| rose to its end and never came down",
    "mu_falls": "opposite heads whose Σ|μ| rose beyond its end and fell from there",
    "unbalanced": "opposite heads whose Σμ was far from zero for most of the record",
    "unequal": "opposite heads whose |ω| differed for most of the record",
}


@drawn_family(
    "planted_course",
    "heads on the solution manifold, with a record of a training that took the course of the flow",
    holds=(*COURSE, *CIRCUITS, *ROLES, *FIT),
)
def _paper(rng: np.random.Generator) -> Known:
    return _with_course(rng, "paper")


def _declare(course: str, title: str) -> None:
    violated = claims("dynamics", *VIOLATES[course])
    # Where heads turn late, the other claims depend on how late.
    kept = tuple(claim for claim in COURSE if claim not in violated) if course != "one_sign_first" else ()
    drawn_family(f"course_{course}", title, holds=kept, violates=violated)(lambda rng: _with_course(rng, course))


for _course, _title in TITLES.items():
    _declare(_course, _title)


@drawn_family(
    "course_heads_trade_places",
    "opposite heads of which a positive and a negative one traded places while they grew",
    holds=COURSE[:-1],
    violates=IN_FLOW,
)
def _heads_trade_places(rng: np.random.Generator) -> Known:
    known = _with_course(rng, "paper")
    assert known.roles is not None
    order = np.arange(len(known.roles))
    pair = [int(rng.choice(np.flatnonzero(np.array(known.roles) == sign))) for sign in ("positive", "negative")]
    order[pair] = order[pair[::-1]]
    # The flow starts at a twentieth of the final η: there they are still in each other's place.
    return dataclasses.replace(known, run=_reordered(known.run, order, until=float(rng.uniform(0.15, 0.5))))


def _reordered(run: Run, order: np.ndarray, until: float) -> Run:
    """The run with its heads in another order as long as η is below that part of its end."""
    record = run.dynamics
    assert record is not None
    eta = (record.omega[:, 0] * record.mu[:, 0, :, 0]).sum(1)
    early = np.arange(len(eta)) < int(np.argmax(eta >= until * eta[-1]))
    kept = torch.from_numpy(np.isin(record.snapshot_steps, record.steps[early]))
    omega, mu = record.omega.copy(), record.mu.copy()
    omega[early], mu[early] = omega[early][:, :, order], mu[early][:, :, order]
    snapshots = {name: tensor.clone() for name, tensor in record.snapshots.items()}
    for tensor in snapshots.values():
        tensor[kept] = tensor[kept][:, :, order]
    return dataclasses.replace(run, dynamics=dataclasses.replace(record, omega=omega, mu=mu, snapshots=snapshots))


def _with_course(rng: np.random.Generator, course: str) -> Known:
    task = draw_task(rng)
    roles = ["positive"] * int(rng.integers(1, 3)) + ["negative"] * int(rng.integers(1, 3))
    gamma = draw_gamma(rng, task, 0.25, 0.33)
    model = plant(task, roles=roles, gamma=gamma, course=course, **hiding(rng))
    assert model.run.dynamics is not None
    last = enumerate(model.run.dynamics.omega[-1, 0])
    return known_of(model, numbers={f"kernel_fit.omega.{h}": float(omega) for h, omega in last})
