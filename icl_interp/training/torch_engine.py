"""The PyTorch engine: any task, any number of heads, layers and runs, CPU or CUDA."""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.tasks import Prompt, Task
from icl_interp.training.engine import SMALL_STEP, optimizer_settings, starting_weights
from icl_interp.training.gradients import Population, unpack
from icl_interp.training.prompts import Given, Sampled, Stream, stream
from icl_interp.weights import Weights

COLUMNS = 32  # heads of one block, where runs share their prompts
WARM_UP = 3  # steps before a CUDA graph is captured, in which the libraries allocate what they need


class TorchEngine:
    """Runs that differ in nothing but seeds and settings of the optimiser are trained at once.

    Initial weights are drawn on the CPU, the same for every device; prompts are drawn on the device that trains.
    """

    def __init__(self, configs: Sequence[TrainConfig], device: torch.device):
        groups = _grouped(configs)
        self._groups = [_Group([[configs[i] for i in runs] for runs in streams], device) for streams in groups]
        places = {
            i: (group, s, r)
            for group, streams in zip(self._groups, groups, strict=True)
            for s, runs in enumerate(streams)
            for r, i in enumerate(runs)
        }
        self._places = [places[i] for i in range(len(configs))]

    @staticmethod
    def grad(model: ModelConfig, weights: Weights, prompt: Prompt) -> tuple[float, Weights]:
        """Loss and gradient at `prompt`, computed as `advance` computes them."""
        population = Population(model, [[weights]], len(prompt), prompt.length)
        with torch.no_grad():
            return population.descend([Given(prompt)])[0, 0].item(), unpack(population.grads[0, 0], model)

    def advance(self, steps: int) -> None:
        """Take optimiser steps, each on fresh prompts.  A run that has taken its config's `steps` stands still."""
        for group in self._groups:
            group.advance(steps)

    def total_losses(self) -> Float[np.ndarray, "runs"]:
        """Each run's loss summed over its steps so far, each before its update: float64, added one by one."""
        totals = {group: group.totals.cpu() for group in self._groups}
        return np.array([totals[group][s, r].item() for group, s, r in self._places])

    def weights(self) -> list[Weights]:
        """Copies of the current weights, on the CPU."""
        rows = {group: group.population.rows.cpu() for group in self._groups}
        return [
            {name: view.clone() for name, view in unpack(rows[group][s, r], group.model).items()}
            for group, s, r in self._places
        ]

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on bit for bit, as copies on the CPU."""
        return {f"{i}.{name}": part for i, group in enumerate(self._groups) for name, part in group.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, which an engine of the same configs and device gave."""
        for i, group in enumerate(self._groups):
            group.restore({name: state[f"{i}.{name}"] for name in group.state()})


