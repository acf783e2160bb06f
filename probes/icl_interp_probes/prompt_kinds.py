"""Prompts like those of the training, and unlike them: what tells algorithms apart that agree on the former.

No probe is declared here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task, kms

NOISE, SCALE, CORRELATION = 4.0, 1.25, 0.5  # factors of σ² and of x; correlation of neighbouring covariates
TRAINING = "training"


@dataclass(frozen=True)
class Kind:
    """Prompts of one kind.

    Args:
        name, what: they are called and are.
        task: whose prompts; its queries carry no noise where that can be had, so that errors are those beyond noise.
        length: demonstrations.
        scale: what covariates are multiplied by, once labels are drawn.
    """

    name: str
    what: str
    task: Task
    length: int
    scale: float = 1.0

    def edit(self, prompt: Prompt) -> Prompt:
        """A prompt of `task`, with its covariates scaled."""
        return dataclasses.replace(prompt, x=self.scale * prompt.x, x_q=self.scale * prompt.x_q)


def kinds(task: Task) -> Iterator[Kind]:
    """Prompts as in training, then all others that this task can be varied to."""
    task, L = noiseless(task), task.length
    yield Kind(TRAINING, f"as in training, L = {L}", task, L)
    if isinstance(task, SparseRegression | LinearRegression | MultiTaskRegression):
        yield from _other_noise(task, task.noise_var or task.signal_var / NOISE**2)
    if isinstance(task, SparseRegression):
        for sparsity in sorted({1, task.dim} - {task.sparsity}):
            other = dataclasses.replace(task, sparsity=sparsity)
            yield Kind("dense w" if sparsity > 1 else "one coefficient", f"s = {sparsity}", other, L)
    if isinstance(task, LinearRegression) and task.dim > 1:
        other = dataclasses.replace(task, covariance=kms(CORRELATION) if task.isotropic else None)
        what = f"neighbours correlated by {CORRELATION:g}" if task.isotropic else "Σ = I"
        yield Kind("another Σ", what, other, L)
    yield Kind("scaled x", f"x times {SCALE:g}, labels kept", task, L, scale=SCALE)
    yield Kind("long prompts", f"L = {2 * L}", task, 2 * L)
    if L > 1:
        yield Kind("short prompts", f"L = {L // 2}", task, L // 2)


def noiseless(task: Task) -> Task:
    """The same task with noiseless responses of queries; as it is if it is not one of the library's own."""
    if isinstance(task, SparseRegression | LinearRegression | MultiTaskRegression):
        return dataclasses.replace(task, query_noise=False)
    return task


def _other_noise(task: SparseRegression | LinearRegression | MultiTaskRegression, noise: float) -> Iterator[Kind]:
    """More noise, and less; of a task that has none some."""
    factors = {"more noise": NOISE, "less noise": 1 / NOISE} if task.noise_var else {"noise": NOISE}
    for name, factor in factors.items():
        other = dataclasses.replace(task, noise_var=factor * noise)
        yield Kind(name, f"σ² = {other.noise_var:g}", other, task.length)
