"""State dicts under TransformerLens's names, and live HookedTransformers, held against the models they came from."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.export import to_hooked_transformer
from icl_interp.formats import Given, load_run
from icl_interp.model import ICLTransformer
from icl_interp.roles import classify
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import plant

HAS_ONE = find_spec("transformer_lens.HookedTransformer") is not None
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
needs_one = pytest.mark.skipif(not HAS_ONE, reason="this TransformerLens has no HookedTransformer")

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
ROLES = ["positive", "negative", "negative", "dummy"]
SAID_ITSELF = "the query does not attend to itself, as in an exported model; in a plain HookedTransformer it does"


def a_task(dim, n_outputs=1):
    return LinearRegression(dim, 12) if n_outputs == 1 else MultiTaskRegression(dim, [range(dim)] * n_outputs, 12)


def prompts(task, batch=200):
    return task.sample(batch, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)


def ours(seed=0, **sizes):
    return ICLTransformer(ModelConfig(**{"dim": 3, "n_heads": 2, **sizes}), seed=seed, dtype=torch.float64)


def as_hooked(model, n_ctx=13, release=3):
    """The state dict that a HookedTransformer with these weights has."""
    config, state = model.config, dict(model.state_dict())
    heads, width, d_head = config.n_heads, config.d_model, config.head_width
    positions = torch.ones(n_ctx, n_ctx, dtype=torch.bool)
    mask = positions.tril() if config.mask == "strict_causal" else positions
    for layer in range(config.n_layers):
        block = f"blocks.{layer}.attn."
        state |= {f"{block}b_{name}": torch.zeros(heads, d_head) for name in "QKV"}
        state |= {f"{block}b_O": torch.zeros(width), f"{block}IGNORE": torch.tensor(-torch.inf)}
        state[f"{block}mask"] = mask if release == 2 else mask[:0, :0]
    state |= {"embed.W_E": torch.zeros(config.n_outputs, width), "pos_embed.W_pos": torch.zeros(n_ctx, width)}
    return state | {"unembed.b_U": torch.zeros(config.n_outputs)}


def saved(state, tmp_path):
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def assert_same_function(run, model):
    prompt = prompts(a_task(model.config.dim, model.config.n_outputs))
    with torch.no_grad():
        torch.testing.assert_close(run.circuits().predict(prompt), model.predict(prompt), rtol=0, atol=1e-10)
        torch.testing.assert_close(run.model().predict(prompt), model.predict(prompt), rtol=0, atol=1e-10)


# --- There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.", "state_dict.net."])
@pytest.mark.parametrize("sizes", [{}, {"n_outputs": 2}, {"d_head": 3}, {"n_layers": 3}, {"d_head": 7, "n_layers": 2}])
def test_our_own_state_dict(sizes, prefix, tmp_path):
    model = ours(**sizes)
    run = load_run(saved({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path))
    assert_same_function(run, model)
    assert run.model_config.mask == "demonstrations"
    assert run.format == "a HookedTransformer or the state dict of one"
    scale, *of_mask = run.assumed
    assert scale.startswith("scores are divided by √d_model = ")
    assert ("not by √d_head = " in scale) == ("d_head" in sizes)
    assert of_mask == (
        ["of the demonstrations, a position attends to all (mask= says otherwise)"] * ("n_layers" in sizes)
    )


@pytest.mark.parametrize("hooked", [False, True])
def test_planted_heads(hooked, tmp_path):
    planted = plant(TASK, roles=ROLES)
    model = planted.run.model()
    run = load_run(saved(as_hooked(model) if hooked else model.state_dict(), tmp_path))
    circuits, prompt = run.circuits(), TASK.sample(200)
    torch.testing.assert_close(circuits.predict(prompt), model.predict(prompt), rtol=0, atol=1e-5)
    np.testing.assert_allclose(circuits.omega[0], planted.omega, atol=1e-5)
    np.testing.assert_allclose(circuits.mu[0, :, 0], planted.mu, atol=1e-5)
    assert classify(circuits, [prompts(TASK, 4_000)], np.eye(5)).roles == planted.roles


@pytest.mark.parametrize("release", [2, 3])
@pytest.mark.parametrize("mask", ["demonstrations", "strict_causal"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_hooked_transformer_s_state_dict(n_layers, mask, release, tmp_path):
    model = ours(n_layers=n_layers, mask=mask, d_head=3, attn_scale=3**0.5)
    run = load_run(saved(as_hooked(model, release=release), tmp_path))
    assert run.model_config.mask == (mask if release == 2 else "strict_causal")
    if release == 2 or n_layers == 1 or mask == "strict_causal":
        assert_same_function(run, model)
    said = " ".join(run.assumed)
    assert "divided by √d_head = 1.732, not by √d_model = 2: the default of a HookedTransformer" in said
    assert SAID_ITSELF in run.assumed
    assert ("a position attends to" in said) == (n_layers > 1)
    if mask == "demonstrations":
        run = load_run(as_hooked(model, release=release), Given(mask=mask, attn_scale=3**0.5))
        assert_same_function(run, model)
        assert run.assumed == ()


def test_sizes_that_are_given_and_that_are_not():
    state = ours(dim=4, n_outputs=2).state_dict()
    without = {name: tensor for name, tensor in state.items() if "unembed" not in name}
    for given in (Given(n_outputs=2), Given(dim=4)):
        run = load_run(without, given)
        assert (run.model_config.dim, run.model_config.n_outputs) == (4, 2)
        assert not any("response" in said for said in run.assumed)
    run = load_run(without)
    assert (run.model_config.dim, run.model_config.n_outputs) == (5, 1)
    assert run.assumed[0] == "there is one response, the last of 6 coordinates (n_outputs= says otherwise)"
    with pytest.raises(CheckpointError, match="6 coordinates have to hold covariates and responses, got 6"):
        load_run(without, Given(n_outputs=6))
    for given in (Given(n_outputs=1), Given(dim=3), Given(n_heads=3)):
        with pytest.raises(ConfigError, match="was given"):
            load_run(state, given)


def test_half_precision_and_what_has_no_effect():
    model = ours()
    state = as_hooked(model)
    state["blocks.0.attn.b_K"] = torch.randn(2, 4)
    state["pos_embed.W_pos"] = torch.ones(13, 4)
    run = load_run(state)
    assert_same_function(run, model)
    assert "pos_embed.W_pos is not used: a prompt enters at the first layer" in run.assumed
    state["embed.W_E"] = torch.ones(1, 4)
    assert "embed.W_E and pos_embed.W_pos are not used: a prompt enters at the first layer" in load_run(state).assumed
    run = load_run({name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
    assert all(tensor.dtype == torch.float32 for tensor in run.weights.values())


# --- Live models -----------------------------------------------------------------------------------------------------


@needs_one
@pytest.mark.parametrize("sizes", [{}, {"n_layers": 2}, {"mask": "strict_causal", "n_layers": 2}, {"d_head": 3}])
def test_exported_models(sizes, tmp_path):
    model = ours(**sizes)
    hooked = to_hooked_transformer(model, n_ctx=20)
    run = load_run(hooked)
    assert_same_function(run, model)
    assert run.assumed == ()
    assert run.model_config.mask == model.config.mask
    given = Given(mask=model.config.mask, attn_scale=model.config.score_scale)
    run = load_run(saved(hooked.state_dict(), tmp_path), given)
    assert_same_function(run, model)
    assert run.assumed == ()


@needs_one
def test_what_is_given_of_a_live_model():
    hooked = to_hooked_transformer(ours(n_layers=2))
    with pytest.raises(ConfigError, match="the model's mask is 'demonstrations', 'strict_causal' was given"):
        load_run(hooked, Given(mask="strict_causal"))
    with pytest.raises(ConfigError, match=r"the model's attn_scale is 2.0, 1.0 was given"):
        load_run(hooked, Given(attn_scale=1.0))
    assert load_run(hooked, Given(attn_scale=2.0)).model_config.score_scale == 2
    one_layer = to_hooked_transformer(ours())
    assert load_run(one_layer, Given(mask="strict_causal")).model_config.mask == "strict_causal"


@needs_one
def test_a_live_model_that_attends_to_itself_is_refused():
    hooked = to_hooked_transformer(ours())
    hooked.reset_hooks(including_permanent=True)
    with pytest.raises(ConfigError, match="no ICLTransformer computes what this HookedTransformer does"):
        load_run(hooked)


@needs_one
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"normalization_type": "LN"}, "LayerNorm is not supported"),
        ({"attn_only": False, "act_fn": "relu", "d_mlp": 8}, "an MLP is not supported"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 4}, "rotary positions are not supported"),
        ({"n_key_value_heads": 1}, "heads that share keys and values"),
        ({"d_vocab_out": 9}, "coordinates that hold covariates and N responses"),
        ({}, r"is not \[0; I\]"),
    ],
)
def test_plain_ones_of_transformer_lens(settings, reason, tmp_path):
    import transformer_lens

    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 6, "d_head": 4, "n_ctx": 5, "d_vocab": 3, "device": "cpu"}
    config = {**sizes, "attn_only": True, "normalization_type": None, "seed": 0, **settings}
    hooked = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(**config))
    with pytest.raises(CheckpointError, match=reason):
        load_run(saved(hooked.state_dict(), tmp_path))


def test_a_class_of_that_name_is_not_enough():
    class HookedTransformer(nn.Module):
        pass

    with pytest.raises(CheckpointError, match="no format recognises"):
        load_run(HookedTransformer())


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("blocks.0.ln1.w", torch.ones(4), "holds blocks.0.ln1.w: LayerNorm is not supported.* normalization_type=None"),
        ("ln_final.b", torch.ones(4), "LayerNorm is not supported"),
        ("blocks.1.mlp.W_in", torch.ones(4), "holds blocks.1.mlp.W_in: an MLP is not supported.* attn_only=True"),
        ("blocks.0.attn.rotary_sin", torch.ones(4), "rotary positions are not supported"),
        ("blocks.0.attn._W_K", torch.ones(4), "heads that share keys and values"),
        (
            "blocks.0.attn.rel_pos_bias.weight",
            torch.ones(4),
            "also holds blocks.0.attn.rel_pos_bias.weight, which would",
        ),
        ("optimizer.exp_avg", torch.ones(4), "also holds optimizer.exp_avg"),
        ("other.blocks.0.attn.W_Q", torch.ones(2, 4, 4), "also holds other.blocks.0.attn.W_Q"),
        ("blocks.0.attn.b_Q", torch.ones(2, 4), "blocks.0.attn.b_Q is not zero: biases have no counterpart"),
        ("blocks.1.attn.b_O", torch.ones(4), "blocks.1.attn.b_O is not zero"),
        ("blocks.1.attn.b_V", torch.full((2, 4), torch.nan), "blocks.1.attn.b_V is not zero"),
        ("blocks.1.attn.b_K", torch.full((2, 4), torch.nan), "b_K has NaN or infinity"),
        ("unembed.b_U", torch.ones(1), "unembed.b_U is not zero"),
        ("unembed.W_U", torch.ones(4, 1), r"unembed.W_U is not \[0; I\]"),
        ("unembed.W_U", torch.eye(4), "d_model = 4 coordinates that hold covariates and N responses"),
        ("unembed.W_U", torch.ones(3, 1), r"got \(3, 1\)"),
        ("unembed.W_U", torch.ones(4), r"axes \(d_model, responses\)"),
        ("blocks.1.attn.W_Q", None, "lacks blocks.1.attn.W_Q"),
        ("blocks.0.attn.W_Q", None, "lacks blocks.0.attn.W_Q"),
        ("blocks.5.attn.W_Q", torch.ones(2, 4, 4), "must be numbered 0, 1, …, got 0, 1, 5"),
        ("blocks.123456789.attn.W_Q", torch.ones(2, 4, 4), "also holds blocks.123456789.attn.W_Q"),
        ("blocks.1.attn.W_Q", torch.ones(3, 4, 4), r"= \(2, 4, 4\) as blocks.0.attn.W_Q has, got \(3, 4, 4\)"),
        ("blocks.1.attn.W_O", torch.ones(2, 4, 3), r"\(heads, d_head, d_model\) = \(2, 4, 4\)"),
        ("blocks.0.attn.W_O", torch.ones(8, 4), r"must have axes \(heads, d_head, d_model\), got shape \(8, 4\)"),
        ("blocks.0.attn.W_Q", torch.ones(0, 4, 4), "floating-point numbers, got torch.float32 of shape"),
        ("blocks.0.attn.W_V", torch.ones(2, 4, 4).long(), "floating-point numbers, got torch.int64"),
        ("blocks.0.attn.W_V", torch.full((2, 4, 4), torch.inf), "NaN or infinity in 32 of 32"),
        ("blocks.0.attn.mask", torch.eye(5), "neither causal nor open"),
        ("blocks.0.attn.mask", torch.ones(5), r"axes \(positions, positions\)"),
        ("blocks.0.attn.mask", torch.zeros(5, 4), "neither causal nor open"),
    ],
)
def test_state_dicts_that_cannot_be(name, tensor, reason, tmp_path):
    state = {**ours(n_layers=2).state_dict(), name: tensor}
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_run(saved({key: value for key, value in state.items() if value is not None}, tmp_path))
    assert "recognised as a HookedTransformer or the state dict of one" in str(caught.value)


@pytest.mark.parametrize("name", ["blocks.0.ln1.w", "blocks.0.attn.rotary_cos", "blocks.0.attn.b_Q", "unembed.b_U"])
def test_a_prefix_hides_nothing(name):
    state = {**ours().state_dict(), name: torch.ones(4)}
    with pytest.raises(CheckpointError, match=r"is not supported|are not supported|is not zero"):
        load_run({f"model.{key}": value for key, value in state.items()})


def test_a_great_width_takes_no_memory_of_its_square():
    heads = {f"blocks.0.attn.W_{name}": torch.zeros(1, 1_000_000, 1) for name in "QKV"}
    heads["blocks.0.attn.W_O"] = torch.zeros(1, 1, 1_000_000)
    W_U = torch.zeros(1_000_000, 1)
    W_U[-1] = 1
    assert load_run({**heads, "unembed.W_U": W_U}).model_config.dim == 999_999


def test_layers_with_different_masks_are_refused():
    state = as_hooked(ours(n_layers=2), release=2)
    state["blocks.1.attn.mask"] = state["blocks.1.attn.mask"].tril()
    with pytest.raises(CheckpointError, match="its layers have different masks"):
        load_run(state)
