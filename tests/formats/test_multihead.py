"""torch's own MultiheadAttention, called as an in-context learner would call it, and opened."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from icl_interp.circuits import Circuits
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.formats import Given, load_run
from icl_interp.roles import classify
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import plant

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
SAID_ONE = "there is one response, the last of 6 coordinates (n_outputs= says otherwise)"
SAID_KEYS = "keys and values are the demonstrations, the query is not among them"


def attention(width=6, heads=2, *, bias=False, dtype=torch.float64, seed=0, **settings):
    torch.manual_seed(seed)
    return nn.MultiheadAttention(width, heads, bias=bias, batch_first=True, dtype=dtype, **settings)


def predict(mha, prompt, outputs=1):
    return mha(prompt.z[:, -1:], prompt.demonstrations, prompt.demonstrations)[0][:, 0, -outputs:]


def prompts(task, batch=200):
    return task.sample(batch, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)


def saved(state, tmp_path):
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@torch.no_grad()
def holding(circuits, heads):
    """A `MultiheadAttention` with these circuits, which must be of no more than E/H dimensions each."""
    width = circuits.KQ.shape[-1]
    mha, d_head = attention(width, heads), width // heads
    rng = np.random.default_rng(0)
    q, k, v = (part.numpy().reshape(heads, d_head, width) for part in mha.in_proj_weight.chunk(3))
    for h in range(heads):
        between_qk, between_vo = (rng.standard_normal((d_head, d_head)) + 2 * np.eye(d_head) for _ in range(2))
        left, sizes, right = np.linalg.svd(circuits.KQ[0, h])
        assert np.all(sizes[d_head:] < 1e-6)
        q[h] = between_qk @ (sizes[:d_head, None] * right[:d_head]) * d_head**0.5
        k[h] = np.linalg.inv(between_qk).T @ left[:, :d_head].T
        left, sizes, right = np.linalg.svd(circuits.OV[0, h])
        v[h] = between_vo @ (sizes[:d_head, None] * right[:d_head])
        mha.out_proj.weight[:, h * d_head : (h + 1) * d_head] = torch.from_numpy(
            left[:, :d_head] @ np.linalg.inv(between_vo)
        )
    return mha


# --- There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "attention.", "model.layers.0."])
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_an_untrained_one(heads, prefix, tmp_path):
    mha = attention(heads=heads, seed=heads)
    path = saved({prefix + name: tensor for name, tensor in mha.state_dict().items()}, tmp_path)
    run, prompt = load_run(path, Given(n_heads=heads)), prompts(TASK)
    torch.testing.assert_close(run.circuits().predict(prompt), predict(mha, prompt), rtol=0, atol=1e-10)
    torch.testing.assert_close(run.model().predict(prompt), predict(mha, prompt), rtol=0, atol=1e-10)
    assert (run.model_config.dim, run.model_config.n_heads, run.model_config.d_head) == (5, heads, 6 // heads)
    assert run.assumed == (SAID_ONE, SAID_KEYS)
    assert run.format == "a torch.nn.MultiheadAttention"


@pytest.mark.parametrize(("omega", "mu"), [([-0.518], [-1.55]), ([0.4], [1.7])])
def test_a_planted_head(omega, mu, tmp_path):
    planted = plant(TASK, omega=omega, mu=mu)
    mha = holding(planted.run.circuits(), heads=1)
    run, prompt = load_run(saved(mha.state_dict(), tmp_path), Given(n_heads=1)), prompts(TASK)
    circuits = run.circuits()
    torch.testing.assert_close(circuits.predict(prompt), predict(mha, prompt), rtol=0, atol=1e-10)
    np.testing.assert_allclose(circuits.omega[0], planted.omega, atol=1e-5)
    np.testing.assert_allclose(circuits.mu[0, :, 0], planted.mu, atol=1e-5)
    assert classify(circuits, [prompts(TASK, 4_000)], np.eye(5)).roles == planted.roles


@pytest.mark.parametrize("heads", [2, 4])
def test_planted_heads_that_see_some_features(heads, tmp_path):
    """Heads of E/H dimensions: the first ones see one half of six features each, the rest likewise."""
    task = MultiTaskRegression(6, [range(3), range(3, 6)], 40)
    KQ, OV = np.zeros((2, 1, heads, 8, 8))
    for h in range(heads):
        seen = range(8 // heads)[:3] if h % 2 == 0 else range(3, 3 + min(3, 8 // heads))
        KQ[0, h, list(seen), list(seen)] = 0.3 * (-1) ** h
        OV[0, h, 6 + h % 2, 6 + h % 2] = 3.0 * (-1) ** h
    planted = Circuits(KQ, OV, 6, 2)
    mha, prompt = holding(planted, heads), prompts(task)
    run = load_run(saved({"net": mha.state_dict()}, tmp_path), Given(n_heads=heads, dim=6))
    circuits = run.circuits()
    torch.testing.assert_close(circuits.predict(prompt), predict(mha, prompt, 2), rtol=0, atol=1e-10)
    np.testing.assert_allclose(circuits.KQ, KQ, atol=1e-10)
    np.testing.assert_allclose(circuits.OV, OV, atol=1e-10)
    many = prompts(task, 2_000)
    assert classify(circuits, [many], np.eye(6)).roles == classify(planted, [many], np.eye(6)).roles
    assert run.assumed == (SAID_KEYS,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_and_half_precision(dtype, tmp_path):
    mha = attention(dtype=dtype)
    run, prompt = load_run(saved(mha.state_dict(), tmp_path), Given(n_heads=2, n_outputs=1)), TASK.sample(100)
    assert run.weights["W_Q"].dtype == torch.float32
    torch.testing.assert_close(run.circuits().predict(prompt), predict(mha.float(), prompt), rtol=0, atol=1e-5)
    assert run.assumed == (SAID_KEYS,)


def test_a_live_one_says_how_many_heads_it_has():
    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.Identity()
            self.mha = attention(heads=3)

    for module in (Learner().mha, Learner()):
        run, prompt = load_run(module), prompts(TASK)
        torch.testing.assert_close(run.circuits().predict(prompt), predict(Learner().mha, prompt), rtol=0, atol=1e-10)
        with pytest.raises(ConfigError, match=r"n_heads is 3 .* 2 was given"):
            load_run(module, Given(n_heads=2))
    run = load_run(module, Given(mask="strict_causal", attn_scale=1.0))
    assert (run.model_config.mask, run.model_config.score_scale) == ("strict_causal", 1)


def test_weights_are_copies():
    mha = attention()
    run = load_run(mha)
    before = run.weights["W_O"].clone()
    with torch.no_grad():
        mha.out_proj.weight.zero_()
    assert torch.equal(run.weights["W_O"], before)


# --- Biases ----------------------------------------------------------------------------------------------------------


def biased(**values):
    mha = attention(bias=True)
    with torch.no_grad():
        b_Q, b_K, b_V = mha.in_proj_bias.view(3, -1)
        places = {"b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_o": mha.out_proj.bias}
        for name, value in values.items():
            places[name].copy_(torch.as_tensor(value))
    return mha


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"b_K": [1.0, -2.0, 3.0, 0.5, 2.0, 1.0]},  # shifts all scores of a query alike
        {"b_o": [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]},  # written to covariates, which no prediction reads
    ],
)
def test_biases_without_effect_are_honoured(values, tmp_path):
    mha, prompt = biased(**values), prompts(TASK)
    run = load_run(saved(mha.state_dict(), tmp_path), Given(n_heads=2))
    torch.testing.assert_close(run.circuits().predict(prompt), predict(mha, prompt), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"b_Q": [0, 0, 0, 0, 0, 1e-6]}, "gives the queries a bias, which has no counterpart.* bias=False"),
        ({"b_V": [1.0] * 6}, "add up to .* in the prediction"),
        ({"b_o": [0, 0, 0, 0, 0, 0.25]}, "add up to 0.25 in the prediction, whatever the prompt"),
    ],
)
def test_biases_with_an_effect_are_refused(values, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        load_run(saved(biased(**values).state_dict(), tmp_path), Given(n_heads=2))


# --- What is refused -------------------------------------------------------------------------------------------------


def test_the_number_of_heads_is_not_in_the_file(tmp_path):
    path = saved(attention().state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"how many heads a MultiheadAttention has: pass n_heads= \(--heads"):
        load_run(path)
    with pytest.raises(CheckpointError, match="its 6 coordinates must split evenly into heads, got 4"):
        load_run(path, Given(n_heads=4))
    for heads in (0, -2, 2.0, True):
        with pytest.raises(ConfigError, match="n_heads must be a whole number"):
            Given(n_heads=heads)
    with pytest.raises(CheckpointError, match="have to hold covariates and responses, got 6 responses"):
        load_run(path, Given(n_heads=2, n_outputs=6))
    with pytest.raises(ConfigError, match="dim is 5"):
        load_run(attention(), Given(dim=4, n_outputs=1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias_k": torch.zeros(1, 1, 6)}, r"holds bias_k: an extra key and value \(add_bias_kv=True\)"),
        ({"q_proj_weight": torch.zeros(6, 6)}, r"holds q_proj_weight: keys or values of another width"),
        ({"q_proj_weight": torch.zeros(6, 6), "in_proj_weight": None}, "keys or values of another width"),
        ({"b.in_proj_weight": torch.zeros(18, 6)}, "one layer of MultiheadAttention is read, found 2"),
        ({"linear1.weight": torch.zeros(6, 6)}, "also holds linear1.weight, which would be lost"),
        ({"out_proj.weight": None}, "lacks out_proj.weight"),
        ({"in_proj_weight": torch.zeros(18, 5)}, r"shape \(3E, E\) and out_proj.weight \(E, E\), got \(18, 5\)"),
        ({"in_proj_weight": torch.zeros(18)}, r"must have axes \(3E, E\)"),
        ({"in_proj_weight": torch.zeros(0, 0)}, "floating-point numbers"),
        ({"in_proj_weight": torch.zeros(18, 6).int()}, "floating-point numbers, got torch.int32"),
        ({"in_proj_weight": torch.full((18, 6), math.nan)}, "NaN or infinity in 108 of 108"),
        ({"out_proj.weight": torch.zeros(6, 5)}, r"and \(6, 5\)"),
        ({"in_proj_bias": torch.zeros(17)}, r"in_proj_bias must have shape \(3E,\) = \(18,\), got \(17,\)"),
        ({"out_proj.bias": torch.zeros(6, 1)}, r"must have axes \(E,\)"),
        ({"out_proj.bias": torch.full((6,), math.inf)}, "out_proj.bias has NaN or infinity"),
    ],
)
def test_state_dicts_that_cannot_be(changes, reason, tmp_path):
    state = {**attention().state_dict(), **changes}
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_run(saved({name: t for name, t in state.items() if t is not None}, tmp_path), Given(n_heads=2))
    assert "recognised as a torch.nn.MultiheadAttention" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"add_bias_kv": True}, "an extra key and value"),
        ({"kdim": 4, "vdim": 4}, "keys or values of another width"),
        ({"add_zero_attn": True}, "attends to a column of zeros too"),
    ],
)
def test_settings_without_a_counterpart(settings, reason):
    with pytest.raises(CheckpointError, match=reason):
        load_run(attention(**settings))


def test_several_layers_are_refused():
    with pytest.raises(CheckpointError, match="one layer of MultiheadAttention is read, found 2"):
        load_run(nn.ModuleList([attention(), attention()]), Given(n_heads=2))
