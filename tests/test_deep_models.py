"""Models that have more than heads: scratch, a read-in, a read-out, LayerNorm.  Their training: tests/training."""

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp import Run, SparseRegression, passes
from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.export import to_hooked_transformer
from icl_interp.interventions import gradient_step, idealisation, transplant, zero_ablation
from icl_interp.model import ICLTransformer
from icl_interp.weights import check_weights, initial_weights, to_state_dict, weight_shapes

TASK = SparseRegression(4, 2, length=7)
SCRATCH = ModelConfig(4, n_heads=3, n_layers=3, d_head=2, scratch=5, read_out=True, layer_norm=True)
READ_IN = ModelConfig(4, n_heads=2, n_layers=2, d_head=3, read_in=9, read_out=True)
KINDS = pytest.mark.parametrize("config", [SCRATCH, READ_IN], ids=["scratch", "read_in"])


def make(config, seed=0):
    """A model all of whose weights are random, those that begin as ones and zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    weights = initial_weights(config, generator)
    noisy = {name: (w + 0.1 * torch.randn(w.shape, generator=generator)).double() for name, w in weights.items()}
    return ICLTransformer.from_weights(config, noisy), noisy


def prompts(n=5):
    return TASK.sample(n, generator=torch.Generator().manual_seed(1)).to(dtype=torch.float64)


def test_sizes():
    assert (SCRATCH.d_model, SCRATCH.columns, SCRATCH.extras) == (10, 5, ("scratch", "read_out", "layer_norm"))
    assert (READ_IN.d_model, READ_IN.columns, READ_IN.extras) == (9, 5, ("read_in", "read_out"))
    assert ModelConfig(4).plain
    assert not ModelConfig(4, n_layers=2).plain
    assert not ModelConfig(4, layer_norm=True).plain


@KINDS
def test_weights_are_drawn_named_and_checked(config):
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    assert {name: tuple(w.shape) for name, w in weights.items()} == weight_shapes(config)
    check_weights(weights, config)
    assert all(w.any() for name, w in weights.items() if name != "ln_b")
    for name in set(weights) - {"W_Q"}:
        with pytest.raises(CheckpointError, match=f"missing: {name}"):
            check_weights({k: w for k, w in weights.items() if k != name}, config)
        with pytest.raises(CheckpointError, match=f"{name} must have shape"):
            check_weights({**weights, name: weights[name][..., :-1]}, config)


def test_what_is_drawn_of_a_plain_model_is_drawn_of_one_with_more():
    """Whatever a model has besides, its heads' first random numbers are those of the seed."""
    plain, more = (
        initial_weights(ModelConfig(4, n_layers=2, **extra), torch.Generator().manual_seed(3))
        for extra in ({}, {"layer_norm": True})
    )
    assert all(torch.equal(plain[name], more[name]) for name in plain)


@KINDS
def test_a_models_weights_are_those_it_was_made_of(config):
    model, weights = make(config)
    assert all(torch.equal(w, weights[name]) for name, w in model.weights().items())
    assert set(to_state_dict(weights)) == set(model.state_dict())
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in to_state_dict(weights).items())


@KINDS
def test_a_run_goes_to_disk_and_back(config, tmp_path):
    model, weights = make(config)
    run = Run(config, weights, task=TASK)
    opened = Run.load(run.save(tmp_path / "run"))
    assert (opened.model_config, opened.task) == (config, TASK)
    torch.testing.assert_close(opened.model().predict(prompts()), model.predict(prompts()), rtol=0, atol=0)


def test_a_training_goes_to_disk_and_back(tmp_path):
    how = {"n_layers": 2, "scratch": 3, "read_out": True, "layer_norm": True, "steps": 30, "progress": False}
    run = icl.train(TASK, **how, schedule="cosine", warmup=5, clip=1.0, out=tmp_path / "run")
    opened = Run.load(tmp_path / "run")
    assert opened.training == run.training
    assert set(opened.dynamics.snapshots) == set(weight_shapes(run.model_config))
    step = int(opened.dynamics.snapshot_steps[1])
    torch.testing.assert_close(opened.model(step).predict(prompts()), run.model(step).predict(prompts()))


@KINDS
def test_every_hook_point_fires_and_the_stream_is_what_the_pass_says(config):
    model, weights = make(config)
    logits, cache = model.run_with_cache(prompts())
    assert set(cache) == set(model.hook_dict)
    streams = list(passes.residuals(weights, config, prompts().z))
    for layer in range(config.n_layers):
        torch.testing.assert_close(cache["resid_pre", layer], streams[layer])
    torch.testing.assert_close(cache["resid_post", config.n_layers - 1][:, -1:], streams[-1])
    torch.testing.assert_close(passes.read_out(weights, config, streams[-1]), logits[:, -1:])
    if config.layer_norm:
        read = cache["blocks.1.ln1.hook_normalized"]
        torch.testing.assert_close(read.square().mean(-1), torch.ones_like(read[..., 0]), rtol=1e-3, atol=0)


