"""The hooked model: the same numbers as the query-row pass; weights, and what is refused.  Its hooks: tests/lens."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp import attention
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.model import ICLTransformer
from icl_interp.tasks import Prompt
from icl_interp.weights import (
    WEIGHT_NAMES,
    check_weights,
    from_state_dict,
    initial_weights,
    to_state_dict,
    weight_shapes,
)

B, L, DIM, HEADS, LAYERS, N = 3, 6, 4, 3, 2, 2
P, D, D_HEAD = L + 1, DIM + N, 5
CONFIG = ModelConfig(dim=DIM, n_outputs=N, n_heads=HEADS, n_layers=LAYERS, d_head=D_HEAD, mask="strict_causal")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make_prompt(config=CONFIG, batch=B, length=L, seed=0):
    def draw(*shape):
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    generator = rng(seed)
    return Prompt(draw(length, config.dim), draw(length, config.n_outputs), draw(config.dim), draw(config.n_outputs))


def circuits(model):
    return attention.fold(*(model.weights()[name] for name in WEIGHT_NAMES), model.config.score_scale)


@pytest.fixture
def model():
    return ICLTransformer(CONFIG, seed=0, dtype=torch.float64).eval()


@pytest.fixture
def prompt():
    return make_prompt()


# ---- the numbers


@settings(max_examples=60, deadline=None)
@given(
    config=st.builds(
        ModelConfig,
        dim=st.integers(1, 5),
        n_outputs=st.integers(1, 3),
        n_heads=st.integers(1, 5),
        n_layers=st.integers(1, 3),
        d_head=st.sampled_from([None, 1, 3, 9]),
        mask=st.sampled_from(["demonstrations", "strict_causal"]),
        attn_scale=st.sampled_from([None, 0.5]),
    ),
    length=st.integers(1, 8),
    single=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_full_pass_and_the_query_row_pass_agree(config, length, single, seed):
    dtype, tolerance = (torch.float32, 1e-5) if single else (torch.float64, 1e-12)
    model = ICLTransformer(config, seed=seed, dtype=dtype)
    prompt = make_prompt(config, length=length, seed=seed).to(dtype=dtype)
    expected = attention.predict(*circuits(model), prompt.z, config.n_outputs, config.mask)
    torch.testing.assert_close(model.predict(prompt), expected, rtol=tolerance, atol=tolerance)


def test_one_head_by_hand():
    config = ModelConfig(dim=3, n_heads=1, d_head=2, attn_scale=1.5)
    model = ICLTransformer(config, seed=0, dtype=torch.float64)
    prompt = make_prompt(config, batch=1)
    W_Q, W_K, W_V, W_O = (model.weights()[name][0, 0].numpy() for name in WEIGHT_NAMES)
    z = prompt.z[0].numpy()

    out = z.copy()
    for p in range(P):
        exponentials = np.exp([(z[p] @ W_Q) @ (z[key] @ W_K) / 1.5 for key in range(L)])
        out[p] += sum(e * (z[key] @ W_V @ W_O) for key, e in enumerate(exponentials)) / exponentials.sum()

    np.testing.assert_allclose(model(prompt)[0].detach(), out[:, 3:], rtol=1e-12)


def test_strict_causal_leaves_the_first_position_alone(model, prompt):
    _, cache = model.run_with_cache(prompt)
    for layer in range(LAYERS):
        assert (cache["pattern", layer][:, :, 0] == 0).all()
        assert (cache["attn_out", layer][:, 0] == 0).all()
    loss = model(prompt, return_type="loss")
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("mask", ["demonstrations", "strict_causal"])
def test_nobody_attends_to_the_query(mask, prompt):
    config = ModelConfig(dim=DIM, n_outputs=N, n_layers=2, mask=mask)
    model = ICLTransformer(config, seed=0, dtype=torch.float64)
    other = Prompt(prompt.x, prompt.y, prompt.x_q + 1, prompt.y_q)
    before, after = model(prompt), model(other)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=0)
    assert (before[:, -1] - after[:, -1]).abs().min() > 0


def test_inputs_are_equivalent_and_never_written_to(model, prompt):
    z, before = prompt.z, prompt.z.clone()
    expected = model(prompt)

    def overwrite(activation, hook):
        activation[:] = 7

    with torch.no_grad():
        model.run_with_hooks(
            model.to_tokens(z), fwd_hooks=[("hook_embed", overwrite), ("blocks.0.hook_resid_pre", overwrite)]
        )
    assert torch.equal(z, before)
    assert not z.requires_grad
    torch.testing.assert_close(model(z), expected, rtol=0, atol=0)
    torch.testing.assert_close(model(model.to_tokens(prompt)), expected, rtol=0, atol=0)
    torch.testing.assert_close(model(prompt.to(dtype=torch.float32)), expected, rtol=1e-5, atol=1e-5)


def test_layers_can_be_run_apart(model, prompt):
    middle = model(prompt, stop_at_layer=1)
    assert middle.shape == (B, P, D)
    torch.testing.assert_close(model(middle, start_at_layer=1), model(prompt))
    assert model(prompt, return_type=None) is None


def test_the_loss_is_the_mean_squared_error_at_the_query(model, prompt):
    expected = ((model.predict(prompt) - prompt.y_q) ** 2).mean()
    table = prompt.z
    table[:, -1, DIM:] = prompt.y_q  # a bare tensor carries the answer where the query has none
    for loss in (
        model(prompt, return_type="loss"),
        model(model.to_tokens(prompt), return_type="loss"),
        model(prompt.z, return_type="loss", y_q=prompt.y_q),
        model(table, return_type="loss"),
    ):
        torch.testing.assert_close(loss, expected)


# ---- names and shapes


def test_masked_scores_are_minus_infinity(model, prompt):
    _, cache = model.run_with_cache(prompt)
    allowed = attention.allowed_keys(L, "strict_causal")
    assert ((cache["attn_scores", 0] == -torch.inf) == ~allowed).all()


def test_weights_and_circuits(model):
    assert {name: tuple(getattr(model, name).shape) for name in WEIGHT_NAMES} == weight_shapes(CONFIG)
    assert model.blocks[1].attn.W_Q.shape == (HEADS, D, D_HEAD)
    assert model.b_Q.shape == (LAYERS, HEADS, D_HEAD)
    assert model.b_O.shape == (LAYERS, D)
    assert torch.equal(model.W_U, torch.eye(D, dtype=torch.float64)[:, DIM:])
    assert not model.W_U.requires_grad
    assert not any(bias.any() for bias in (model.b_Q, model.b_K, model.b_V, model.b_O, model.b_U))

    KQ, OV = circuits(model)
    torch.testing.assert_close(model.QK.AB.mT / model.cfg.attn_scale, KQ)
    torch.testing.assert_close(model.OV.AB.mT, OV)


def test_state_dict_has_hooked_transformers_names_and_comes_back(model, prompt):
    state = model.state_dict()
    names = {f"blocks.{layer}.attn.{name}" for layer in range(LAYERS) for name in WEIGHT_NAMES}
    assert state.keys() == names | {"unembed.W_U"}

    weights = from_state_dict(state)
    assert to_state_dict(weights).keys() == names
    assert all(torch.equal(weights[name], model.weights()[name]) for name in WEIGHT_NAMES)

    rebuilt = ICLTransformer.from_weights(CONFIG, weights)
    assert rebuilt.cfg.dtype == torch.float64
    assert torch.equal(rebuilt(prompt), model(prompt))
    rebuilt.load_state_dict(state)


def test_weights_are_copies(model):
    weights = model.weights()
    rebuilt = ICLTransformer.from_weights(CONFIG, weights)
    weights["W_Q"].zero_()
    assert model.W_Q.all()
    assert rebuilt.W_Q.all()
    assert not model.weights()["W_Q"].requires_grad


def test_cfg_follows_the_model(model, prompt):
    cfg = model.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.d_vocab) == (LAYERS, HEADS, D, D_HEAD, N)
    assert cfg.attn_scale == pytest.approx(D**0.5)
    assert cfg.n_ctx > P
    assert (cfg.device, cfg.dtype) == (torch.device("cpu"), torch.float64)
    assert model.float().cfg.dtype == torch.float32
    assert model(prompt).dtype == torch.float32


def test_copies_and_pickles(model, prompt):
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(prompt), model(prompt))
        twin.set_use_attn_in(True)
        assert "blocks.0.hook_attn_in" in twin.run_with_cache(prompt)[1]
        assert "blocks.0.hook_attn_in" not in model.hook_dict


# ---- initial weights


def test_initial_weights_are_those_of_linear_layers():
    config = ModelConfig(dim=20, n_outputs=10, n_heads=8, n_layers=4, d_head=25)
    weights = initial_weights(config, rng())
    check_weights(weights, config)
    assert (weights["W_O"][-1, :, :, :20] == 0).all()
    weights["W_O last"] = weights["W_O"][-1, :, :, 20:]
    weights["W_O"] = weights["W_O"][:-1]
    for name, tensor in weights.items():
        bound = (200 if name.startswith("W_O") else 30) ** -0.5
        assert 0.99 * bound < tensor.abs().max() <= bound
        assert tensor.var().item() == pytest.approx(bound**2 / 3, rel=0.05)
        assert abs(tensor.mean().item()) < 5 * bound / (3 * tensor.numel()) ** 0.5


def test_seeds_reproduce_and_leave_global_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = ICLTransformer(CONFIG, seed=3), ICLTransformer(CONFIG, generator=rng(3))
    ICLTransformer.from_weights(CONFIG, first.weights())
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first.weights()[name], again.weights()[name]) for name in WEIGHT_NAMES)
    assert all(torch.equal(first.weights()[name], initial_weights(CONFIG, rng(3))[name]) for name in WEIGHT_NAMES)
    assert not torch.equal(first.W_Q, ICLTransformer(CONFIG, seed=4).W_Q)


# ---- what is refused


def test_inputs_that_do_not_fit_are_refused(model, prompt):
    size = r"d_model = 6\), that is dim 4 \+ n_outputs 2, got "
    for wrong, got in ((torch.zeros(B, P, 5), r"\(3, 7, 5\)"), (torch.zeros(P, D), r"\(7, 6\)")):
        with pytest.raises(ConfigError, match=size + got):
            model(wrong)
    with pytest.raises(ConfigError, match=r"positions ≥ 2.*got \(3, 1, 6\)"):
        model(torch.zeros(B, 1, D))
    with pytest.raises(ConfigError, match=size + r"\(3, 7, 4\)"):
        model(make_prompt(ModelConfig(dim=3)))
    for wrong, got in (([1, 2], "int"), ([], "list"), ("some text", "str")):
        with pytest.raises(ConfigError, match=f"reads a Prompt, or its z .* got {got}"):
            model.to_tokens(wrong)
    with pytest.raises(ConfigError, match=r"equally many positions, got \(3, 7\), \(3, 5\)"):
        model.to_tokens([prompt, make_prompt(length=4)])
    with pytest.raises(ConfigError, match="prepend_bos must be None or False, got True"):
        model.to_tokens(prompt, prepend_bos=True)
    with pytest.raises(ConfigError, match="return_type must be 'logits', 'loss' or None, got 'both'"):
        model(prompt, return_type="both")
    with pytest.raises(ConfigError, match="the loss needs the query's response"):
        model(prompt.z, return_type="loss")
    with pytest.raises(ConfigError, match="the loss needs the query's response"):
        model(model(prompt, stop_at_layer=1), return_type="loss", start_at_layer=1)
    with pytest.raises(ConfigError, match=r"y_q must have shape \(3, 2\), got \(3, 1\)"):
        model(prompt.z, return_type="loss", y_q=torch.zeros(B, 1))
    with pytest.raises(ConfigError, match="pass seed or generator, not both, got seed=1"):
        ICLTransformer(CONFIG, seed=1, generator=rng())


def spoil(name, change):
    def spoiled(weights):
        weights[name] = change(weights[name])
        return weights

    return spoiled


def without(name):
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[:3] = torch.nan
    tensor.view(-1)[5] = torch.inf
    return tensor


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("W_V"), "missing: W_V, unexpected: none"),
        (lambda weights: {**weights, "W_E": weights["W_Q"]}, "missing: none, unexpected: W_E"),
        (
            spoil("W_K", lambda tensor: tensor[:, 1:]),
            r"W_K must have shape \(n_layers, n_heads, d_model, d_head\) = \(2, 3, 6, 5\), got \(2, 2, 6, 5\)",
        ),
        (
            spoil("W_O", lambda tensor: tensor.mT),
            r"W_O must have shape \(n_layers, n_heads, d_head, d_model\) = \(2, 3, 5, 6\), got \(2, 3, 6, 5\)",
        ),
        (spoil("W_Q", lambda tensor: tensor.long()), "W_Q must be floating point, got torch.int64"),
        (spoil("W_Q", with_nan), "W_Q must be finite, got NaN or infinity in 4 of 180 entries"),
    ],
)
def test_weights_that_do_not_fit_are_refused(spoil, message):
    weights = spoil(initial_weights(CONFIG, rng()))
    for check in (lambda: check_weights(weights, CONFIG), lambda: ICLTransformer.from_weights(CONFIG, weights)):
        with pytest.raises(CheckpointError, match=message):
            check()


def test_state_dicts_that_do_not_fit_are_refused():
    state = to_state_dict(initial_weights(CONFIG, rng()))
    del state["blocks.0.attn.W_V"]
    with pytest.raises(CheckpointError, match=r"the state dict lacks blocks.0.attn.W_V; it has blocks.0.attn.W_Q, "):
        from_state_dict(state)
    with pytest.raises(CheckpointError, match="it has nothing"):
        from_state_dict({})
    state["blocks.0.attn.W_V"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="do not stack"):
        from_state_dict(state)
