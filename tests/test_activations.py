"""How scores become weights: every activation by hand, in every pass and engine, and denominators that vanish."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import icl_interp
from icl_interp import (
    CheckpointError,
    ConfigError,
    LinearRegression,
    ModelConfig,
    TrainConfig,
    TrainingError,
    activations,
    kms,
)
from icl_interp.activations import BUILT_IN, activation, register_activation
from icl_interp.attention import weighing
from icl_interp.circuits import Circuits
from icl_interp.errors import NumericsError
from icl_interp.interventions import gradient_step, idealisation
from icl_interp.model import ICLTransformer
from icl_interp.testing import plant
from icl_interp.training.gradients import Population
from icl_interp.training.numba_engine import NumbaEngine
from icl_interp.training.prompts import Given
from icl_interp.training.torch_engine import TorchEngine
from icl_interp.weights import Weights, initial_weights

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
OTHERS = tuple(name for name in BUILT_IN if name != "softmax")
BY_HAND: dict[str, Callable[[float], float]] = {
    "softmax": math.exp,
    "affine": lambda x: 1 + x,
    "square": lambda x: (1 + x) ** 2,
    "tanh": lambda x: 1 + math.tanh(x),
    "linear": lambda x: x,
}
SINE: Any = (lambda x: 1 + x.sin(), lambda x: x.cos())


@pytest.fixture
def sine(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(activations, "_known", dict(activations._known))  # what is registered here is forgotten
    register_activation("sine", *SINE)
    return "sine"


def drawn(config: ModelConfig, seed: int = 0, scale: float = 1.0) -> Weights:
    weights = initial_weights(config, torch.Generator().manual_seed(seed))
    return {name: scale * weight for name, weight in weights.items()}


def prompts(task: LinearRegression = TASK, n: int = 200, seed: int = 1) -> Any:
    return task.sample(n, generator=torch.Generator().manual_seed(seed))


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_weights_by_hand(name: str) -> None:
    scale = 1.0 if name == "softmax" else 0.7
    scores = torch.tensor([0.3, -0.4, 0.9, 0.1], dtype=torch.float64)
    allowed = torch.tensor([True, True, False, True])
    for some in (None, allowed):
        kept = [True] * 4 if some is None else some.tolist()
        values = [BY_HAND[name](scale * s) * keep for s, keep in zip(scores.tolist(), kept, strict=True)]
        total = 1 if name == "linear" else sum(values)
        weights = weighing(name, scale)(scores[None], None if some is None else some[None])[0]
        np.testing.assert_allclose(weights, np.array(values) / total, rtol=1e-14)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_not_allowed_weighs_nothing(name: str) -> None:
    """Not even where it is −∞ already; and a row that may attend to nothing has zeros, also in its gradient."""
    scores = torch.tensor([[0.5, -torch.inf], [-torch.inf, -torch.inf]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, False], [False, False]])
    weights = weighing(name)(scores, allowed)
    assert weights[0, 1] == 0
    assert not weights[1].any()
    weights.square().sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_derivatives_and_slopes(name: str) -> None:
    f = activation(name)
    x = torch.linspace(-3, 3, 25, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(f.function(x).sum(), x)
    torch.testing.assert_close(f.derivative(x.detach()), wanted)
    zero = torch.zeros(1, dtype=torch.float64)
    assert f.function(zero).item() == f.at_zero
    if f.normalised:
        assert f.derivative(zero).item() / f.at_zero == f.slope


@pytest.mark.parametrize("name", ["affine", "square", "tanh"])
def test_a_denominator_next_to_zero_gives_no_weights(name: str) -> None:
    scores = torch.tensor([[-1.0, -1.0, -1.0], [0.5, 0.1, 0.2]], dtype=torch.float64)
    if name == "tanh":
        scores[0] = -20.0
    weights = weighing(name)(scores, None)
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()


# --- Passes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    name=st.sampled_from(BUILT_IN),
    layers=st.integers(1, 2),
    heads=st.integers(1, 3),
    outputs=st.integers(1, 2),
    mask=st.sampled_from(["demonstrations", "strict_causal"]),
    scale=st.floats(0.1, 2),
    seed=st.integers(0, 100),
)
def test_the_hooked_pass_and_the_query_row_agree(
    name: str, layers: int, heads: int, outputs: int, mask: Any, scale: float, seed: int
) -> None:
    scale = 1.0 if name == "softmax" else scale
    config = ModelConfig(3, outputs, heads, layers, mask=mask, activation=name, activation_scale=scale)
    model = ICLTransformer(config, seed=seed, dtype=torch.float64)
    prompt = oracles.gaussian_prompts(3, 7, outputs, 20, seed).to(dtype=torch.float64)
    hooked = model.predict(prompt).detach()
    assume(hooked.isfinite().all())
    quick = Circuits.from_weights(model.weights(), config).predict(prompt)
    torch.testing.assert_close(hooked, quick, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BUILT_IN)
def test_patterns_are_on_their_hook(name: str) -> None:
    config = ModelConfig(5, activation=name, activation_scale=1.0 if name == "softmax" else 0.3)
    model = ICLTransformer(config, seed=0, dtype=torch.float64)
    _, cache = model.run_with_cache(prompts(n=4).to(dtype=torch.float64))
    scores, pattern = cache["blocks.0.attn.hook_attn_scores"], cache["blocks.0.attn.hook_pattern"]
    wanted = weighing(name, config.activation_scale)(scores, scores != -torch.inf)
    torch.testing.assert_close(pattern, wanted)
    if name != "linear":
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_ideal_heads_stay_what_they_are(name: str) -> None:
    """An ideal head's ideal self is the head, under every activation; small heads make a step of gradient descent."""
    scale = 1.0 if name == "softmax" else 0.5
    run = plant(TASK, omega=[0.01, -0.01], mu=[3.0, -3.0], activation=name, activation_scale=scale).run
    model, prompt = run.model(), prompts().to(dtype=torch.float32)
    before = model.predict(prompt)
    with idealisation(model):
        torch.testing.assert_close(model.predict(prompt), before, rtol=1e-4, atol=1e-4)
    with gradient_step(model):
        step = model.predict(prompt)
    assert (step - before).square().mean() < 0.01 * before.square().mean()


