"""What engines are held against, written plainly: autograd of the hooked module, and the compiled engine's prompts."""

from __future__ import annotations

import numpy as np
import torch

from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.records import TrainConfig
from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt
from icl_interp.training import gaussian
from icl_interp.training.seeds import data_seed
from icl_interp.weights import WEIGHT_NAMES, Weights


class Cubic:
    """A user's own task: y = (βᵀx)³."""

    dim, length, n_outputs = 2, 8, 1

    def sample(
        self,
        batch: int,
        *,
        length: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Prompt:
        x = torch.randn(batch, (length or self.length) + 1, 2, generator=generator, device=device)
        beta = torch.randn(batch, 2, 1, generator=generator, device=device)
        y = (x @ beta) ** 3
        return Prompt(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])


def autograd(weights: Weights, config: ModelConfig, prompt: Prompt) -> tuple[float, Weights]:
    """Loss and gradient in float64 through the full hooked module: no folding, no query row."""
    model = ICLTransformer.from_weights(config, {name: weight.double() for name, weight in weights.items()})
    prediction = model(prompt.to(dtype=torch.float64).z)[:, -1]
    loss = (prediction - prompt.y_q.double()).square().mean()
    loss.backward()
    grads = [{name: getattr(block.attn, name).grad for name in WEIGHT_NAMES} for block in model.blocks]
    return loss.item(), {name: torch.stack([layer[name] for layer in grads]) for name in WEIGHT_NAMES}


def distance(found: Weights, wanted: Weights) -> float:
    """‖found − wanted‖/‖wanted‖ over all tensors."""
    missed = sum(((found[name].double() - wanted[name].double()) ** 2).sum() for name in wanted)
    return (missed / sum((wanted[name].double() ** 2).sum() for name in wanted)).sqrt().item()


def gaussian_prompts(dim: int, length: int, outputs: int, batch: int, seed: int) -> Prompt:
    """Prompts without any law between x and y."""
    generator = torch.Generator().manual_seed(seed)
    x, x_q, y, y_q = (
        torch.randn(shape, generator=generator)
        for shape in ((batch, length, dim), (batch, dim), (batch, length, outputs), (batch, outputs))
    )
    return Prompt(x, y, x_q, y_q)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32-10 of (n, 4) counters."""
    c = counter.astype(np.uint64)
    k = key.astype(np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        low, high = c[:, 0] * np.uint64(0xD2511F53), c[:, 2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = np.stack([(high >> shift) ^ c[:, 1] ^ k[0], high & mask, (low >> shift) ^ c[:, 3] ^ k[1], low & mask], 1)
        k = (k + np.array([0x9E3779B9, 0xBB67AE85], np.uint64)) & mask
    return c.astype(np.uint32)


def xoshiro(state: np.ndarray, count: int) -> np.ndarray:
    """`count` words of xoshiro128+ for each of (n, 4) states."""
    s = [state[:, i].copy() for i in range(4)]
    words = []
    for _ in range(count):
        words.append(s[0] + s[3])
        t = s[1] << np.uint32(9)
        s[2] = s[2] ^ s[0]
        s[3] = s[3] ^ s[1]
        s[1] = s[1] ^ s[2]
        s[0] = s[0] ^ s[3]
        s[2] = s[2] ^ t
        s[3] = (s[3] << np.uint32(11)) | (s[3] >> np.uint32(21))
    return np.stack(words, 1)


def normals(words: np.ndarray) -> np.ndarray:
    """Box–Muller in float64 of (n, 2·pairs) words."""
    radial, angular = words[:, ::2], words[:, 1::2]
    u = (radial >> np.uint32(1)).astype(float) * 2.0**-31 + 2.0**-32
    radius = np.sqrt(-2 * np.log(u)) * np.where(angular >> np.uint32(31), -1, 1)
    angle = (angular << np.uint32(1)).view(np.int32) * (2.0**-31 * np.pi / 2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(len(words), -1)


def compiled_prompts(config: TrainConfig, step: int) -> Prompt:
    """A step's prompts as compiled code draws them, in float64: the query first, then tile after tile."""
    task = config.task
    assert isinstance(task, LinearRegression | MultiTaskRegression)
    d, N, L, B = task.dim, task.n_outputs, task.length, config.batch_size
    tile = gaussian.tile(L, d + N)
    seed = data_seed(config.prompt_seed)
    counter = np.zeros((B, 4), np.uint32)
    counter[:, 0], counter[:, 2] = np.arange(B), step
    state = philox(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))
    sizes = [N * d + d + N] + [(min(tile, L - start)) * (d + N) for start in range(0, L, tile)]
    drawn = normals(xoshiro(state, sum(size + size % 2 for size in sizes)))
    edges = np.cumsum([0, *(size + size % 2 for size in sizes)])
    query, *tiles = (drawn[:, edge : edge + size] for edge, size in zip(edges, sizes, strict=False))
    z = np.concatenate([part.reshape(B, -1, d + N) for part in tiles], 1)
    beta, x_q, noise_q = query[:, : N * d].reshape(B, N, d).swapaxes(1, 2), query[:, N * d : -N], query[:, -N:]
    x, sigma = z[:, :, :d], task.noise_var**0.5
    if isinstance(task, LinearRegression):
        beta, root = beta * (task.signal_var / d) ** 0.5, np.linalg.cholesky(task.sigma)
        x, x_q = x @ root.T + task.mean_vector, x_q @ root.T + task.mean_vector
    else:
        inside = np.array([[i in support for support in task.supports] for i in range(d)])
        beta = (beta[:, :, :1] if task.shared_signal else beta) * inside * (task.signal_var / inside.sum(0)) ** 0.5
    y = x @ beta + sigma * z[:, :, d:]
    y_q = (x_q[:, None] @ beta)[:, 0] + (sigma if task.query_noise else 0) * noise_q
    return Prompt(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (x, y, x_q, y_q)))
