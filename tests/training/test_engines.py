"""Which engine trains what, and several of them side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import oracles
import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, Prompt, kms
from icl_interp.training import engines
from icl_interp.training.engines import build, choose

TASK = LinearRegression(3, 12)
PLAIN = TrainConfig(TASK, ModelConfig(3), batch_size=16)
DEEP = dataclasses.replace(PLAIN, model=ModelConfig(3, n_layers=2))
CPU = torch.device("cpu")


class Noisier(LinearRegression):
    """A user's variation on ours: what it samples is its own affair."""

    def sample(self, *arguments: Any, **options: Any) -> Prompt:
        prompt = super().sample(*arguments, **options)
        return Prompt(prompt.x, 2 * prompt.y, prompt.x_q, prompt.y_q)


OWN = dataclasses.replace(PLAIN, task=Noisier(3, 12))


def test_auto_takes_the_fast_engine_where_it_can() -> None:
    assert choose(PLAIN, "auto", "cpu") == ("numba", CPU)
    assert choose(DEEP, "auto", "cpu") == ("torch", CPU)
    assert choose(OWN, "auto", "cpu") == ("torch", CPU)
    assert choose(PLAIN, "torch", "cpu") == ("torch", CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DEEP, "it trains models of one layer, and n_layers is 2; use 'torch' or 'auto'"),
        (OWN, r"it draws the prompts of linear regressions itself, and the task is Noisier\("),
    ],
)
def test_what_numba_cannot_do_is_said(config: TrainConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"engine 'numba' cannot train this: {message}"):
        choose(config, "numba", "auto")


def test_a_gpu_is_worth_a_large_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    large = dataclasses.replace(PLAIN, batch_size=10**6)
    assert choose(PLAIN, "auto", "auto") == ("numba", CPU)
    assert choose(DEEP, "auto", "auto") == ("torch", CPU)
    assert choose(large, "auto", "auto") == ("torch", torch.device("cuda"))
    assert choose(large, "numba", "auto") == ("numba", CPU)
    assert choose(PLAIN, "auto", "cuda") == ("torch", torch.device("cuda"))
    with pytest.raises(ConfigError, match="it runs on the CPU, and device is 'cuda'"):
        choose(PLAIN, "numba", "cuda")


def test_the_cuda_engine_is_worth_a_long_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    long = TrainConfig(LinearRegression(5, 40), ModelConfig(5, n_heads=2), steps=500_000)
    deep = dataclasses.replace(long, model=ModelConfig(5, n_layers=2))
    wide = dataclasses.replace(long, task=LinearRegression(100, 40), model=ModelConfig(100))
    with pytest.raises(ConfigError, match=r"it needs a GPU and numba-cuda \(pip install icl-interp\[cuda\]\)"):
        choose(long, "cuda", "auto")
    assert choose(long, "auto", "auto") == ("numba", CPU)
    monkeypatch.setattr(engines, "gpus", lambda: 2)
    assert choose(long, "auto", "auto") == ("cuda", torch.device("cuda"))
    assert choose(long, "auto", "cpu") == ("numba", CPU)
    assert choose(dataclasses.replace(long, steps=1_000), "auto", "auto") == ("numba", CPU)
    assert choose(deep, "auto", "auto")[0] == "torch"
    assert choose(wide, "auto", "auto") == ("numba", CPU)  # no room on a multiprocessor
    assert choose(PLAIN, "cuda", "cuda:1") == ("cuda", torch.device("cuda:1"))
    for device in ("cpu", "cuda:2"):
        with pytest.raises(ConfigError, match=f"it runs on one of 2 GPUs, and device is '{device}'"):
            choose(PLAIN, "cuda", device)
    with pytest.raises(ConfigError, match="engine 'cuda' cannot train this: it trains models of one layer"):
        choose(deep, "cuda", "auto")


def test_several_engines_are_each_what_they_are_alone() -> None:
    configs = [DEEP, PLAIN, OWN, dataclasses.replace(PLAIN, seed=1)]
    choices = [choose(config, "auto", "cpu") for config in configs]
    together, again = build(configs, choices), build(configs, choices)
    together.advance(10)
    again.restore(together.state())
    for engine in (together, again):
        engine.advance(5)
    for i, config in enumerate(configs):
        alone = build([config], choices[i : i + 1])
        alone.advance(15)
        for engine in (together, again):
            assert engine.total_losses()[i] == alone.total_losses()[0]
            mine, own = engine.weights()[i], alone.weights()[0]
            assert all(torch.equal(mine[name], own[name]) for name in own)


def test_engines_agree_on_the_same_prompts() -> None:
    """On the CPU both draw a seed's prompts alike, so that what is left between them is rounding."""
    configs = [
        TrainConfig(TASK, ModelConfig(3), batch_size=70, seed=0),
        TrainConfig(TASK, ModelConfig(3, n_heads=3), seed=1, data_seed=0, optimizer="sgd", lr=0.1, momentum=0.9),
        TrainConfig(LinearRegression(4, 9, covariance=kms(0.5), mean=1.0), ModelConfig(4), optimizer="adamw"),
    ]
    pair = [build(configs, [choose(config, name, "cpu") for config in configs]) for name in ("numba", "torch")]
    for engine in pair:
        engine.advance(300)
    for a, b in zip(*(engine.weights() for engine in pair), strict=True):
        assert oracles.distance(a, b) < 1e-5
    a, b = (engine.total_losses() for engine in pair)
    np.testing.assert_allclose(a, b, rtol=1e-6)