# --- Engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("engine", [NumbaEngine, TorchEngine])
def test_gradients_are_exact_to_a_millionth(name: str, engine: Any) -> None:
    for seed, (heads, covariance, scale) in enumerate([(1, None, 0.5), (2, kms(0.5), 1.0), (4, None, 0.05)]):
        task = LinearRegression(5, 40, 0.1, covariance=covariance)
        config = ModelConfig(5, n_heads=heads, activation=name, activation_scale=scale)
        weights, prompt = drawn(config, seed), prompts(task, 256, seed)
        loss, grads = engine.grad(config, weights, prompt)
        wanted_loss, wanted = oracles.autograd(weights, config, prompt)
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        assert oracles.distance(grads, wanted) < 1e-6


@settings(max_examples=25)
@given(
    name=st.sampled_from(OTHERS),
    dim=st.integers(1, 7),
    length=st.integers(1, 40),
    outputs=st.integers(1, 4),
    heads=st.integers(1, 3),
    batch=st.integers(1, 140),
    seed=st.integers(0, 2**20),
)
def test_compiled_gradient_for_any_shape(
    name: str, dim: int, length: int, outputs: int, heads: int, batch: int, seed: int
) -> None:
    config = ModelConfig(dim, outputs, heads, activation=name, activation_scale=0.3)
    weights, prompt = drawn(config, seed), oracles.gaussian_prompts(dim, length, outputs, batch, seed)
    circuits = Circuits.from_weights(weights, config)
    if name != "linear":  # near zero everything is ill-conditioned
        assume(circuits.denominators(prompt.to(dtype=torch.float64)).abs().min() > 0.1)
    loss, grads = NumbaEngine.grad(config, weights, prompt)
    wanted_loss, wanted = oracles.autograd(weights, config, prompt)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert oracles.distance(grads, wanted) < 3e-5


def test_an_activation_of_ones_own_trains_on_torch(sine: str) -> None:
    config = ModelConfig(5, activation=sine, activation_scale=0.5)
    weights, prompt = drawn(config), prompts()
    _, grads = TorchEngine.grad(config, weights, prompt)
    assert oracles.distance(grads, oracles.autograd(weights, config, prompt)[1]) < 1e-6
    with pytest.raises(ConfigError, match="it has no code for an activation of one's own, and activation is 'sine'"):
        icl_interp.train(TASK, activation=sine, steps=1, engine="numba", progress=False)
    run = icl_interp.train(TASK, activation=sine, activation_scale=0.5, steps=20, n_records=4, progress=False)
    assert run.dynamics is not None
    assert run.dynamics.loss[-1] < run.dynamics.loss[0] + 0.5