@KINDS
def test_a_stream_can_be_gone_on_from(config):
    model, weights = make(config)
    stream = list(passes.residuals(weights, config, prompts().z))[1]
    torch.testing.assert_close(model(stream, start_at_layer=1), model(prompts()))
    torch.testing.assert_close(model(prompts(), stop_at_layer=1), stream)
    with pytest.raises(ConfigError, match=rf"\(batch, positions ≥ 2, d_model = {config.d_model}\), got \(5, 8, 5\)"):
        model(prompts().z, start_at_layer=1)
    with pytest.raises(ConfigError, match=r"positions ≥ 2, 5\), that is dim 4 \+ n_outputs 1, got"):
        model(stream)


@KINDS
def test_split_inputs_are_normalised_too(config):
    model, _ = make(config)
    before = model.predict(prompts())
    model.set_use_split_qkv_input(True)
    torch.testing.assert_close(model.predict(prompts()), before)


@KINDS
def test_gradients_reach_every_weight(config):
    model, _ = make(config)
    model(prompts(), return_type="loss").backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_the_read_out_is_frozen_where_it_is_not_learned():
    assert not ICLTransformer(ModelConfig(4, scratch=2)).W_U.requires_grad
    assert ICLTransformer(SCRATCH).W_U.requires_grad


@KINDS
def test_a_head_of_any_layer_can_be_taken_away_or_exchanged(config):
    model, weights = make(config)
    assert zero_ablation(model, "L1H0").risk_change(prompts(50)).value != 0
    other = Circuits.from_weights(make(config, seed=5)[1], config)
    with transplant(model, "L0H1", other):
        there = model.predict(prompts())
    assert (there - model.predict(prompts())).abs().max() > 1e-6
    with transplant(model, "L0H1", Circuits.from_weights(weights, config)):
        torch.testing.assert_close(model.predict(prompts()), make(config)[0].predict(prompts()))


@KINDS
def test_what_is_about_a_prompts_columns_is_refused(config):
    model, weights = make(config)
    with pytest.raises(ConfigError, match=r"a head's ideal self reads a prompt's columns .* this model has .*read_out"):
        idealisation(model)
    with pytest.raises(ConfigError, match="this model has"):
        gradient_step(model)
    circuits = Circuits.from_weights(weights, config)
    for ask in (circuits.predict, circuits.head_outputs):
        with pytest.raises(ConfigError, match=r"a prediction takes more than circuits .* use run.model\(\).predict"):
            ask(prompts())


def test_circuits_of_a_wider_stream():
    _, weights = make(SCRATCH)
    circuits = Circuits.from_weights(weights, SCRATCH)
    assert circuits.KQ.shape == (3, 3, 10, 10)
    np.testing.assert_array_equal(circuits.mu[..., 0], circuits.OV[:, :, 4, 4])
    np.testing.assert_array_equal(circuits.OV_21, circuits.OV[:, :, 4:5, :4])
    assert circuits.OV_live.all()  # the read-out reads all of it
    without = Circuits.from_weights(
        {name: w for name, w in weights.items() if name != "W_U"},
        ModelConfig(4, n_layers=3, n_heads=3, d_head=2, scratch=5),
    )
    assert without.OV_live[-1].any(-1).tolist() == [False] * 4 + [True] + [False] * 5
    assert np.isfinite(circuits.omega).all()
    read_in = Circuits.from_weights(make(READ_IN)[1], READ_IN)
    assert np.isnan(read_in.omega).all()
    assert np.isnan(read_in.mu).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scratch": -1}, "scratch must be a whole number ≥ 0, got -1"),
        ({"scratch": 1.0}, "scratch must be a whole number ≥ 0, got 1.0"),
        ({"read_in": 0, "read_out": True}, "read_in must be a whole number ≥ 1, got 0"),
        ({"read_in": 8}, "takes scratch=0 and read_out=True, got scratch=0, read_out=False"),
        ({"read_in": 8, "read_out": True, "scratch": 1}, "takes scratch=0 and read_out=True, got scratch=1"),
        ({"read_out": "yes"}, "read_out must be True or False, got 'yes'"),
        ({"layer_norm": None}, "layer_norm must be True or False, got None"),
    ],
)
def test_configurations_that_cannot_be(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ModelConfig(4, **change)


def test_a_state_dict_says_too_little(tmp_path):
    for config, said in ((SCRATCH, "LayerNorm is not supported in a state dict"), (READ_IN, r"is not \[0; I\]")):
        torch.save(make(config)[0].state_dict(), tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match=said):
            Run.load(tmp_path / "state.pt")


def test_only_heads_are_exported():
    try:
        with pytest.raises(ConfigError, match="a model with scratch is not exported"):
            to_hooked_transformer(ICLTransformer(ModelConfig(4, scratch=1)))
    except ImportError:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
