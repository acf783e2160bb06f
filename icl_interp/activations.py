"""How attention scores become weights: p_ℓ = f(C s_ℓ) / Σ f(C s) (arXiv 2503.12734, section 5.2), or p_ℓ = C s_ℓ.

    softmax   f(x) = eˣ
    affine    f(x) = 1 + x
    square    f(x) = (1 + x)²
    tanh      f(x) = 1 + tanh x
    linear    p_ℓ = C s_ℓ, without normalisation: linear attention.  C = 1 as in the paper, or 1/L of the training

The scale C belongs to the model (`ModelConfig.activation_scale`): it changes how a model is trained and which ω it ends
with, not what it can compute.  A user's own f joins by `register_activation`.

Free of torch on purpose, as `config` is: functions take and give tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_interp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    Elementwise = Callable[[Tensor], Tensor]

# A denominator Σ f below this fraction of its value for scores of zero, L·f(0), is too near zero to divide by.
NEAR_ZERO = 1e-3


@dataclass(frozen=True)
class Activation:
    """One way for scores to become weights.

    Args:
        name: what configurations call it.
        function: f, entry by entry.
        derivative: f′.
        at_zero: f(0).
        slope: f′(0)/f(0), what ω counts for: for heads with small scores η = C·slope·Σ ωμ.
        normalised: whether weights are divided by their sum.
        formula: f in mathematics, for people.
        built_in: whether every engine knows it; others train on the torch engine.
    """

    name: str
    function: Elementwise
    derivative: Elementwise
    at_zero: float = 1.0
    slope: float = 1.0
    normalised: bool = True
    formula: str = ""
    built_in: bool = False


_known = {
    each.name: each
    for each in (
        Activation("softmax", lambda x: x.exp(), lambda x: x.exp(), formula="eˣ", built_in=True),
        Activation("affine", lambda x: 1 + x, lambda x: 0 * x + 1, formula="1 + Cx", built_in=True),
        Activation(
            "square", lambda x: (1 + x).square(), lambda x: 2 + 2 * x, slope=2.0, formula="(1 + Cx)²", built_in=True
        ),
        Activation(
            "tanh",
            lambda x: 1 + x.tanh(),
            lambda x: 1 - x.tanh().square(),
            formula="1 + tanh(Cx)",
            built_in=True,
        ),
        Activation(
            "linear",
            lambda x: x,
            lambda x: 0 * x + 1,
            at_zero=0.0,
            normalised=False,
            formula="Cx, not normalised",
            built_in=True,
        ),
    )
}
BUILT_IN = tuple(_known)


def activation(name: str) -> Activation:
    """The activation called `name`.

    Raises:
        ConfigError: one that is not known; the message lists those that are.
    """
    if not isinstance(name, str) or name not in _known:
        raise ConfigError(
            f"activation must be one of {', '.join(map(repr, _known))}, got {name!r}; one of your own has to be made "
            "known first: icl_interp.register_activation(name, function, derivative)"
        )
    return _known[name]


def register_activation(name: str, function: Elementwise, derivative: Elementwise) -> Activation:
    """Make an activation of your own known under `name`, for this process; weights are f(C s_ℓ)/Σ f(C s).

        icl_interp.register_activation("sine", lambda x: 1 + x.sin(), lambda x: x.cos())
        run = icl_interp.train(task, activation="sine", activation_scale=0.5)

    A checkpoint keeps the name only: register the function again before it is opened.  A name that is already yours is
    given to the new function.

    Args:
        name: what configurations call it.
        function: f, entry by entry, on tensors of any shape and dtype; f(0) may not be zero.
        derivative: f′, held against automatic differentiation of `function` at points between −1 and 1.

    Raises:
        ConfigError: a name that is built in; functions that do not work on tensors, are not finite near 0, vanish at 0,
            or do not belong together.
    """
    import torch

    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"an activation's name must be a word of letters, digits and underscores, got {name!r}")
    if name in _known and _known[name].built_in:
        raise ConfigError(f"the activation {name!r} is built in: choose another name")
    x = (torch.arange(-10, 11, dtype=torch.float64) / 10).requires_grad_()
    try:
        with torch.enable_grad():
            values = function(x)
            (true,) = torch.autograd.grad(values.sum(), x)
        given = derivative(x.detach())
    except Exception as error:
        raise ConfigError(
            f"the activation {name!r} does not work on tensors: {type(error).__name__}: {error}"
        ) from error
    for what, result in (("function", values), ("derivative", given)):
        if not isinstance(result, torch.Tensor) or result.shape != x.shape or not result.isfinite().all():
            raise ConfigError(f"the {what} of activation {name!r} must give a finite number for each between -1 and 1")
    if not torch.allclose(given, true, rtol=1e-6, atol=1e-8):
        worst = int((given - true).abs().argmax())
        raise ConfigError(
            f"the derivative of activation {name!r} is not its function's: at x = {x[worst].item():g} it is "
            f"{given[worst].item():.6g}, automatic differentiation gives {true[worst].item():.6g}"
        )
    at_zero, slope = values[10].item(), true[10].item()
    if at_zero == 0:
        raise ConfigError(f"activation {name!r} is zero at 0: equal scores would give weights of 0/0")
    _known[name] = Activation(name, function, derivative, at_zero, slope / at_zero, formula=name)
    return _known[name]
