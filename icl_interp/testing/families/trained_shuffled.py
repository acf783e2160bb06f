"""Models trained on labels that have nothing to do with the covariates beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt
from icl_interp.testing.families.trained import MAIN, RECORDS, TWO_TASKS
from icl_interp.testing.families.trained_members import trained_members
from icl_interp.testing.known import Known, trained_family

STEPS, BATCH = 1_500, 32  # by step 1,000 the risk is that of predicting zero, up to noise


@dataclass(frozen=True)
class ShuffledLabels:
    """Prompts of `task` in which the demonstrations' labels change places, within each prompt and at random.

    Covariates, labels and their moments are the task's own; what is lost is which label belongs to which covariates.
    The labels of one demonstration stay together, and the query keeps its own.
    """

    task: LinearRegression | MultiTaskRegression

    @property
    def dim(self) -> int:
        """d."""
        return self.task.dim

    @property
    def length(self) -> int:
        """L in training."""
        return self.task.length

    @property
    def n_outputs(self) -> int:
        """N, the task's responses."""
        return self.task.n_outputs

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        """Draw `batch` prompts as the task does, and shuffle their labels.

        Raises:
            ConfigError: `batch` or `length` below one.
        """
        prompt = self.task.sample(batch, length=length, generator=generator, device=device)
        order = torch.rand(prompt.y.shape[:2], generator=generator, device=prompt.y.device).argsort(1)
        return replace(prompt, y=prompt.y.take_along_dim(order[..., None], 1))


@trained_family(
    "trained_shuffled",
    "Models of two to four heads that were trained on shuffled labels, and are read under the main setting.",
    violates=(
        "circuit_pattern.kq_diagonal",
        "circuit_pattern.kq_identity",
        "circuit_pattern.kq_21_zero",
        "head_roles.heads_structured",
        "kernel_fit.optimal_step",
        "faithfulness.ideal_heads_explain",
        "risk.below_one_head_optimum",
        "risk.risk_of_debiased_gd",
        "risk.function_of_debiased_gd",
        "optimality.risk_near_best_debiased_gd",
        "optimality.risk_within_bayes_bound",
    ),
)
def shuffled(seeds: Sequence[int], folder: Path | None) -> Iterator[Known]:
    """There is nothing to be learned but to predict zero: μ shrinks, and KQ stays the random matrix that it was.

    Raises as `trained_members`.
    """

    def config(seed: int) -> TrainConfig:
        return _config(ShuffledLabels(MAIN), 2 + seed % 3, seed)

    for run in trained_members(seeds, config, folder and folder / "trained_shuffled"):
        yield Known(run, task=MAIN)


@trained_family(
    "trained_tasks_shuffled",
    "Models of three or four heads that were trained on two tasks with shuffled labels, and are read with labels in "
    "their places.",
    violates=(
        "circuit_pattern.kq_diagonal",
        "circuit_pattern.kq_21_zero",
        "head_roles.heads_structured",
        "faithfulness.ideal_heads_explain",
        "superposition.steps_on_support",
        "superposition.risk_of_dedicated_heads",
    ),
)
def tasks_shuffled(seeds: Sequence[int], folder: Path | None) -> Iterator[Known]:
    """As `shuffled`, with two responses.

    Raises as `trained_members`.
    """

    def config(seed: int) -> TrainConfig:
        return _config(ShuffledLabels(TWO_TASKS), 3 + seed % 2, seed)

    for run in trained_members(seeds, config, folder and folder / "trained_tasks_shuffled"):
        yield Known(run, task=TWO_TASKS)


def _config(task: ShuffledLabels, n_heads: int, seed: int) -> TrainConfig:
    model = ModelConfig(task.dim, task.n_outputs, n_heads)
    return TrainConfig(task, model, STEPS, BATCH, seed=seed, n_records=RECORDS)