@pytest.mark.parametrize("name", OTHERS)
def test_engines_train_the_same_run(name: str) -> None:
    task = LinearRegression(3, 12, 0.1)
    runs = [
        icl_interp.train(
            task, activation=name, activation_scale=0.1, steps=60, batch_size=64, engine=engine, progress=False
        )
        for engine in ("numba", "torch")
    ]
    for weight in runs[0].weights:
        torch.testing.assert_close(runs[0].weights[weight], runs[1].weights[weight], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", [NumbaEngine, TorchEngine])
def test_a_denominator_next_to_zero_makes_the_loss_nan(engine: Any) -> None:
    config = ModelConfig(2, n_heads=1, activation="affine")
    circuit = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    weights = {"W_Q": 3**0.5 * circuit, "W_K": circuit, "W_V": torch.eye(3), "W_O": torch.eye(3)}
    weights = {name: weight[None, None] for name, weight in weights.items()}
    prompt = oracles.gaussian_prompts(2, 8, 1, 33, 0)
    safe, _ = engine.grad(config, weights, prompt)
    prompt.x[5, :, 0], prompt.x_q[5, 0] = -1.0, 1.0  # every score is −1, and every 1 + score zero
    loss, _ = engine.grad(config, weights, prompt)
    assert math.isfinite(safe)
    assert math.isnan(loss)
    with pytest.raises(NumericsError, match=r"attention with 1 \+ Cx is not defined on 1 of 33 prompts"):
        Circuits.from_weights(weights, config).predict(prompt)


def test_a_training_that_meets_one_ends_there_and_says_so() -> None:
    with pytest.raises(TrainingError, match=r"loss became nan .* where its denominator comes close to zero"):
        icl_interp.train(
            LinearRegression(2, 1, 0.1), activation="affine", activation_scale=3.0, lr=0.5, steps=400, progress=False
        )


# --- A trained model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scale"), [("affine", 0.5), ("square", 0.8), ("tanh", 1.0), ("linear", 1 / 40)])
def test_a_checkpoint_keeps_its_activation(name: str, scale: float, tmp_path: Any) -> None:
    run = icl_interp.train(TASK, activation=name, activation_scale=scale, steps=3, out=tmp_path / "run", progress=False)
    again = icl_interp.Run.load(tmp_path / "run")
    assert (again.model_config.activation, again.model_config.activation_scale) == (name, scale)
    prompt = prompts()
    torch.testing.assert_close(again.model().predict(prompt), run.model().predict(prompt))
    torch.testing.assert_close(again.circuits().predict(prompt), run.model().predict(prompt), rtol=1e-4, atol=1e-5)


def test_a_file_of_another_make_is_told_its_activation(tmp_path: Any) -> None:
    planted = plant(TASK, roles=("positive", "negative"), gamma=0.2, activation="square", activation_scale=0.5).run
    circuits = planted.circuits()
    np.savez(tmp_path / "a.npz", KQ=circuits.KQ[0], OV=circuits.OV[0, :, 5:])
    run = icl_interp.Run.load(tmp_path / "a.npz", activation="square", activation_scale=0.5)
    assert (run.model_config.activation, run.model_config.activation_scale) == ("square", 0.5)
    prompt = prompts().to(dtype=torch.float64)
    torch.testing.assert_close(run.circuits().predict(prompt), circuits.predict(prompt))
    with pytest.raises(ConfigError, match=r"activation must be one of 'softmax', .*, got 'cube'"):
        icl_interp.Run.load(tmp_path / "a.npz", activation="cube")
    planted.save(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"activation is 'square' in .*, 'tanh' was given"):
        icl_interp.Run.load(tmp_path / "run", activation="tanh")


def test_a_checkpoint_with_an_activation_of_ones_own(sine: str, tmp_path: Any, monkeypatch: Any) -> None:
    icl_interp.train(TASK, activation=sine, steps=2, out=tmp_path / "run", progress=False)
    assert icl_interp.Run.load(tmp_path / "run").model_config.activation == "sine"
    monkeypatch.delitem(activations._known, "sine")
    with pytest.raises(
        CheckpointError, match=r"got 'sine'; one of your own has to be made known first: icl_interp.reg"
    ):
        icl_interp.Run.load(tmp_path / "run")


@pytest.mark.parametrize(("name", "scale"), [("affine", 0.5), ("square", 0.8), ("tanh", 1.0)])
def test_roles_and_the_step_under_every_activation(name: str, scale: float) -> None:
    planted = plant(
        TASK, roles=("positive", "negative", "dummy"), gamma=0.1 / scale, activation=name, activation_scale=scale
    )
    result = icl_interp.analyze(planted.run, probes=["head_roles", "kernel_fit"], budget=4_000)
    roles: Any = result["head_roles"].value
    assert roles.heads.roles == planted.roles
    fit: Any = result["kernel_fit"].value
    assert fit.eta.value == pytest.approx(0.879, rel=0.02)
    status = {verdict.claim: verdict.status for verdict in result["kernel_fit"].verdicts}
    assert status["solution_manifold"] == "not_applicable"
    assert status["optimal_step"] == ("holds" if name == "affine" else "not_applicable")


def test_linear_attention_has_no_pairs_of_heads_to_speak_of() -> None:
    run = icl_interp.train(TASK, n_heads=1, activation="linear", activation_scale=1 / 40, steps=1_500, progress=False)
    result = icl_interp.analyze(run, probes=["kernel_fit", "circuit_pattern", "risk"], budget=4_000)
    assert {verdict.status for verdict in result["kernel_fit"].verdicts} == {"not_applicable"}
    fit: Any = result["kernel_fit"].value
    assert fit.eta.value == pytest.approx(0.86, rel=0.1)


def test_what_is_not_defined_gets_no_claims() -> None:
    """Every head's scores are far below −1 at some prompts: a probe that meets one says so, and others go on."""
    run = plant(TASK, omega=[0.9, -0.9], mu=[1.0, -1.0], activation="affine").run
    result = icl_interp.analyze(run, budget=4_000)
    outcome = result["risk"]
    assert outcome.status == "not_applicable"
    assert "attention with 1 + Cx is not defined on" in outcome.reason
    assert result["circuit_pattern"].status == "done"
    status = {verdict.claim: verdict.status for verdict in result["activation"].verdicts}
    assert status["denominators_safe"] == "fails"
    assert "failed" not in {each.status for each in result}


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["relu", "", None, 3, ["softmax"], SINE])
def test_unknown_activations(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"activation must be one of 'softmax', .* got"):
        ModelConfig(5, activation=value)


