"""The PyTorch engine: any task, any number of heads and layers, CPU or CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from icl_interp.records import TrainConfig
from icl_interp.tasks import Prompt
from icl_interp.training.gradients import loss_and_grad
from icl_interp.training.seeds import data_seed, init_seed
from icl_interp.weights import Weights, initial_weights


class TorchEngine:
    """All weights lie in one flat parameter, so that the optimiser is one fused kernel.

    Initialisation is drawn on the CPU, the same for every device; prompts are drawn on the device that trains.
    """

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config = config
        self._generator = torch.Generator(device).manual_seed(data_seed(config.seed))
        start = initial_weights(config.model, torch.Generator().manual_seed(init_seed(config.seed)))
        self._flat = torch.nn.Parameter(torch.cat([weight.flatten() for weight in start.values()]).to(device))
        self._flat.grad = torch.zeros_like(self._flat)
        self._views = _split(self._flat.data, start)
        self._grad_views = _split(self._flat.grad, start)
        self._optimizer = _optimizer(self._flat, config)

    def grad(self, prompt: Prompt) -> tuple[float, Weights]:
        """Loss and gradient at `prompt` and the current weights; changes nothing."""
        loss, grads = loss_and_grad(self._views, self.config.model, prompt.to(self._flat.device))
        return loss.item(), grads

    @torch.no_grad()
    def advance(self, steps: int) -> float:
        """Take optimiser steps, each on fresh prompts; return the mean loss over them, each before its update."""
        total = torch.zeros((), dtype=torch.float64, device=self._flat.device)
        for _ in range(steps):
            prompt = self.config.task.sample(
                self.config.batch_size, generator=self._generator, device=self._flat.device
            )
            loss, grads = loss_and_grad(self._views, self.config.model, prompt)
            for name, grad in grads.items():
                self._grad_views[name].copy_(grad)
            self._optimizer.step()
            total += loss
        return total.item() / steps

    def weights(self) -> Weights:
        """A copy of the current weights, on the CPU."""
        return {name: view.detach().to("cpu", copy=True) for name, view in self._views.items()}


def _split(flat: Tensor, like: Weights) -> Weights:
    parts = flat.split([weight.numel() for weight in like.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(like.items(), parts, strict=True)}


def _optimizer(parameter: torch.nn.Parameter, config: TrainConfig) -> torch.optim.Optimizer:
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD([parameter], momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([parameter], betas=config.betas, **common)
