"""Models trained on the paper's main setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from icl_interp.config import ModelConfig
from icl_interp.records import Run, TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing.families.trained_members import trained_members
from icl_interp.testing.known import Known, trained_family

MAIN = LinearRegression(dim=5, length=40, noise_var=0.1)  # arXiv 2503.12734, section 3
TWO_TASKS = MultiTaskRegression(dim=6, supports=[(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)  # section 5.4
STEPS = 20_000
RECORDS = 64  # 11 of them in the last fifth of training, over which probes average; some 100 kB a run


@trained_family(
    "trained",
    "Models of three to five heads that were trained on the main setting, read as they are.",
)
def trained(seeds: Sequence[int], folder: Path | None) -> Iterator[Known]:
    """Nobody planted anything here, so nothing is known of them.  Batches of 128; nearly all have heads of both signs.

    Raises as `trained_members`.
    """

    def config(seed: int) -> TrainConfig:
        return TrainConfig(MAIN, ModelConfig(MAIN.dim, n_heads=3 + seed % 3), STEPS, 128, seed=seed, n_records=100)

    for run in trained_members(seeds, config, folder and folder / "trained"):
        yield Known(run)


@trained_family(
    "trained_same_sign",
    "Models of two heads that were trained on the main setting and ended with one sign, as a fifth of them do.",
    violates=(
        "kernel_fit.opposite_heads",
        "kernel_fit.zero_sum_ov",
        "kernel_fit.optimal_step",
        "kernel_fit.solution_manifold",
        "risk.risk_of_debiased_gd",
        "risk.function_of_debiased_gd",
        "length_generalization.generalizes_as_debiased_gd",
        "optimality.risk_near_best_debiased_gd",
        "optimality.risk_within_bayes_bound",
        "dynamics.zero_sum_throughout",
    ),
)
def same_sign(seeds: Sequence[int], folder: Path | None) -> Iterator[Known]:
    """Two heads of one sign end at the risk of one head at its best, (4.12), or a tenth of a percent below it.

    Batches of 64.

    Raises as `trained_members`.
    """

    def config(seed: int) -> TrainConfig:
        return TrainConfig(MAIN, ModelConfig(MAIN.dim, n_heads=2), STEPS, 64, seed=seed, n_records=RECORDS)

    for run in trained_members(seeds, config, folder and folder / "trained_same_sign", _of_one_sign):
        yield Known(run)


@trained_family(
    "trained_tasks",
    "Models of three or four heads that were trained on two tasks of four features each, two of them shared.",
)
def tasks(seeds: Sequence[int], folder: Path | None) -> Iterator[Known]:
    """Nobody planted anything here, so nothing is known of them.  Batches of 64.

    Raises as `trained_members`.
    """

    def config(seed: int) -> TrainConfig:
        model = ModelConfig(TWO_TASKS.dim, TWO_TASKS.n_outputs, n_heads=3 + seed % 2)
        return TrainConfig(TWO_TASKS, model, STEPS, 64, seed=seed, n_records=RECORDS)

    for run in trained_members(seeds, config, folder and folder / "trained_tasks"):
        yield Known(run)


def _of_one_sign(run: Run) -> bool:
    """Whether all ω have one sign, and all μ."""
    circuits = run.circuits()
    return all((values > 0).all() or (values < 0).all() for values in (circuits.omega, circuits.mu))
