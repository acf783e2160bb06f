"""Which models the paper's figures rest on: every training by name, on either schedule.

Setting, unless a name says otherwise: d = 5, L = 40, σ² = 0.1, two heads, Adam at 1e-3, batches of 256, seed 0 (arXiv
2503.12734, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, kms

ScheduleName = Literal["quick", "paper"]
PAPER_STEPS = 500_000
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


@dataclass(frozen=True)
class Schedule:
    """How much work a reproduction is given.

    Args:
        name: "quick" or "paper", or another: runs are kept in a folder of that name.
        steps: of every training, but for those of many seeds.
        seeds: of each population with correlated covariates.
        basin_seeds, basin_steps: of the population that is asked how often heads take the same sign.
        prompts: of one Monte Carlo number.
    """

    name: str
    steps: int
    seeds: int
    basin_seeds: int
    basin_steps: int
    prompts: int

    @property
    def whole(self) -> bool:
        """Whether trainings are as long as the paper's."""
        return self.steps >= PAPER_STEPS


SCHEDULES: dict[ScheduleName, Schedule] = {
    "quick": Schedule("quick", 100_000, 6, 64, 20_000, 40_000),
    "paper": Schedule("paper", PAPER_STEPS, 8, 256, 20_000, 200_000),
}


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
        "same-sign": tuple(
            TrainConfig(MAIN, ModelConfig(MAIN.dim), schedule.basin_steps, seed=seed, data_seed=seed % STREAMS)
            for seed in range(schedule.basin_seeds)
        ),
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
    if isinstance(task, LinearRegression):
        sizes += f", σ² = {task.noise_var:g}" + ("" if task.isotropic else f", Σ = {task.covariance}")
    scale = f" with C = {model.activation_scale:g}" if model.activation != "softmax" else ""
    return (
        f"{'one head' if model.n_heads == 1 else f'{model.n_heads} heads'}, {model.activation}{scale}; {sizes}; "
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
