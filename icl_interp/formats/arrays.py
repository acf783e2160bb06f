"""Plain arrays: circuits as they are, or only each head's two numbers.

    KQ (H, D, D) and OV (H, N, D)          the paper's convention, score scale folded in, D = d + N
    omega (H,) or (H, d), mu (H,) or (H, N)  KQ_11 = ω·I (or diagonal), OV_22 = μ, all else zero

One layer.  Circuits are factored with the identity: W_Q = W_V = I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, UnsaidError
from icl_interp.formats.contents import Contents, Given
from icl_interp.formats.registry import checkpoint_format
from icl_interp.records import Run

NAMES = ({"KQ", "OV"}, {"omega", "mu"})


@checkpoint_format(name="arrays", title="plain arrays of circuits")
class Arrays:
    """KQ and OV, or ω and μ."""

    def recognises(self, contents: Contents) -> bool:
        """By the names of the arrays."""
        return any(names <= set(contents.tensors) for names in NAMES)

    def read(self, contents: Contents, given: Given) -> Run:
        """The one-layer model with these circuits."""
        KQ, OV = _circuits(contents) if NAMES[0] <= set(contents.tensors) else _from_numbers(contents, given)
        heads, width, n_outputs = len(KQ), KQ.shape[-1], OV.shape[1]
        config = ModelConfig(
            dim=width - n_outputs, n_outputs=n_outputs, n_heads=heads, mask=given.mask or "demonstrations"
        )
        one = torch.eye(width, dtype=torch.float64).expand(heads, width, width)
        W_O = torch.zeros(heads, width, width, dtype=torch.float64)
        W_O[:, :, width - n_outputs :] = OV.mT
        weights = {"W_Q": one, "W_K": config.score_scale * KQ, "W_V": one, "W_O": W_O}
        stacked = {name: tensor[None].clone() for name, tensor in weights.items()}
        return Run(config, stacked, origin=contents.origin)


def _circuits(contents: Contents) -> tuple[Tensor, Tensor]:
    contents.only(NAMES[0])
    KQ = contents.at("KQ", axes="(heads, d_model, d_model)", dims=3).double()
    OV = contents.at("OV", axes="(heads, outputs, d_model)", dims=3).double()
    (heads, rows, width), outputs = KQ.shape, OV.shape[1]
    if rows != width or OV.shape != (heads, outputs, width) or not (heads and 0 < outputs < width):
        raise CheckpointError(
            f"KQ must have shape (H, d+N, d+N) and OV (H, N, d+N), got {tuple(KQ.shape)} and {tuple(OV.shape)}"
        )
    return KQ, OV


def _from_numbers(contents: Contents, given: Given) -> tuple[Tensor, Tensor]:
    contents.only(NAMES[1])
    omega, mu = (contents.tensors[name].double() for name in ("omega", "mu"))
    fits = omega.ndim in (1, 2) and mu.ndim in (1, 2) and omega.shape[:1] == mu.shape[:1]
    if not (fits and omega.numel() and mu.numel()):
        shapes = f"{tuple(omega.shape)} and {tuple(mu.shape)}"
        raise CheckpointError(f"omega must have shape (H,) or (H, d) and mu (H,) or (H, N), got {shapes}")
    if omega.ndim == 1:
        if given.dim is None:
            raise UnsaidError("ω and μ alone do not say what d is: pass dim= to Run.load, a task, or --dim")
        omega = omega[:, None].expand(-1, given.dim)
    mu = mu if mu.ndim == 2 else mu[:, None]
    (heads, d), outputs = omega.shape, mu.shape[1]
    KQ = torch.zeros(heads, d + outputs, d + outputs, dtype=torch.float64)
    OV = torch.zeros(heads, outputs, d + outputs, dtype=torch.float64)
    KQ[:, :d, :d] = torch.diag_embed(omega)
    OV[:, :, d:] = torch.diag_embed(mu)
    return KQ, OV
