"""A population on its way from configs to runs; `train` trains a population of one."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from icl_interp.activations import activation
from icl_interp.errors import CheckpointError
from icl_interp.passes import predict
from icl_interp.records import Run, TrainConfig
from icl_interp.serialization import to_data
from icl_interp.training.engines import EngineName, build, choose
from icl_interp.training.interruption import Interruption
from icl_interp.training.journal import Journal
from icl_interp.training.recording import POPULATION_BYTES, RUN_BYTES, Recorder, record_steps
from icl_interp.training.seeds import record_seed
from icl_interp.weights import Weights

BREATH = 0.1  # seconds between two looks at the losses, the progress bar, the clock and Ctrl-C


class Population:
    """Configs with their engine, their records, and how far they are.

    Raises:
        ConfigError: see `engines.choose`.
    """

    def __init__(self, configs: Sequence[TrainConfig], engine: EngineName, device: str | torch.device):
        self.failures: dict[int, str] = {}
        self._configs = configs
        self._choices = [choose(config, engine, device) for config in configs]
        self._engine = build(configs, self._choices)
        budget = min(RUN_BYTES, POPULATION_BYTES // len(configs))
        self._recorders = [
            Recorder(config.model, record_steps(config.steps, config.n_records), budget) for config in configs
        ]
        self._journal: Journal | None = None
        self._step, self._pace = 0, 20
        self._taken: tuple[int, np.ndarray, list[Weights], tqdm | None] | None = None
        self._recorded = np.zeros(len(configs), dtype=np.int64)  # step of each run's last record
        self._total = np.zeros(len(configs))  # and its total loss there

    def described(self) -> dict[str, Any]:
        """What is trained and by what, as plain data."""
        return {"configs": [to_data(c) for c in self._configs], "choices": [[n, str(d)] for n, d in self._choices]}

    def made(self, runs: Sequence[Run]) -> bool:
        """Whether `runs` are what this population was to become."""
        return len(runs) == len(self._configs) and all(
            run.training is not None and run.step == config.steps and to_data(run.training) == to_data(config)
            for run, config in zip(runs, self._configs, strict=True)
        )

    @property
    def finished(self) -> bool:
        """Whether all runs took their last step, or failed."""
        return self._step >= self._end or len(self.failures) == len(self._configs)

    def train(self, journal: Journal | None, progress: bool | None) -> None:
        """Train to the end, or until Ctrl-C."""
        self._journal = journal
        # The state may have been saved on reaching a step, before that step was recorded.
        steps = sorted(
            {step for recorder in self._recorders for step in recorder.planned if step >= max(self._step, 1)}
        )
        if self._step == 0:
            self._record_untrained()
        hidden = None if progress is None else not progress
        with (
            Interruption() as interrupted,
            tqdm(total=self._end, initial=self._step, unit=" steps", disable=hidden) as bar,
        ):
            for target in steps:
                self._advance(target, bar, interrupted)
                if self._step < target:
                    break
                self._take(bar)
            self._record()
        if not self.finished:
            if np.isfinite(self._engine.total_losses()).any():
                self._save()  # without the record that follows: whoever resumes ends as if nothing had happened
            self._take(None)
            self._record()

    def restore(self, journal: Journal) -> None:
        """Go on from where `journal` was last saved.

        Raises:
            ConfigError, CheckpointError: see `Journal.load`.
        """
        self._step, state = journal.load()
        own = "engine."
        try:
            self._recorded, self._total = state["recorded"].numpy(), state["total"].numpy()
            self._engine.restore({name.removeprefix(own): t for name, t in state.items() if name.startswith(own)})
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{journal.folder} cannot be gone on from: it is no state of this: {error}"
            ) from error

    def run(self, index: int) -> Run:
        """What has become of a config."""
        config, recorder, (engine, device) = self._configs[index], self._recorders[index], self._choices[index]
        earlier = [] if self._journal is None else self._journal.parts(index, recorder.names)
        dynamics = recorder.join([part for part in (*earlier, recorder.part()) if part])
        named = ("icl-interp", "torch", "numpy", "numba-cuda" if engine == "cuda" else engine)
        versions = {name: version(name) for name in dict.fromkeys(named)}
        return Run(
            model_config=config.model,
            weights={name: snapshots[-1].clone() for name, snapshots in dynamics.snapshots.items()},
            task=config.task,
            training=config,
            dynamics=dynamics,
            step=int(dynamics.steps[-1]),
            seed=config.seed,
            versions=versions | {"python": platform.python_version(), "device": device.type, "engine": engine},
        )

    @property
    def _end(self) -> int:
        return max(config.steps for config in self._configs)

    def _advance(self, target: int, bar: tqdm, interrupted: Interruption) -> None:
        """On to step `target`, unless interrupted or all runs have failed."""
        losses = self._engine.total_losses()
        while self._step < target and not interrupted and np.isfinite(losses).any():
            count, start = min(self._pace, target - self._step), time.perf_counter()
            self._engine.advance(count)
            self._step += count
            self._record()  # of five hundred runs it takes 30 ms, in which a GPU is at work
            losses = self._engine.total_losses()
            bar.update(count)
            # How steps are divided over calls changes nothing but how soon one gets a word in.
            self._pace = max(1, min(2 * self._pace, int(count * BREATH / (time.perf_counter() - start + 1e-9))))
            if self._journal is not None and self._journal.due(sum(recorder.nbytes for recorder in self._recorders)):
                self._save()

    def _take(self, bar: tqdm | None) -> None:
        """What the records at this step are made of: of the runs that plan one, of all on their way without a `bar`."""
        self._taken = self._step, self._engine.total_losses(), self._engine.weights(), bar

    def _record(self) -> None:
        """Make records of what was taken, if anything was."""
        if self._taken is None:
            return
        (step, totals, weights, bar), self._taken = self._taken, None
        for run, config in enumerate(self._configs):
            planned = bar is None or step in self._recorders[run].planned
            if not planned or run in self.failures or not self._recorded[run] < step <= config.steps:
                continue
            mean = (totals[run] - self._total[run]) / (step - self._recorded[run])
            if not (np.isfinite(mean) and all(np.isfinite(weight.numpy()).all() for weight in weights[run].values())):
                self.failures[run] = (
                    f"the loss became {mean} between steps {self._recorded[run]} and {step}: try a smaller lr "
                    f"(it was {config.lr}){_other_causes(config)}"
                )
                continue
            self._recorders[run].record(step, mean, weights[run])
            self._recorded[run], self._total[run] = step, totals[run]
            if bar is not None:
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)

    def _record_untrained(self) -> None:
        for config, recorder, weights in zip(self._configs, self._recorders, self._engine.weights(), strict=True):
            generator = torch.Generator().manual_seed(record_seed(config.seed))
            prompt = config.task.sample(config.batch_size, generator=generator)
            prediction = predict(weights, config.model, prompt.z)
            recorder.record(0, (prediction - prompt.y_q).square().mean().item(), weights)

    def _save(self) -> None:
        if self._journal is None:
            return
        state = {f"engine.{name}": tensor for name, tensor in self._engine.state().items()}
        state |= {"recorded": torch.from_numpy(self._recorded), "total": torch.from_numpy(self._total)}
        records = {f"{i}.{k}": t for i, recorder in enumerate(self._recorders) for k, t in recorder.part().items()}
        if self._journal.save(self._step, state, records):
            for recorder in self._recorders:
                recorder.clear()


def _other_causes(config: TrainConfig) -> str:
    f = activation(config.model.activation)
    if f.name == "softmax" or not f.normalised:
        return ""
    return f"; attention with {f.formula} is not defined where its denominator comes close to zero"
