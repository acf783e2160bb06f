"""KQ and OV circuits, per layer and head, in the paper's convention (arXiv 2503.12734, section 2 and (3.1)).

KQ = W_K W_Qᵀ / scale: rows are key coordinates, columns query coordinates, the score scale is folded in.
(TransformerLens multiplies rows, so its `QK` is the transpose.)  OV = (W_V W_O)ᵀ: rows are output coordinates, columns
input ones.

        query x   query y                 in: x     in: y
key x [  KQ_11      ·    ]     out: x  [    ·         ·    ]
key y [  KQ_21      ·    ]     out: y  [  OV_21     OV_22  ]

With N responses (section 5.4) a head's OV_22 is N × N: its entry [m, n] is what the labels of response n add to the
prediction of response m, and its diagonal is μ, a number a response.  KQ_11 is still one d × d matrix, shared by the
responses; its diagonal, ω feature by feature, differs between features that serve different responses.

What the prediction never sees is inert, and must not be read as a pattern: KQ's query-y columns in a one-layer model
(the query's response is zero) and, in a last layer, the output rows of OV that are not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp import attention
from icl_interp.activations import activation
from icl_interp.config import Mask, ModelConfig
from icl_interp.errors import ConfigError, NumericsError
from icl_interp.tasks import Prompt
from icl_interp.weights import WEIGHT_NAMES, Weights


@dataclass(frozen=True, eq=False)
class Circuits:
    """Each head's two circuits (float64), with the paper's blocks and numbers as properties.

    `dim` is d, `n_outputs` N, D the width of the residual stream: d + N, unless there are `extras`
    (`ModelConfig.extras`).  Then blocks are those of the first d + N coordinates, which are a prompt's columns (x, y)
    but for a read-in, where a head has no ω or μ: they are NaN.
    """

    KQ: Float[np.ndarray, "layers heads d_model d_model"]
    OV: Float[np.ndarray, "layers heads d_model d_model"]
    dim: int
    n_outputs: int
    mask: Mask = "demonstrations"
    activation: str = "softmax"
    activation_scale: float = 1.0
    extras: tuple[str, ...] = ()

    @classmethod
    def from_weights(cls, weights: Weights, config: ModelConfig) -> Circuits:
        """Fold the weights of heads (each tensor stacked over layers) of a model."""
        W_Q, W_K, W_V, W_O = (weights[name].detach().double().cpu() for name in WEIGHT_NAMES)
        KQ, OV = attention.fold(W_Q, W_K, W_V, W_O, config.score_scale)
        return cls(
            KQ.numpy(),
            OV.numpy(),
            config.dim,
            config.n_outputs,
            config.mask,
            config.activation,
            config.activation_scale,
            config.extras,
        )

    @property
    def n_layers(self) -> int:
        """Layers."""
        return self.KQ.shape[0]

    @property
    def n_heads(self) -> int:
        """Heads in each layer."""
        return self.KQ.shape[1]

    @property
    def KQ_11(self) -> Float[np.ndarray, "layers heads dim dim"]:
        """How x_q attends to x_ℓ."""
        return self.KQ[..., : self.dim, : self.dim]

    @property
    def KQ_21(self) -> Float[np.ndarray, "layers heads outputs dim"]:
        """How x_q attends to y_ℓ."""
        return self.KQ[..., self._responses, : self.dim]

    @property
    def OV_21(self) -> Float[np.ndarray, "layers heads outputs dim"]:
        """What x_ℓ adds to the prediction."""
        return self.OV[..., self._responses, : self.dim]

    @property
    def OV_22(self) -> Float[np.ndarray, "layers heads outputs outputs"]:
        """What y_ℓ adds to the prediction: [m, n] is what response n's labels add to response m."""
        return self.OV[..., self._responses, self._responses]

    @property
    def diagonal(self) -> Float[np.ndarray, "layers heads dim"]:
        """ω of each feature, KQ_11's diagonal; with several responses a head's features differ."""
        return self._of_columns(np.diagonal(self.KQ_11, axis1=-2, axis2=-1))

    @property
    def omega(self) -> Float[np.ndarray, "layers heads"]:
        """ω, the mean of KQ_11's `diagonal`."""
        return self.diagonal.mean(-1)

    @property
    def mu(self) -> Float[np.ndarray, "layers heads outputs"]:
        """μ, the diagonal of OV_22: how much of each response's own weighted mean goes into its prediction."""
        return self._of_columns(np.diagonal(self.OV_22, axis1=-2, axis2=-1))

    @property
    def KQ_live(self) -> Bool[np.ndarray, "layers d_model d_model"]:
        """Where KQ can reach the prediction."""
        live = np.ones((self.n_layers, *self.KQ.shape[-2:]), dtype=bool)
        if self.n_layers == 1 and not {"read_in", "layer_norm"} & set(self.extras):
            live[:, :, self.dim :] = False
        return live

    @property
    def OV_live(self) -> Bool[np.ndarray, "layers d_model d_model"]:
        """Where OV can reach the prediction."""
        live = np.ones((self.n_layers, *self.OV.shape[-2:]), dtype=bool)
        if "read_out" not in self.extras:
            live[-1] = False
            live[-1, self._responses] = True
        return live

    def masked(self) -> tuple[np.ndarray, np.ndarray]:
        """KQ and OV with NaN in their inert parts, as they should be shown."""
        return np.where(self.KQ_live[:, None], self.KQ, np.nan), np.where(self.OV_live[:, None], self.OV, np.nan)

    @property
    def slope(self) -> float:
        """C·f′(0)/f(0) of the activation: heads of small scores make a step of η = slope·Σ ωμ, (4.3) and (5.2).

        Linear attention, which does not divide by L, makes one of η = L·slope·Σ ωμ.
        """
        return self.activation_scale * activation(self.activation).slope

    @property
    def weigh(self) -> attention.Weigh:
        """How scores become weights."""
        return attention.weighing(self.activation, self.activation_scale)

    def head_outputs(self, prompt: Prompt) -> Float[Tensor, "batch heads outputs"]:
        """Each last-layer head's contribution to the prediction, in the prompt's dtype and on its device.

        Raises:
            ConfigError: a model with `extras`, whose prediction takes more than circuits.
            NumericsError: the denominator of an activation is next to zero at some prompt.
        """
        heads = attention.query_row(*self._like(prompt), prompt.z, self.n_outputs, self.mask, self.weigh)
        return defined(heads, prompt, self.activation)

    def predict(self, prompt: Prompt) -> Float[Tensor, "batch outputs"]:
        """ŷ_q, in the prompt's dtype and on its device.

        Raises:
            ConfigError, NumericsError: as `head_outputs`.
        """
        prediction = attention.predict(*self._like(prompt), prompt.z, self.n_outputs, self.mask, self.weigh)
        return defined(prediction, prompt, self.activation)

    def denominators(self, prompt: Prompt) -> Float[Tensor, "batch heads"]:
        """The mean of f(C s_ℓ)/f(0) at each last-layer head of a one-layer model: 1 where all scores are zero.

        Raises:
            ConfigError: linear attention, which has no denominator, or more than one layer.
        """
        f = activation(self.activation)
        if not f.normalised or self.n_layers > 1:
            raise ConfigError("denominators are those of one layer of normalised attention")
        KQ = torch.from_numpy(self.KQ[0, :, :, : self.dim]).to(prompt.x)
        asks = einsum(KQ, prompt.x_q, "head key query, batch query -> batch head key")
        scores = einsum(asks, prompt.demonstrations, "batch head key, batch l key -> batch head l")
        return f.function(self.activation_scale * scores).mean(-1) / f.at_zero

    def __repr__(self) -> str:
        from icl_interp_reports import circuits_in_a_line

        return circuits_in_a_line(self)

    def __str__(self) -> str:
        from icl_interp_reports import circuits_text

        return circuits_text(self)

    def _repr_html_(self) -> str:
        from icl_interp_reports import circuits_in_notebook

        return circuits_in_notebook(self)

    @property
    def _responses(self) -> slice:
        return slice(self.dim, self.dim + self.n_outputs)

    def _of_columns(self, numbers: np.ndarray) -> np.ndarray:
        return np.full_like(numbers, np.nan) if "read_in" in self.extras else numbers.copy()

    def _like(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        if self.extras:
            raise ConfigError(
                f"a prediction takes more than circuits where a model has {', '.join(self.extras)}: use "
                "run.model().predict(prompt)"
            )
        return torch.from_numpy(self.KQ).to(prompt.x), torch.from_numpy(self.OV).to(prompt.x)


def defined(outputs: Tensor, prompt: Prompt, activation_name: str) -> Tensor:
    """`outputs` of attention, one row a prompt, unless a prompt of finite numbers has none.

    Raises:
        NumericsError: the denominator of an activation is next to zero at some prompt.
    """
    if activation_name == "softmax" or outputs.isfinite().all():
        return outputs
    lost = ~outputs.flatten(1).isfinite().all(1) & prompt.z.flatten(1).isfinite().all(1)
    if lost.any():
        raise NumericsError(
            f"attention with {activation(activation_name).formula} is not defined on {int(lost.sum())} of "
            f"{len(prompt)} prompts: its denominator is next to zero there"
        )
    return outputs
