"""The pass without hooks: the numbers of the hooked model, whatever the config asks for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predicting import prompts

from icl_interp import passes
from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.weights import to_state_dict

STREAMS = st.one_of(
    st.builds(dict, scratch=st.sampled_from([0, 3]), read_out=st.booleans()),
    st.builds(dict, read_in=st.sampled_from([2, 9]), read_out=st.just(True)),
)
ACTIVATIONS = st.sampled_from([("softmax", 1.0), ("linear", 0.2), ("affine", 0.5), ("square", 1.0), ("tanh", 2.0)])


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    activation, scale = draw(ACTIVATIONS)
    return ModelConfig(
        dim=draw(st.integers(1, 4)),
        n_outputs=draw(st.integers(1, 2)),
        n_heads=draw(st.integers(1, 3)),
        n_layers=draw(st.integers(1, 3)),
        d_head=draw(st.sampled_from([None, 1, 3])),
        mask=draw(st.sampled_from(["demonstrations", "strict_causal"])),
        attn_scale=draw(st.sampled_from([None, 0.5])),
        activation=activation,
        activation_scale=scale,
        layer_norm=draw(st.booleans()),
        **draw(STREAMS),
    )


def built(config, seed=0):
    """A hooked model in float64, its weights drawn anew: also the scales and shifts of LayerNorm."""
    model = ICLTransformer(config, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    weights = model.weights()
    for name in weights.keys() & {"ln_w", "ln_b"}:
        weights[name] += 0.3 * torch.randn(weights[name].shape, generator=generator)
    return ICLTransformer.from_weights(config, weights)


def drawn(config, length=5, seed=0):
    return prompts(batch=3, length=length, dim=config.dim, outputs=config.n_outputs, seed=seed)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


@settings(max_examples=50)
@given(config=configs(), length=st.integers(1, 6), seed=st.integers(0, 9))
def test_it_agrees_with_the_hooked_model(config, length, seed):
    model, prompt = built(config, seed), drawn(config, length, seed)
    weights = model.weights()
    logits, cache = model.run_with_cache(prompt)
    close(passes.predict(weights, config, prompt.z), logits[:, -1])
    streams = list(passes.residuals(weights, config, prompt.z))
    for layer, stream in enumerate(streams[:-1]):
        close(stream, cache["resid_pre", layer])
        heads = passes.head_results(weights, config, stream, layer)
        close(heads, cache["result", layer][:, -heads.shape[1] :])
        close(passes.predict_from(weights, config, stream, layer), logits[:, -1])
    assert streams[-1].shape[1] == 1
    close(streams[-1], cache["resid_post", config.n_layers - 1][:, -1:])
    close(passes.predict_from(weights, config, streams[-1], config.n_layers), logits[:, -1])


@settings(max_examples=30)
@given(config=configs(), seed=st.integers(0, 9), data=st.data())
def test_a_changed_stream_goes_on_as_in_the_hooked_model(config, seed, data):
    model, layer = built(config, seed), data.draw(st.integers(0, config.n_layers))
    stream = torch.randn(2, 5, config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    close(passes.predict_from(model.weights(), config, stream, layer), model(stream, start_at_layer=layer)[:, -1])


@pytest.mark.parametrize("layer", range(3))
def test_a_head_taken_off_the_stream_is_a_head_without_weights(layer):
    config = ModelConfig(3, n_heads=2, n_layers=3, scratch=2, read_out=True, activation="linear", activation_scale=0.2)
    model, prompt = built(config), drawn(config)
    weights = model.weights()
    streams = list(passes.residuals(weights, config, prompt.z))
    taken = streams[layer + 1] - passes.head_results(weights, config, streams[layer], layer)[:, :, 1]
    weights["W_O"][layer, 1] = 0
    ablated = passes.predict_from(weights, config, taken, layer + 1)
    close(ablated, passes.predict(weights, config, prompt.z))
    assert not torch.allclose(ablated, model.predict(prompt))


def test_it_is_differentiable_in_every_weight():
    config = ModelConfig(3, n_layers=2, read_in=6, read_out=True, layer_norm=True)
    model, prompt = built(config), drawn(config)
    weights = {name: tensor.requires_grad_() for name, tensor in model.weights().items()}
    (passes.predict(weights, config, prompt.z) - prompt.y_q).square().mean().backward()
    model(prompt, return_type="loss").backward()
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    assert gradients.keys() == weights.keys()
    parameters = dict(model.named_parameters())
    for name, gradient in to_state_dict(gradients).items():
        close(gradient, parameters[name].grad)
