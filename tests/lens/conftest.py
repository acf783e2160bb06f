"""A pass by hand, and two models to hold against it: two layers under a causal mask, and one layer without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.tasks import Prompt

CAUSAL = ModelConfig(dim=4, n_outputs=2, n_heads=3, n_layers=2, d_head=5, mask="strict_causal")
DEMONSTRATIONS = ModelConfig(dim=3, n_outputs=1, n_heads=2, mask="demonstrations", attn_scale=0.7)


# What an activation becomes, given it and those before it; both under (layer, name), as in "q" or "resid_pre".
Activations = dict[tuple[int, str], Tensor]
Edit = Callable[[Tensor, Activations], Tensor]


def by_hand(
    weights: dict[str, Tensor], config: ModelConfig, z: Tensor, edits: Mapping[tuple[int, str], Edit] | None = None
) -> tuple[Tensor, Activations]:
    """Outputs at every position, and every activation, of a full pass with edits: products of the raw weights."""
    seen: Activations = {}

    def see(layer: int, name: str, value: Tensor) -> Tensor:
        edit = (edits or {}).get((layer, name))
        seen[layer, name] = value if edit is None else edit(value, seen)
        return seen[layer, name]

    length, last = z.shape[1] - 1, config.n_layers - 1
    keys = [range(min(p, length)) if config.mask == "strict_causal" else range(length) for p in range(length + 1)]
    stream = see(0, "embed", z)
    for layer in range(config.n_layers):
        stream = see(layer, "resid_pre", stream)
        alike = stream[:, :, None].expand(-1, -1, config.n_heads, -1)
        q, k, v = (
            see(
                layer,
                n,
                torch.einsum("bphd,hde->bphe", see(layer, f"{n}_input", alike), weights[f"W_{n.upper()}"][layer]),
            )
            for n in "qkv"
        )
        scores = see(layer, "attn_scores", torch.einsum("bphe,bkhe->bhpk", q, k) / config.score_scale)
        rows = [torch.zeros_like(scores[:, :, 0]) for _ in keys]
        for p, open_to in enumerate(keys):
            if len(open_to):
                weighed = scores[:, :, p, : len(open_to)].exp()
                rows[p] = torch.cat([weighed / weighed.sum(-1, keepdim=True), rows[p][..., len(open_to) :]], -1)
        pattern = see(layer, "pattern", torch.stack(rows, 2))
        mixed = see(layer, "z", torch.einsum("bhpk,bkhe->bphe", pattern, v))
        heads = see(layer, "result", torch.einsum("bphe,hed->bphd", mixed, weights["W_O"][layer]))
        stream = see(layer, "resid_mid", stream + see(layer, "attn_out", heads.sum(2)))
        stream = see(layer, "resid_post", stream + see(layer, "mlp_out", torch.zeros_like(stream)))
    return seen[last, "resid_post"][..., config.dim :], seen


def prompts(config: ModelConfig, length: int, seed: int) -> Prompt:
    """Three prompts without any law between x and y."""
    z = torch.randn(3, length + 1, config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x, y = z.split([config.dim, config.n_outputs], -1)
    return Prompt(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])


class Case:
    """A model, two batches of three prompts, and what both runs look like by hand."""

    def __init__(self, config: ModelConfig, length: int = 5):
        self.config, self.length, self.positions = config, length, length + 1
        self.model = ICLTransformer(config, seed=0, dtype=torch.float64).eval()
        self.weights = self.model.weights()
        self.prompt, self.clean = prompts(config, length, seed=1), prompts(config, length, seed=2)
        self.seen, self.clean_seen = (by_hand(self.weights, config, p.z)[1] for p in (self.prompt, self.clean))
        generator = torch.Generator().manual_seed(3)
        self.importance = torch.randn(self.positions, config.n_outputs, dtype=torch.float64, generator=generator)

    def run(self, edits=None, prompt=None):
        """The outputs by hand, on `prompt` (or the first) with edits."""
        return by_hand(self.weights, self.config, (prompt or self.prompt).z, edits)[0]

    def each(self, logits):
        """A metric of every prompt that no output leaves out."""
        return (logits.square() * self.importance).sum((1, 2)) + logits[:, -1, 0]

    def metric(self, logits):
        return self.each(logits).mean()

    @property
    def caches(self):
        return self.model.run_with_cache(self.clean)[1], self.model.run_with_cache(self.prompt)[1]


@pytest.fixture(params=[CAUSAL, DEMONSTRATIONS], ids=["two causal layers", "demonstrations"])
def case(request):
    return Case(request.param)


@pytest.fixture
def deep():
    return Case(CAUSAL)


@pytest.fixture
def shallow():
    return Case(DEMONSTRATIONS)


@pytest.fixture
def double():
    """Tools store their results in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
