"""What a probe may look at: a checkpoint, the task it is read under, and prompts drawn from seeds of its own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from enum import Flag, auto
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp import passes
from icl_interp.circuits import Circuits, defined
from icl_interp.config import ModelConfig, check_count
from icl_interp.errors import ICLError
from icl_interp.records import Dynamics, Run
from icl_interp.roles import Heads, classify, reference_shape
from icl_interp.tasks import Prompt, Task, UnavailableTask
from icl_interp.weights import Weights

if TYPE_CHECKING:
    from icl_interp.model import ICLTransformer

T = TypeVar("T")
FIRST = 32_768  # prompts for one measurement, where they decide
DEFAULT_BUDGET = 131_072  # where those do not
HELD_NUMBERS = 64_000_000  # float64 numbers (512 MB) of prompts that are looked at all at once
CHUNK_NUMBERS, CHUNK_PROMPTS = 8_000_000, 4_096  # numbers (64 MB) and prompts that are looked at in turn


class Need(Flag):
    """What a probe needs of a checkpoint; it is skipped, visibly, where something is missing.

    The last three are about what kind of model it is: one layer of heads on a prompt's own columns (arXiv 2503.12734),
    a deeper one or one that has more than heads, one of several responses.  A probe has nothing to say of a model of
    another kind, and is left out there unless it is named.
    """

    NONE = 0
    WEIGHTS = auto()
    FORWARD = auto()
    TASK = auto()
    DYNAMICS = auto()
    ONE_LAYER = auto()
    DEEP = auto()
    SEVERAL_RESPONSES = auto()


KINDS = Need.ONE_LAYER | Need.DEEP | Need.SEVERAL_RESPONSES


class NotApplicable(ICLError):  # noqa: N818 - an outcome, not a mistake
    """Raised by a probe whose question makes no sense for this checkpoint; the message says why."""


class UndeclaredNeed(ICLError):  # noqa: N818
    """A probe looked at something that it did not declare in `needs` or `uses`."""


class Context:
    """One probe's view of a checkpoint.

    Everything random comes from `(seed, label)`, never from the order of calls, so a probe's numbers do not depend on
    which other probes run.

    Args:
        run: the checkpoint.
        task: the distribution it is read under; None where unknown.
        seed: of all randomness.
        budget: prompts that one measurement may draw.  It is where `run_probe` ends: it begins with `FIRST` of them.
        device: where forward passes run.
        allowed: what the probe declared; looking at anything else raises `UndeclaredNeed`.
    """

    def __init__(
        self,
        run: Run,
        task: Task | None = None,
        *,
        seed: int = 0,
        budget: int | None = None,
        device: torch.device | str = "cpu",
        allowed: Need | None = None,
    ):
        check_count("seed", seed, minimum=0)
        check_count("budget", DEFAULT_BUDGET if budget is None else budget)
        task = run.task if task is None else task
        self._run = run
        self._task = None if isinstance(task, UnavailableTask) else task
        self.seed: int = seed
        self.budget: int = DEFAULT_BUDGET if budget is None else budget
        self.device: torch.device = torch.device(device)
        self._allowed = allowed
        self._shared: dict[str, object] = {}

    def restricted(self, allowed: Need) -> Context:
        """The same view, with only `allowed` in sight.  What was computed is shared."""
        return self._like(budget=self.budget, allowed=allowed)

    def at(self, budget: int) -> Context:
        """The same view with another budget.  What was computed is shared, unless it was computed from prompts."""
        return self._like(budget=budget, allowed=self._allowed)

    def _like(self, *, budget: int, allowed: Need | None) -> Context:
        context = type(self)(self._run, self._task, seed=self.seed, budget=budget, device=self.device, allowed=allowed)
        context._shared = self._shared
        return context

    @property
    def available(self) -> Need:
        """What this checkpoint can offer."""
        offered = [Need.WEIGHTS, Need.FORWARD]
        if self._task is not None:
            offered.append(Need.TASK)
        if self._run.dynamics is not None and len(self._run.dynamics.steps) > 1:
            offered.append(Need.DYNAMICS)
        return reduce(or_, offered) | kind_of_model(self.config)

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model; free for every probe."""
        return self._run.model_config

    @property
    def circuits(self) -> Circuits:
        """KQ and OV of the checkpoint's own (last) weights, a fresh copy.  Needs WEIGHTS."""
        self._check(Need.WEIGHTS, "circuits")
        return copy.deepcopy(self._circuits)

    @property
    def weights(self) -> Weights:
        """The checkpoint's own (last) weights in float64, a fresh copy, for `icl_interp.passes`.  Needs WEIGHTS."""
        self._check(Need.WEIGHTS, "weights")
        return self._weights(torch.empty(0, dtype=torch.float64, device=self.device))

    @property
    def task(self) -> Task:
        """The distribution the checkpoint is read under.  Needs TASK."""
        self._check(Need.TASK, "task")
        if self._task is None:
            raise NotApplicable("the task is not known")
        return self._task

    @property
    def dynamics(self) -> Dynamics | None:
        """The record of the training, if there is one.  Needs (or uses) DYNAMICS."""
        self._check(Need.DYNAMICS, "dynamics")
        return self._run.dynamics

    def offers(self, need: Need) -> bool:
        """Whether something the probe `uses` is there."""
        return need in self.available and (self._allowed is None or need in self._allowed)

    def late_circuits(self) -> list[Circuits]:
        """The circuits at the snapshots of the last fifth of training, oldest first.  Needs (or uses) DYNAMICS."""
        if self.dynamics is None:
            return []
        return [Circuits.from_weights(self.dynamics.weights(step), self.config) for step in self.dynamics.late_steps()]

    def model(self) -> ICLTransformer:
        """The hooked model, a fresh copy: hooks and edits stay with the probe.  Needs FORWARD."""
        self._check(Need.FORWARD, "model()")
        return self._run.model().to(self.device)

    def rng(self, label: str) -> np.random.Generator:
        """A numpy generator of the probe's own."""
        return np.random.default_rng(self._entropy(label))

    def sample(
        self, label: str, n: int | None = None, *, length: int | None = None, task: Task | None = None
    ) -> Prompt:
        """Prompts (float64) drawn from the task, the same for the same label.  Needs TASK.

        Args:
            label: names the stream; prompts of different labels are independent.
            n: how many, one at least; None means the budget.
            length: demonstrations; None means the task's.
            task: a variation of the task, such as `task.shifted(mean)`.
        """
        return self._join(list(self.chunks(label, n, length=length, task=task)))

    def chunks(
        self, label: str, n: int | None = None, *, length: int | None = None, task: Task | None = None
    ) -> Iterator[Prompt]:
        """The same prompts as `sample`, in pieces that fit in memory."""
        source = self.task if task is None else task
        n = self.budget if n is None else n
        check_count("n", n)
        # The model has no say in the size: the same seed has to give the same prompts to models that are compared.
        size = max(1, min(n, CHUNK_PROMPTS, CHUNK_NUMBERS // _numbers(source, length)))
        generator = torch.Generator().manual_seed(self._entropy(label))
        for start in range(0, n, size):
            prompt = source.sample(min(size, n - start), length=length, generator=generator)
            yield prompt.to(self.device, torch.float64)

    def holdable(self, n: int) -> int:
        """`n`, or as many of the task's prompts as can be held at once where they are large (512 MB).  Needs TASK."""
        return max(2, min(n, HELD_NUMBERS // _numbers(self.task)))

    def predict(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q of the checkpoint.  Needs FORWARD."""
        self._check(Need.FORWARD, "predict()")
        if self.config.plain:
            return self._circuits.predict(prompt)
        predicted = passes.predict(self._weights(prompt.x), self.config, prompt.z)
        return defined(predicted, prompt, self.config.activation)

    def head_outputs(self, prompt: Prompt) -> Float[Tensor, "batch heads outputs"]:
        """What each last-layer head adds to the prediction.  Needs FORWARD."""
        self._check(Need.FORWARD, "head_outputs()")
        return self._circuits.head_outputs(prompt)

    @property
    def shape(self) -> Float[np.ndarray, "dim dim"]:
        """G, the shape that KQ_11 is expected to have under the task (`roles.reference_shape`).  Needs TASK."""
        return reference_shape(self.task, self.config.dim)

    @property
    def heads(self) -> Heads:
        """Roles of a one-layer model's heads, found once a budget and copied for every probe.  Needs FORWARD and TASK.

        Raises:
            NotApplicable: a model whose heads are not kernel regressors of the prompt: of several layers, or more.
        """
        self._check(Need.FORWARD | Need.TASK, "heads")
        if not self.config.plain:
            raise NotApplicable("heads have roles in one layer, on a prompt's own columns")
        found = self._once(
            f"heads on {self.budget} prompts",
            lambda: classify(self._circuits, self.chunks("heads"), self.shape),
        )
        return copy.deepcopy(found)

    def single_response(self) -> None:
        """Raise `NotApplicable` for several responses."""
        if self.config.n_outputs > 1:
            raise NotApplicable(f"the claim is about one response; this model has {self.config.n_outputs}")

    def _weights(self, like: Tensor) -> Weights:
        return {name: weight.detach().to(like, copy=True) for name, weight in self._run.weights.items()}

    @property
    def _circuits(self) -> Circuits:
        return self._once("circuits", self._run.circuits)

    def _check(self, need: Need, what: str) -> None:
        if self._allowed is not None and need not in self._allowed:
            raise UndeclaredNeed(f"the probe looked at {what} without declaring {need} in its needs or uses")

    def _once(self, key: str, compute: Callable[[], T]) -> T:
        if key not in self._shared:
            self._shared[key] = compute()
        return cast("T", self._shared[key])

    def _entropy(self, label: str) -> int:
        """63 bits of (seed, label), of which torch's generator on the CPU keeps 32."""
        digest = hashlib.sha256(f"{self.seed} {label}".encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @staticmethod
    def _join(prompts: list[Prompt]) -> Prompt:
        return Prompt(*(torch.cat([getattr(p, name) for p in prompts]) for name in ("x", "y", "x_q", "y_q")))


def kind_of_model(model: ModelConfig) -> Need:
    """Which of `KINDS` a model is of."""
    several = Need.SEVERAL_RESPONSES if model.n_outputs > 1 else Need.NONE
    return several | (Need.ONE_LAYER if model.plain else Need.DEEP)


def _numbers(task: Task, length: int | None = None) -> int:
    """How many numbers a prompt takes, drawn and in the form that is worked on."""
    return 2 * (length or task.length) * (task.dim + task.n_outputs)
