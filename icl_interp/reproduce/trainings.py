"""Which models the paper's figures rest on: every training by name, on either schedule.

Setting, unless a name says otherwise: d = 5, L = 40, σ² = 0.1, two heads, Adam at 1e-3, batches of 256, seed 0 (arXiv
2503.12734, section 3).  Those on sparse regression are of arXiv 2408.04532, whose sizes are not all known: they are
parameters of the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, SparseRegression, kms

ScheduleName = Literal["quick", "paper"]
PAPER_STEPS = 500_000
SPARSE_STEPS = 20_000
MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)
HEADS = (1, 2, 3, 4, 8)
# The columns of Table 1, left to right: a name, how scores become weights, and C.
ACTIVATIONS: dict[str, tuple[str, float]] = {
    "h2": ("softmax", 1.0),
    "tanh": ("tanh", 1.0),
    **{f"affine-{c:g}": ("affine", c) for c in (0.5, 0.8, 1.0)},
    **{f"square-{c:g}": ("square", c) for c in (0.5, 0.8, 1.0)},
}
# With 1 + x, seeds 0 to 2 meet a denominator next to zero within 5,000 steps, where the training ends; 3 does not.
ACTIVATION_SEEDS = {"affine-1": 3}
RHOS = (0.3, 0.5, 0.7)
# The first eight seeds whose two heads end with opposite signs, at each of these ρ: seeds 3 and 7 do not.
OPPOSITE_SEEDS: dict[float, tuple[int, ...]] = dict.fromkeys(RHOS, (0, 1, 2, 4, 5, 6, 8, 9))
STREAMS = 32  # of prompts, each shared by as many runs of the population "same-sign"
TWO_TASKS = MultiTaskRegression(dim=6, supports=[(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)  # section 5.4
TASK_HEADS = (1, 2, 3, 4)
TASK_STREAMS = 4
Overlap = Literal["none", "some", "full"]
OVERLAPS: tuple[Overlap, ...] = ("none", "some", "full")
QUICK_SPARSE = SparseRegression(dim=8, sparsity=2, length=10, noise_var=0.25)
MAP_BATCH = 64  # prompts a step, a quarter of the paper's: there are 2,016 runs
MAP_RECORDS = 32  # a run: 300 MB for the 2,016 of them, and six records in the last fifth, over which they are read


@dataclass(frozen=True)
class Schedule:
    """How much work a reproduction is given.

    Args:
        name: "quick" or "paper", or another: runs are kept in a folder of that name.
        steps: of every training, but for those of many seeds.
        seeds: of each population with correlated covariates.
        basin_seeds, basin_steps: of the population that is asked how often heads take the same sign.
        prompts: of one Monte Carlo number.
        task_seeds: of each population that solves two tasks.
        map_tasks: how many tasks the map of superposition has models for.
        map_seeds, map_steps: of each population on that map.
        sparse: the task of the three-layer models of arXiv 2408.04532.
        sparse_heads: how many heads a layer of theirs has.
        sparse_seeds, sparse_steps: of each.
    """

    name: str
    steps: int
    seeds: int
    basin_seeds: int
    basin_steps: int
    prompts: int
    task_seeds: int = 4
    map_tasks: tuple[int, ...] = (2,)
    map_seeds: int = 4
    map_steps: int = 10_000
    sparse: SparseRegression = QUICK_SPARSE
    sparse_heads: tuple[int, ...] = (1, 2, 4, 8)
    sparse_seeds: int = 1
    sparse_steps: int = 3_000

    @property
    def whole(self) -> bool:
        """Whether trainings are as long as the paper's."""
        return self.steps >= PAPER_STEPS

    @property
    def whole_sparse(self) -> bool:
        """Whether those on sparse regression are as long as they need to be: the risk of eight heads still falls then,
        by half a percent from 10,000 steps to 20,000."""
        return self.sparse_steps >= SPARSE_STEPS


SCHEDULES: dict[ScheduleName, Schedule] = {
    "quick": Schedule("quick", 100_000, 6, 64, 20_000, 40_000),
    "paper": Schedule(
        "paper",
        PAPER_STEPS,
        8,
        256,
        20_000,
        200_000,
        task_seeds=32,
        map_tasks=(2, 3, 4),
        map_seeds=32,
        map_steps=50_000,
        sparse=SparseRegression(dim=16, sparsity=4, length=20, noise_var=0.25),
        sparse_seeds=3,
        sparse_steps=SPARSE_STEPS,
    ),
}


@dataclass(frozen=True)
class Site:
    """A place on the map of superposition: so many tasks of two features each, and so many heads to solve them.

    The best step is that of the paper's two tasks, as |S_n|/L is.

    Args:
        tasks: N.
        overlap: "none", no feature has two tasks; "some", neighbours share one, S_n = {n, n + 1}; "full", all tasks
            have the same two, so that there is nothing to tell apart.
        heads: H.
    """

    tasks: int
    overlap: Overlap
    heads: int

    @property
    def training(self) -> str:
        """What its population is called."""
        return f"map-n{self.tasks}-{self.overlap}-h{self.heads}"

    @property
    def task(self) -> MultiTaskRegression:
        """L = 24, σ² = 0.1."""
        stride = {"none": 2, "some": 1, "full": 0}[self.overlap]
        supports = [(n * stride, n * stride + 1) for n in range(self.tasks)]
        return MultiTaskRegression(supports[-1][-1] + 1, supports, length=24, noise_var=0.1)