class _Group:
    """Runs that are trained at once: equally many on each of `streams` of prompts."""

    def __init__(self, streams: Sequence[Sequence[TrainConfig]], device: torch.device):
        self._config, self.model = streams[0][0], streams[0][0].model
        self._streams = [stream(runs[0], device) for runs in streams]
        starts = [[_initial(config, device) for config in runs] for runs in streams]
        length = int(self._config.task.length)  # a user's task may say it with numpy's numbers
        self.population = Population(self.model, starts, self._config.batch_size, length, _block(self._config, device))
        rows = self.population.rows
        self.totals = torch.zeros(rows.shape[:2], dtype=torch.float64, device=device)
        self._done = 0
        moments, counts = rows.new_zeros(2, *rows.shape), rows.new_zeros(rows.shape[:2])
        self._kept = {"weights": rows, "moments": moments, "counts": counts, "totals": self.totals}
        slices: dict[tuple[float, ...], list[list[Tensor]]] = defaultdict(list)
        of_settings: dict[tuple[float, ...], TrainConfig] = {}
        for s, runs in enumerate(streams):
            for settings, alike in itertools.groupby(enumerate(runs), lambda run: optimizer_settings(run[1])):
                at = [r for r, _ in alike]
                parts = [t[s, at[0] : at[-1] + 1] for t in (rows, self.population.grads, *moments)]
                slices[settings].append([*parts, counts[s, at[0]]])
                of_settings[settings] = runs[at[0]]
        varying = {} if self._config.steady else {s: torch.zeros((), device=device) for s in slices}
        self._rates = [(rate, of_settings[settings]) for settings, rate in varying.items()]
        self._updates = [
            _update(self._config.optimizer, settings, varying.get(settings), parts)
            for settings, parts in slices.items()
        ]
        heads = rows.shape[:2].numel() * self.model.n_layers * self.model.n_heads
        size = heads * self._config.batch_size * length * self.model.d_model
        self._threads = 1 if size < SMALL_STEP else None
        self._take_step = _Captured(self._step, self._streams, device) if device.type == "cuda" else self._step

    @torch.no_grad()
    def advance(self, steps: int) -> None:
        """Take steps, but no more than the config asks for."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads or threads)
        try:
            for _ in range(min(steps, self._config.steps - self._done)):
                for rate, config in self._rates:
                    rate.fill_(config.rate(self._done))  # in place: a CUDA graph reads it there
                self._take_step()
                self._done += 1
        finally:
            torch.set_num_threads(threads)

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU of all that `advance` changes."""
        state = {name: tensor.to("cpu", copy=True) for name, tensor in self._kept.items()}
        return (
            state
            | {f"stream.{i}": source.state() for i, source in enumerate(self._streams)}
            | {"done": torch.tensor(self._done)}
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to `state`; in place, for a CUDA graph knows tensors by their addresses."""
        for name, tensor in self._kept.items():
            tensor.copy_(state[name])
        for i, source in enumerate(self._streams):
            source.restore(state[f"stream.{i}"])
        self._done = int(state["done"])

    def _step(self) -> None:
        self.totals += self.population.descend(self._streams)
        if self._config.clip is not None:
            _clip(self.population.grads, self._config.clip)
        for update in self._updates:
            update()


class _Captured:
    """A step on a GPU: after a few to warm up, a CUDA graph, which spares the CPU the starting of every kernel.

    A graph goes through the same kernels again and again, so that it takes a task whose prompts depend on the generator
    alone.  Where a task cannot be captured (because it waits for the GPU, say), its steps go on one by one.
    """

    def __init__(self, step: Callable[[], None], streams: Sequence[Stream], device: torch.device):
        self._step, self._device = step, device
        self._samplers = [stream for stream in streams if isinstance(stream, Sampled)]
        self._stream = torch.cuda.Stream(device)  # capture needs one of its own, and warming up is by stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0

    def __call__(self) -> None:
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            if self._taken == WARM_UP:
                self._graph = self._captured()
            self._step() if self._graph is None else self._graph.replay()
        outside.wait_stream(self._stream)
        self._taken += 1

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        states = [sampler.state() for sampler in self._samplers]
        try:
            for sampler in self._samplers:
                graph.register_generator_state(sampler.generator)
            with torch.cuda.graph(graph, stream=self._stream):
                self._step()
        except Exception as error:
            # A generator that was registered for a capture that failed is of no more use.
            for sampler, state in zip(self._samplers, states, strict=True):
                sampler.generator = torch.Generator(self._device)
                sampler.restore(state)
            warnings.warn(f"training without a CUDA graph, so slower: {error}", RuntimeWarning, stacklevel=2)
            return None
        return graph


def _initial(config: TrainConfig, device: torch.device) -> Weights:
    return {name: weight.to(device) for name, weight in starting_weights(config).items()}


def _block(config: TrainConfig, device: torch.device) -> int | None:
    """How many runs go through a product at once: by the config alone, since a wider product may round differently.

    A run with a `data_seed` is taken to have others beside it: were it alone, it would take twice as long as it must.
    """
    if device.type != "cpu":
        return None
    return 1 if config.data_seed is None else max(1, COLUMNS // config.model.n_heads)


def _grouped(configs: Sequence[TrainConfig]) -> list[list[list[int]]]:
    """Which runs are trained at once: for each group, for each of its streams, their indices."""

    streams: dict[tuple[Hashable, ...], list[int]] = defaultdict(list)
    for i, c in sorted(enumerate(configs), key=lambda item: optimizer_settings(item[1])):
        how = c.optimizer, c.schedule, c.warmup, c.clip
        shape = (_identity(c.task), c.model, c.batch_size, c.steps, how, c.data_seed is None)
        streams[shape, c.prompt_seed].append(i)
    groups: dict[tuple[Hashable, ...], list[list[int]]] = defaultdict(list)
    for (shape, _), runs in streams.items():
        groups[shape, len(runs)].append(runs)
    return list(groups.values())


def _identity(task: Task) -> Hashable:
    try:
        hash(task)
    except TypeError:
        return id(task)
    return task


def _clip(grads: Float[Tensor, "streams runs *heads numbers"], most: float) -> None:
    """Shorten the gradient of each run to a norm of `most`."""
    norms = torch.linalg.vector_norm(grads, dim=tuple(range(2, grads.ndim)), keepdim=True)
    grads.mul_((most / norms).clamp(max=1.0))  # most/0 is infinity, and NaN stays NaN: a failed run is to be seen


def _update(
    optimizer: str, settings: tuple[float, ...], varying: Tensor | None, slices: Sequence[Sequence[Tensor]]
) -> Callable[[], None]:
    lr, weight_decay, beta1, beta2, momentum = settings
    lr = lr if varying is None else varying
    rows, grads, first, second, counts = (list(parts) for parts in zip(*slices, strict=True))
    common = {"lr": lr, "weight_decay": weight_decay, "maximize": False, "fused": True}
    if optimizer == "sgd":
        return partial(sgd, rows, grads, first, momentum=momentum, dampening=0, nesterov=False, **common)
    options = {"beta1": beta1, "beta2": beta2, "eps": 1e-8, "amsgrad": False, **common}
    return partial(adamw if optimizer == "adamw" else adam, rows, grads, first, second, [], counts, **options)
