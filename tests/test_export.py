"""To TransformerLens's HookedTransformer and back; on releases without it, what is said instead."""

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.export import from_hooked_transformer, to_hooked_transformer
from icl_interp.model import ICLTransformer
from icl_interp.tasks import LinearRegression
from icl_interp.weights import WEIGHT_NAMES

HAS_ONE = find_spec("transformer_lens.HookedTransformer") is not None
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
needs_one = pytest.mark.skipif(not HAS_ONE, reason="this TransformerLens has no HookedTransformer")

configs = st.builds(
    ModelConfig,
    dim=st.integers(1, 5),
    n_outputs=st.integers(1, 3),
    n_heads=st.integers(1, 4),
    n_layers=st.integers(1, 3),
    d_head=st.sampled_from([None, 1, 7]),
    mask=st.sampled_from(["demonstrations", "strict_causal"]),
    attn_scale=st.sampled_from([None, 0.5]),
)


def make(**sizes):
    return ICLTransformer(ModelConfig(**{"dim": 3, "n_heads": 2, **sizes}), seed=0, dtype=torch.float64)


def prompt(model, batch=4, length=9):
    config = model.config
    z = torch.randn(batch, length + 1, config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z[:, -1, config.dim :] = 0
    return z


@pytest.mark.skipif(HAS_ONE, reason="this TransformerLens has a HookedTransformer")
def test_without_a_hooked_transformer_it_is_said_what_to_install():
    model = make()
    for attempt in (lambda: to_hooked_transformer(model), lambda: from_hooked_transformer(model)):
        with pytest.raises(ImportError, match=r"removed in TransformerLens 4: pip install 'transformer-lens<4'"):
            attempt()


@needs_one
@settings(max_examples=60)
@given(configs, st.integers(1, 9), st.integers(0, 5))
def test_there_and_back(config, length, seed):
    model = ICLTransformer(config, seed=seed, dtype=torch.float64)
    z = prompt(model, length=length)
    hooked = to_hooked_transformer(model)
    with torch.no_grad():
        expected, cache = model.run_with_cache(z)
        found, theirs = hooked.run_with_cache(z, start_at_layer=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for name in ("q", "k", "v", "z", "attn_scores", "pattern", "result", "resid_post"):
        for layer in range(config.n_layers):
            torch.testing.assert_close(theirs[name, layer], cache[name, layer], rtol=0, atol=1e-10)

    back = from_hooked_transformer(hooked)
    assert vars(back.config) == {**vars(config), "d_head": config.head_width, "attn_scale": config.score_scale}
    assert all(torch.equal(back.weights()[name], model.weights()[name]) for name in WEIGHT_NAMES)
    torch.testing.assert_close(back(z), expected, rtol=0, atol=0)


@needs_one
def test_the_mask_outlives_a_reset_and_weights_are_copies():
    model = make(mask="strict_causal", n_layers=2)
    hooked, z = to_hooked_transformer(model), prompt(model)
    hooked.add_hook("blocks.0.hook_resid_pre", lambda x, hook: 0 * x)
    hooked.reset_hooks()
    torch.testing.assert_close(hooked(z, start_at_layer=0), model(z), rtol=0, atol=1e-10)
    hooked.reset_hooks(including_permanent=True)
    assert (hooked(z, start_at_layer=0) - model(z)).abs().max() > 0.01  # the query now attends to itself
    hooked.W_Q.data.zero_()
    hooked.blocks[0].attn.W_Q.data.zero_()
    assert model.blocks[0].attn.W_Q.any()


@needs_one
def test_single_precision():
    task = LinearRegression(5, 40)
    model = ICLTransformer(ModelConfig(5, n_heads=4), seed=3)
    hooked = to_hooked_transformer(model)
    z = task.sample(64).z
    torch.testing.assert_close(hooked(z, start_at_layer=0), model(z), rtol=1e-5, atol=1e-6)
    assert from_hooked_transformer(hooked).cfg.dtype == torch.float32


@needs_one
def test_a_hooked_transformers_own_features_do_their_work():
    model = make(n_layers=2)
    hooked, z = to_hooked_transformer(model), prompt(model)
    assert hooked.cfg.attn_only
    assert hooked.cfg.d_vocab == 1
    _, cache = hooked.run_with_cache(z, start_at_layer=0)
    torch.testing.assert_close(cache.stack_head_results().sum(0) + z, cache["resid_post", -1])
    torch.testing.assert_close(hooked.OV.AB, model.OV.AB)


def other(**settings):
    import transformer_lens as lens

    small = {"n_layers": 1, "n_heads": 2, "d_model": 4, "d_head": 4, "n_ctx": 16, "d_vocab": 1, "attn_only": True}
    config = lens.HookedTransformerConfig(
        **{**small, "normalization_type": None, "act_fn": "relu", "seed": 0, "dtype": torch.float64, **settings}
    )
    return lens.HookedTransformer(config)


@needs_one
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: other(normalization_type="LNPre"), r"It has LayerNorm \(LNPre\), which ours has not"),
        (lambda: other(attn_only=False, d_mlp=8), "It has an MLP"),
        (lambda: other(), "a HookedTransformer's positions attend to themselves unless"),
        (lambda: other(attention_dir="bidirectional"), "positions attend to themselves"),
        (lambda: other(positional_embedding_type="rotary", rotary_dim=4), "Its heads attend otherwise"),
    ],
)
def test_what_has_no_counterpart_is_refused(make, reason):
    hooked = make()
    with torch.no_grad():
        hooked.unembed.W_U.copy_(torch.eye(4)[:, 3:])
    with pytest.raises(ConfigError, match=f"no ICLTransformer computes what this .* size apart. .*{reason}"):
        from_hooked_transformer(hooked)


@needs_one
def test_small_differences_are_refused_too():
    hooked = to_hooked_transformer(make())
    hooked.blocks[0].attn.b_V.data[0, 0] = 1e-3
    with pytest.raises(ConfigError, match="It has biases, which ours has not"):
        from_hooked_transformer(hooked)
    hooked = to_hooked_transformer(make())
    hooked.unembed.W_U.data[0, 0] = 1e-3
    with pytest.raises(ConfigError, match="or other coordinates than the last are its responses"):
        from_hooked_transformer(hooked)


@needs_one
def test_what_is_no_model_of_regression_is_refused():
    with pytest.raises(ConfigError, match=r"got 4 coordinates in it and 7 logits, as in a model of language"):
        from_hooked_transformer(other(d_vocab=7))
    with pytest.raises(ConfigError, match="only a HookedTransformer is read here, got a ICLTransformer"):
        from_hooked_transformer(make())
    model = make()
    for n_ctx in (0, 2.5):
        with pytest.raises(ConfigError, match="n_ctx must be a whole number ≥ 2"):
            to_hooked_transformer(model, n_ctx=n_ctx)
    object.__setattr__(model.config, "activation", "linear")
    with pytest.raises(ConfigError, match="a HookedTransformer's attention is softmax, this model's is 'linear'"):
        to_hooked_transformer(model)