def sites(schedule: Schedule) -> tuple[Site, ...]:
    """The whole map: one to 2N + 1 heads for every number of tasks and every overlap."""
    return tuple(
        Site(tasks, overlap, heads)
        for tasks in schedule.map_tasks
        for overlap in OVERLAPS
        for heads in range(1, 2 * tasks + 2)
    )


def trainings(schedule: Schedule) -> dict[str, tuple[TrainConfig, ...]]:
    """Every training by name: one config, or a population."""
    return {
        **{f"h{heads}": (_config(schedule, n_heads=heads),) for heads in HEADS},
        **{
            name: (
                _config(schedule, activation=activation, activation_scale=scale, seed=ACTIVATION_SEEDS.get(name, 0)),
            )
            for name, (activation, scale) in ACTIVATIONS.items()
        },
        "linear": (_config(schedule, n_heads=1, activation="linear"),),
        **{
            f"kms-{rho:g}": tuple(
                _config(schedule, LinearRegression(5, 40, 0.1, covariance=kms(rho)), seed=seed)
                for seed in OPPOSITE_SEEDS[rho][: schedule.seeds]
            )
            for rho in RHOS
        },
        **{
            f"two-tasks-h{heads}": _population(TWO_TASKS, heads, schedule.steps, schedule.task_seeds)
            for heads in TASK_HEADS
        },
        **{
            site.training: _population(
                site.task, site.heads, schedule.map_steps, schedule.map_seeds, MAP_RECORDS, MAP_BATCH
            )
            for site in sites(schedule)
        },
        "same-sign": tuple(
            TrainConfig(MAIN, ModelConfig(MAIN.dim), schedule.basin_steps, seed=seed, data_seed=seed % STREAMS)
            for seed in range(schedule.basin_seeds)
        ),
        **{f"sparse-h{heads}": _deep(schedule, heads) for heads in schedule.sparse_heads},
    }


class Setting(TypedDict):
    """A task as the closed forms take it."""

    dim: int
    length: int
    noise_var: float


def setting(task: LinearRegression) -> Setting:
    """`task` as the closed forms take it; for isotropic covariates and E‖β‖² = 1."""
    return Setting(dim=task.dim, length=task.length, noise_var=task.noise_var)


def described(configs: Sequence[TrainConfig]) -> str:
    """A training or a population in words; the runs of a population differ in their seeds."""
    config, seeds = configs[0], [each.seed for each in configs]
    task, model = config.task, config.model
    sizes = f"d = {task.dim}, L = {task.length}"
    if isinstance(task, SparseRegression):
        sizes += f", {task.sparsity} of {task.dim} coefficients, σ² = {task.noise_var:g}"
    if isinstance(task, LinearRegression):
        sizes += f", σ² = {task.noise_var:g}" + ("" if task.isotropic else f", Σ = {task.covariance}")
    scale = f" with C = {model.activation_scale:g}" if model.activation != "softmax" else ""
    heads = "one head" if model.n_heads == 1 else f"{model.n_heads} heads"
    layers = f" in each of {model.n_layers} layers" if model.n_layers > 1 else ""
    return (
        f"{heads}{layers}, {model.activation}{scale}; {sizes}; "
        f"{config.steps:,} steps of {config.batch_size} prompts, {config.optimizer} at {config.lr:g}; "
        + (f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds from {seeds[0]} to {seeds[-1]}")
    )


def _config(
    schedule: Schedule,
    task: LinearRegression = MAIN,
    *,
    n_heads: int = 2,
    activation: str = "softmax",
    activation_scale: float = 1.0,
    seed: int = 0,
) -> TrainConfig:
    model = ModelConfig(task.dim, n_heads=n_heads, activation=activation, activation_scale=activation_scale)
    return TrainConfig(task, model, schedule.steps, seed=seed)


def _deep(schedule: Schedule, n_heads: int) -> tuple[TrainConfig, ...]:
    """Three layers of linear attention with room to work in, trained to where the learning rate is zero."""
    task = schedule.sparse
    model = ModelConfig(
        task.dim,
        n_heads=n_heads,
        n_layers=3,
        d_head=task.dim,
        activation="linear",
        activation_scale=1 / task.length,
        scratch=task.dim,
        read_out=True,
    )
    return tuple(
        TrainConfig(
            *(task, model, schedule.sparse_steps, 128),
            lr=3e-3,
            seed=seed,
            n_records=40,
            schedule="cosine",
            warmup=300,
            clip=1.0,
        )
        for seed in range(schedule.sparse_seeds)
    )


def _population(
    task: MultiTaskRegression, n_heads: int, steps: int, seeds: int, n_records: int = 300, batch_size: int = 256
) -> tuple[TrainConfig, ...]:
    """Runs that solve several tasks, which share `TASK_STREAMS` streams of prompts."""
    model = ModelConfig(task.dim, task.n_outputs, n_heads)
    return tuple(
        TrainConfig(task, model, steps, batch_size, seed=seed, n_records=n_records, data_seed=seed % TASK_STREAMS)
        for seed in range(seeds)
    )