def test_softmax_has_no_scale() -> None:
    with pytest.raises(ConfigError, match="softmax has no activation_scale"):
        ModelConfig(5, activation_scale=0.5)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_scales(value: Any) -> None:
    with pytest.raises(ConfigError, match="activation_scale must be a finite number"):
        ModelConfig(5, activation="tanh", activation_scale=value)


@pytest.mark.parametrize(
    ("name", "function", "derivative", "message"),
    [
        ("softmax", *SINE, "the activation 'softmax' is built in"),
        ("two words", *SINE, "a word of letters, digits and underscores, got 'two words'"),
        (7, *SINE, "a word of letters, digits and underscores, got 7"),
        ("f", math.sin, math.cos, "'f' does not work on tensors"),
        ("f", None, None, "'f' does not work on tensors"),
        ("f", lambda x: x.sum(), lambda x: x, "the function of activation 'f' must give a finite number for each"),
        ("f", lambda x: 1 + x, lambda x: 1.0, "the derivative of activation 'f' must give a finite number for each"),
        ("f", lambda x: x.log(), lambda x: 1 / x, "the function of activation 'f' must give a finite number for each"),
        ("f", lambda x: 1 + x.sin(), lambda x: x.sin(), r"at x = .* it is .*, automatic differentiation gives 0\.\d+"),
        ("f", lambda x: x.sin(), lambda x: x.cos(), "activation 'f' is zero at 0"),
    ],
)
def test_functions_that_cannot_be(name: Any, function: Any, derivative: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_activation(name, function, derivative)
    assert name in BUILT_IN or name not in activations._known


def test_a_population_of_one_activation_only() -> None:
    """Runs with different activations are trained side by side, each as it would be alone."""
    configs = [
        TrainConfig(LinearRegression(3, 12, 0.1), ModelConfig(3, activation=name), steps=5, batch_size=32)
        for name in BUILT_IN
    ]
    runs = icl_interp.train_many(configs, progress=False)
    for config, run in zip(configs, runs, strict=True):
        alone = icl_interp.train_many([config], progress=False)[0]
        assert all(torch.equal(alone.weights[name], run.weights[name]) for name in run.weights)


def test_population_of_torch_takes_every_block(sine: str) -> None:
    config = ModelConfig(3, n_heads=2, activation=sine, activation_scale=0.4)
    weights = [[drawn(config, seed) for seed in range(3)]]
    prompt = oracles.gaussian_prompts(3, 9, 1, 40, 0)
    population = Population(config, weights, 40, 9, block=2)
    losses = population.descend([Given(prompt)])
    for seed in range(3):
        assert losses[0, seed].item() == pytest.approx(TorchEngine.grad(config, weights[0][seed], prompt)[0], rel=1e-6)
