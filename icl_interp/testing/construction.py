"""Gradient descent as a transformer, exactly: the construction of arXiv 2408.04532, section 4, as a ready-made model.

Linear attention, whose scores are divided by L, on a residual stream (x, y, scratch):

    layer 1         head j attends by x_j·x_j and copies the label into scratch row j: r̂_j x_j, for every column
    later layers    one head attends by scratch·scratch (or x·x), and takes step·(its mean of residuals) off each label

So the demonstrations' y are residuals, the query's is minus the prediction, and the read-out turns it about.  One head
a coordinate preprocesses exactly: x̃ = r̂ ∘ x with r̂ = XᵀY/L.  The factor 1/L is that of the task's own length.
"""

from __future__ import annotations

import numpy as np
import torch

from icl_interp.config import ModelConfig, check_count, check_positive
from icl_interp.errors import ConfigError
from icl_interp.estimators import preprocess
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, SparseRegression

TUNING = 4_096  # prompts that a step size is chosen on


def construct_descent(
    task: LinearRegression | SparseRegression,
    *,
    steps: int = 2,
    rate: float | None = None,
    preprocessed: bool = True,
    n_heads: int | None = None,
    width: int | None = None,
    perturbation: float = 0.0,
    seed: int = 0,
) -> Run:
    """A model whose predictions are those of `GradientSteps(steps, rate, preprocessed=…, relative=False)`.

    Args:
        task: with one response.
        steps: of gradient descent, a layer each; preprocessing takes one before.
        rate: the step size, the same for all prompts; None means one with which nearly all prompts descend.
        preprocessed: whether the descent is on x̃, or on x.
        n_heads: in each layer; None means d where covariates are preprocessed (one a coordinate), else 1.  Those that
            are left over do nothing.
        width: of a read-in that turns the residual stream into a random direction; None means none.
        perturbation: Gaussian noise on every weight, relative to the root of the mean square of its tensor.
        seed: of the order of heads, the read-in and the perturbation.

    Raises:
        ConfigError: too few heads, a width below that of the stream, or a number out of range.
    """
    check_count("steps", steps)
    check_positive("perturbation", perturbation, zero=True)
    d = task.dim
    needed = d if preprocessed else 1
    n_heads = needed if n_heads is None else n_heads
    check_count("n_heads", n_heads, minimum=needed)
    rate = _safe_rate(task, preprocessed) if rate is None else rate
    check_positive("rate", rate)
    config = ModelConfig(
        d,
        n_heads=n_heads,
        n_layers=steps + preprocessed,
        d_head=d,
        attn_scale=1.0,
        activation="linear",
        activation_scale=1 / task.length,
        scratch=d if preprocessed else 0,
        read_out=True,
    )
    rng = np.random.default_rng(seed)
    weights = _weights(config, rate, preprocessed, rng)
    if width is not None:
        config, weights = _turned(config, weights, width, rng)
    for name, weight in weights.items():
        noise = perturbation * np.sqrt((weight**2).mean()) * rng.standard_normal(weight.shape)
        weights[name] = weight + noise
    tensors = {name: torch.from_numpy(weight).float() for name, weight in weights.items()}
    what = "preprocessed " * preprocessed
    return Run(config, tensors, task=task, origin=f"constructed: {steps} steps of {what}gradient descent of {rate:g}")


def _weights(config: ModelConfig, rate: float, preprocessed: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Of a stream (x, y, scratch); heads stand in a random order."""
    d, D, layers, heads = config.dim, config.d_model, config.n_layers, config.n_heads
    y, scratch = d, d + 1
    W_Q, W_K, W_V = (np.zeros((layers, heads, D, d)) for _ in range(3))
    W_O = np.zeros((layers, heads, d, D))
    if preprocessed:
        for j, h in enumerate(rng.permutation(heads)[:d]):
            W_Q[0, h, j, 0] = W_K[0, h, j, 0] = W_V[0, h, y, 0] = W_O[0, h, 0, scratch + j] = 1
    reads = slice(scratch, scratch + d) if preprocessed else slice(0, d)
    for layer in range(int(preprocessed), layers):
        h = rng.integers(heads)
        W_Q[layer, h, reads] = W_K[layer, h, reads] = np.eye(d)
        W_V[layer, h, y, 0], W_O[layer, h, 0, y] = 1, -rate
    W_U = np.zeros((D, 1))
    W_U[y] = -1
    return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O, "W_U": W_U}


def _turned(
    config: ModelConfig, weights: dict[str, np.ndarray], width: int, rng: np.random.Generator
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The same model on a stream that a random orthonormal map R takes the old one to."""
    if width < config.d_model:
        raise ConfigError(f"width must be at least {config.d_model}, which the stream takes, got {width}")
    R = np.linalg.qr(rng.standard_normal((width, config.d_model)))[0].T
    turned = {name: R.T @ weights[name] for name in ("W_Q", "W_K", "W_V", "W_U")}
    from_columns = {"W_O": weights["W_O"] @ R, "W_E": R[: config.columns]}
    new = ModelConfig(
        config.dim,
        n_heads=config.n_heads,
        n_layers=config.n_layers,
        d_head=config.head_width,
        attn_scale=config.score_scale,
        activation=config.activation,
        activation_scale=config.activation_scale,
        read_in=width,
        read_out=True,
    )
    return new, {**turned, **from_columns}


def _safe_rate(task: LinearRegression | SparseRegression, preprocessed: bool) -> float:
    """1/λ, where 999 of 1,000 prompts have a smaller largest eigenvalue than λ: none that is met will overshoot.

    The best rate is larger, but with steps of one size for all prompts a few diverge, and then decide every mean.
    """
    prompt = task.sample(TUNING, generator=torch.Generator().manual_seed(0))
    x = preprocess(prompt).x if preprocessed else prompt.x
    largest = torch.linalg.eigvalsh(x.double().mT @ x.double() / prompt.length)[:, -1]
    return 1 / float(largest.quantile(0.999))
