"""Checkpoints of the published code: written as it writes them, opened, and held against the model that wrote them."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

import icl_interp as icl
from icl_interp.circuits import Circuits
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.formats import Given, load_run
from icl_interp.roles import classify
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import plant

TASK = LinearRegression(dim=5, length=40, noise_var=0.1)
TWO = MultiTaskRegression(6, [range(4), range(2, 6)], 48, noise_var=0.1)
ROLES = (["positive", "negative"], ["positive", "negative", "negative", "dummy"])


class Attention(nn.Module):
    """Heads of full width: queries against keys over √D, no biases; `o_proj` takes all heads to `writes` numbers."""

    def __init__(self, width, heads, writes):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, heads * width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(heads * width, writes, bias=False)

    def forward(self, query, context):
        """(B, Q, D) and (B, L, D) to (B, Q, writes)."""
        q, k, v = self.q_proj(query), self.k_proj(context), self.v_proj(context)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        pattern = torch.softmax(q @ k.mT / query.shape[-1] ** 0.5, -1)
        return self.o_proj((pattern @ v).transpose(1, 2).flatten(2))


class OneLayer(nn.Module):
    """The model of the paper."""

    def __init__(self, width, heads, outputs):
        super().__init__()
        self.attention_layer = Attention(width, heads, outputs)

    def forward(self, prompt):
        return self.attention_layer(prompt.z[:, -1:], prompt.demonstrations)[:, 0]


class Layers(nn.Module):
    """Several layers that add to what they read, and a read-out."""

    def __init__(self, width, heads, outputs, layers):
        super().__init__()
        self.attention_layers = nn.ModuleList(Attention(width, heads, width) for _ in range(layers))
        self.final_linear = nn.Linear(width, outputs, bias=True)
        with torch.no_grad():
            self.final_linear.weight.copy_(torch.eye(width)[-outputs:])
            self.final_linear.bias.zero_()

    def forward(self, prompt):
        z = prompt.z
        for layer in self.attention_layers:
            z = z + layer(z, z[:, :-1])
        return self.final_linear(z[:, -1])


def invertible(heads, size, rng):
    left, right = (np.linalg.qr(rng.standard_normal((heads, size, size)))[0] for _ in range(2))
    return left * np.exp2(rng.uniform(-1, 1, (heads, 1, size))) @ right


@torch.no_grad()
def holding(circuits, seed=0):
    """A `OneLayer` in double precision with these circuits, in factors of its own."""
    heads, width, outputs = circuits.n_heads, circuits.dim + circuits.n_outputs, circuits.n_outputs
    rng = np.random.default_rng(seed)
    A, B = invertible(heads, width, rng), invertible(heads, width, rng)
    OV = circuits.OV[0, :, circuits.dim :]
    rows = {
        "q": A,
        "k": np.linalg.inv(A).transpose(0, 2, 1) @ circuits.KQ[0].transpose(0, 2, 1) * width**0.5,
        "v": B,
    }
    model = OneLayer(width, heads, outputs).double()
    for name, blocks in rows.items():
        weight = getattr(model.attention_layer, f"{name}_proj").weight
        weight.copy_(torch.from_numpy(blocks.reshape(heads * width, width)))
    o = OV @ np.linalg.inv(B)
    model.attention_layer.o_proj.weight.copy_(torch.from_numpy(o.transpose(1, 0, 2).reshape(outputs, heads * width)))
    return model


def superposed(supports, omega, mu):
    """Heads with ω on some features and a μ for every response."""
    heads, dim, outputs = len(omega), 6, 2
    rng = np.random.default_rng(3)
    KQ, OV = rng.standard_normal((2, 1, heads, dim + outputs, dim + outputs))
    KQ[..., :dim] = 0
    OV[..., dim:, :] = 0
    for h in range(heads):
        KQ[0, h, supports[h], supports[h]] = omega[h]
        OV[0, h, dim:, dim:] = np.diag(mu[h])
    return Circuits(KQ, OV, dim, outputs)


def recorded(model, *, records=20, divide=None, late=0.98):
    """What the published code saves: the model, and a record whose last point is nearly it."""
    heads = model.attention_layer.heads
    width = model.attention_layer.q_proj.in_features
    found = load_run(model.state_dict()).circuits()
    divide = (width + 1) ** 0.5 if divide is None else divide
    growth = late * np.linspace(0.1, 1, records)
    kq = [[torch.tensor(found.omega[0, h] * g * width**0.5 / divide) for g in growth] for h in range(heads)]
    ov = [[torch.tensor(found.mu[0, h] * g).squeeze(0) for g in growth] for h in range(heads)]
    losses = [1.0 / (1 + step) for step in range(10 * records)]
    return {
        "final_loss": losses[-1],
        "training_losses": losses,
        "validation_losses": losses[::10],
        "qk_dynamics": kq,
        "ov_dynamics": ov,
        "qk_matrices": [[torch.zeros(width, width) for _ in growth] for _ in range(heads)],
        "model": model.state_dict(),
    }


def saved(content, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def prompts(task, batch=200, seed=0):
    return task.sample(batch, generator=torch.Generator().manual_seed(seed)).to(dtype=torch.float64)


@pytest.fixture
def checkpoint():
    """A published checkpoint of two heads, as it would be saved."""
    return recorded(holding(plant(TASK, roles=ROLES[0]).run.circuits()))


# --- There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("heads", [{"omega": [-0.518], "mu": [-1.55]}, *({"roles": roles} for roles in ROLES)])
def test_the_paper_s_models(heads, bare, tmp_path):
    planted = plant(TASK, **heads)
    model = holding(planted.run.circuits(), seed=len(planted.roles))
    run = load_run(saved(model.state_dict() if bare else recorded(model), tmp_path))
    circuits, prompt = run.circuits(), prompts(TASK)
    torch.testing.assert_close(circuits.predict(prompt), model(prompt), rtol=0, atol=1e-10)
    torch.testing.assert_close(run.model()(prompt.z)[:, -1], model(prompt), rtol=0, atol=1e-10)
    np.testing.assert_allclose(circuits.omega[0], planted.omega, atol=1e-5)
    np.testing.assert_allclose(circuits.mu[0, :, 0], planted.mu, atol=1e-5)
    assert classify(circuits, [prompts(TASK, 4_000)], np.eye(5)).roles == planted.roles
    assert run.format == "a checkpoint of the published code of arXiv 2503.12734"
    assert run.weights["W_Q"].dtype == torch.float64
    assert (run.dynamics is None) == bare
    if bare:
        assert run.assumed == ()


@pytest.mark.parametrize("heads", [3, 4])
def test_two_tasks(heads, tmp_path):
    first, second, every = list(range(4)), list(range(2, 6)), list(range(6))
    if heads == 4:
        planted = superposed(
            [first, first, second, second],
            [0.14, -0.14, 0.13, -0.13],
            [(3.4, 0), (-3.4, 0), (0, 3.5), (0, -3.5)],
        )
    else:
        planted = superposed([first, second, every], [-0.2, 0.18, 0.05], [(-7.0, -1.0), (2.5, 6.5), (4.5, -5.5)])
    model = holding(planted)
    run = load_run(saved(recorded(model), tmp_path))
    circuits, prompt = run.circuits(), prompts(TWO)
    assert (run.model_config.dim, run.model_config.n_outputs, run.model_config.n_heads) == (6, 2, heads)
    torch.testing.assert_close(circuits.predict(prompt), model(prompt), rtol=0, atol=1e-10)
    np.testing.assert_allclose(circuits.omega, planted.omega, atol=1e-10)
    np.testing.assert_allclose(circuits.mu, planted.mu, atol=1e-10)
    np.testing.assert_allclose(circuits.KQ, planted.KQ, atol=1e-10)
    many = prompts(TWO, 4_000)
    assert classify(circuits, [many], np.eye(6)).roles == classify(planted, [many], np.eye(6)).roles
    assert run.dynamics is not None
    assert run.dynamics.mu.shape == (20, 1, heads, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_untrained_model(dtype, tmp_path):
    torch.manual_seed(0)
    model = OneLayer(6, 8, 1).to(dtype)
    run = load_run(saved(model.state_dict(), tmp_path))
    assert run.weights["W_K"].dtype == torch.float32
    prompt = TASK.sample(100)
    torch.testing.assert_close(run.circuits().predict(prompt), model.float()(prompt), rtol=0, atol=1e-5)


def test_under_another_prefix_and_with_another_scale(tmp_path):
    torch.manual_seed(0)
    model = OneLayer(4, 2, 1).double()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    run = load_run(saved({"model": state}, tmp_path), Given(attn_scale=1.0, mask="strict_causal"))
    assert (run.model_config.score_scale, run.model_config.mask) == (1.0, "strict_causal")
    np.testing.assert_allclose(run.circuits().KQ, 2 * load_run(model.state_dict()).circuits().KQ)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_several_layers(layers, tmp_path):
    torch.manual_seed(0)
    model = Layers(6, 2, 2, layers).double()
    run = load_run(saved({"model": model.state_dict(), "qk_dynamics": [[0.1], [0.1]]}, tmp_path))
    prompt = prompts(MultiTaskRegression(4, [[0, 1], [2, 3]], 12))
    torch.testing.assert_close(run.circuits().predict(prompt), model(prompt), rtol=0, atol=1e-10)
    assert run.model_config.n_layers == layers
    said = " ".join(run.assumed)
    assert "to all demonstrations" in said
    assert "adds to what it reads" in said
    assert "the record of the training is left out" in said


# --- The record ------------------------------------------------------------------------------------------------------


def test_a_record_put_right(checkpoint, tmp_path):
    run = load_run(saved(checkpoint, tmp_path))
    assert run.dynamics is not None
    np.testing.assert_allclose(run.dynamics.omega[-1], 0.98 * run.circuits().omega, rtol=1e-6)
    np.testing.assert_allclose(run.dynamics.mu[-1], 0.98 * run.circuits().mu, rtol=1e-6)
    assert run.dynamics.steps.tolist() == list(range(0, 20_000, 1000))
    assert run.step == 19_000
    said = " ".join(run.assumed)
    assert f"multiplied by {math.sqrt(7 / 6):.4g}" in said
    assert "every 1,000 steps, from step 0 to 19,000" in said
    np.testing.assert_allclose(run.circuits(19_000).omega, run.circuits().omega)
    again = load_run(run.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.dynamics.omega, run.dynamics.omega)


def test_a_record_that_is_right_is_left_alone(tmp_path):
    model = holding(plant(TASK, roles=ROLES[0]).run.circuits())
    run = load_run(saved(recorded(model, divide=6**0.5), tmp_path))
    np.testing.assert_allclose(run.dynamics.omega[-1], 0.98 * run.circuits().omega, rtol=1e-6)
    assert not any("multiplied" in said for said in run.assumed)


@pytest.mark.parametrize(
    "form",
    [
        lambda heads: [[float(value) for value in head] for head in heads],
        lambda heads: [[value.reshape(1) for value in head] for head in heads],
        lambda heads: [[[float(value)] for value in head] for head in heads],
        lambda heads: [[0, *head[1:]] for head in heads],
        lambda heads: tuple(torch.stack(head) for head in heads),
        lambda heads: torch.stack([torch.stack(head) for head in heads]),
        lambda heads: torch.stack([torch.stack(head) for head in heads])[..., None].requires_grad_(),
    ],
)
def test_forms_of_a_record(checkpoint, form, tmp_path):
    expected = load_run(checkpoint).dynamics.mu[1:]
    for name in ("qk_dynamics", "ov_dynamics"):
        checkpoint[name] = form(checkpoint[name])
    found = load_run(saved(checkpoint, tmp_path)).dynamics
    np.testing.assert_allclose(found.mu[1:], expected, rtol=1e-6)


def test_a_diagonal_for_each_point(checkpoint, tmp_path):
    expected = load_run(checkpoint).dynamics.omega
    spread = torch.tensor([-0.02, -0.01, 0.0, 0.01, 0.02])
    checkpoint["qk_dynamics"] = [[value + spread for value in head] for head in checkpoint["qk_dynamics"]]
    np.testing.assert_allclose(load_run(saved(checkpoint, tmp_path)).dynamics.omega, expected, rtol=1e-6)


def test_a_dict_in_memory_may_hold_numpy_s_numbers(checkpoint):
    expected = load_run(checkpoint).dynamics
    for name in ("qk_dynamics", "ov_dynamics"):
        checkpoint[name] = [[np.float32(value) for value in head] for head in checkpoint[name]]
    checkpoint["training_losses"] = np.array(checkpoint["training_losses"])
    found = load_run(checkpoint).dynamics
    np.testing.assert_allclose(found.omega, expected.omega, rtol=1e-6)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("training", "validation", "expected", "said"),
    [
        ([4.0, 3.0, 2.0], [], [4, 3, 2], "training_losses, one to a point"),
        ([6.0, 4.0, 3.0, 1.0], [], [6, 5, 2], "training_losses, the mean of 2 up to each point"),
        ([8.0, 6.0, 4.0, 2.0, 0.0, 0.0], [], [8, 7, 3], "training_losses, the mean of 2 up to each point"),
        ([1.0], [4.0, 3.0, 2.0], [4, 3, 2], "validation_losses, one to a point"),
        ([1.0, math.nan, 1.0], [4.0, 3.0, 2.0], [4, 3, 2], "validation_losses, one to a point"),
        (["4", "3", "2"], [1.0], [math.nan] * 3, "the loss is not known"),
        (None, {"a": 1}, [math.nan] * 3, "the loss is not known"),
        ([[1.0, 2.0]] * 3, torch.tensor(1.0), [math.nan] * 3, "the loss is not known"),
    ],
)
def test_losses(training, validation, expected, said, tmp_path):
    model = holding(plant(TASK, roles=ROLES[0]).run.circuits())
    content = recorded(model, records=3) | {"training_losses": training, "validation_losses": validation}
    run = load_run(saved(content, tmp_path))
    np.testing.assert_allclose(run.dynamics.loss, expected)
    assert any(said in sentence for sentence in run.assumed)


@pytest.mark.parametrize("losses", [None, [0.5] * 200])
def test_probes_and_reports_read_it(checkpoint, losses, tmp_path):
    result = icl.analyze(
        saved(checkpoint | {"training_losses": losses, "validation_losses": losses}, tmp_path), TASK, budget=500
    )
    assert {outcome.probe: outcome.reason for outcome in result if outcome.status == "failed"} == {}
    assert {outcome.probe for outcome in result if outcome.status == "done"} >= {"dynamics", "kernel_fit", "head_roles"}
    assert "multiplied by 1.08" in result.to_html()
    assert result.to_json()


def test_probes_read_two_tasks():
    planted = superposed([list(range(4)), list(range(2, 6))], [0.14, -0.14], [(3.4, 0), (-3.4, 1)])
    result = icl.analyze(load_run(recorded(holding(planted))), TWO, budget=500)
    assert {outcome.probe: outcome.reason for outcome in result if outcome.status == "failed"} == {}


def with_last(value):
    return lambda heads: [[*heads[0][:-1], value], *heads[1:]]


ENDLESS = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("qk_dynamics", lambda heads: heads[:1], "qk_dynamics must be a list over 2 heads, got one of length 1"),
        ("qk_dynamics", lambda heads: [*heads, heads[0]], "over 2 heads, got one of length 3"),
        ("qk_dynamics", lambda heads: [heads[0], heads[1][1:]], "as many points of every head"),
        ("qk_dynamics", lambda heads: [head[1:] for head in heads], "qk_dynamics has 19 points and ov_dynamics 20"),
        ("qk_dynamics", lambda heads: [[], []], "list of 1 to 200,000 points, got 0"),
        ("qk_dynamics", lambda heads: 3, "got one of length 0"),
        ("qk_dynamics", lambda heads: torch.tensor(3.0), "got one of length 0"),
        ("qk_dynamics", lambda heads: torch.zeros(2), "list of 1 to 200,000 points, got 0"),
        ("qk_dynamics", lambda heads: "ab", "got one of length 0"),
        ("qk_dynamics", lambda heads: {"0": heads[0], "1": heads[1]}, "got one of length 0"),
        ("qk_dynamics", with_last(math.nan), "NaN or infinity"),
        ("qk_dynamics", with_last(torch.tensor(math.inf)), "NaN or infinity"),
        ("qk_dynamics", with_last("0.1"), "1 or 5 numbers a point, all alike"),
        ("qk_dynamics", with_last(None), "1 or 5 numbers a point"),
        ("qk_dynamics", with_last(True), "1 or 5 numbers a point"),
        ("qk_dynamics", with_last(10**400), "1 or 5 numbers a point"),
        ("qk_dynamics", with_last([0.1] * 5), "1 or 5 numbers a point, all alike"),
        ("qk_dynamics", with_last([[0.1]]), "1 or 5 numbers a point"),
        ("qk_dynamics", with_last(ENDLESS), "1 or 5 numbers a point"),
        ("qk_dynamics", with_last(torch.zeros(2)), "1 or 5 numbers a point"),
        ("qk_dynamics", with_last(torch.tensor(1j)), "1 or 5 numbers a point"),
        ("qk_dynamics", lambda heads: [[0.0] * 20] * 2, "not those of qk_dynamics: they differ by a factor nan"),
        ("qk_dynamics", lambda heads: [[-v for v in head] for head in heads], "differ by a factor -1.1"),
        ("qk_dynamics", lambda heads: [[2 * v for v in head] for head in heads], "differ by a factor 0.55"),
        ("qk_dynamics", lambda heads: [[1e308] * 20, [-1e308] * 20], "differ by a factor"),
        ("ov_dynamics", lambda heads: [[-v for v in head] for head in heads], "not those of ov_dynamics"),
        ("ov_dynamics", lambda heads: [[(v, v) for v in head] for head in heads], "1 numbers a point"),
        ("ov_dynamics", lambda heads: None, "ov_dynamics must be a list over 2 heads, got one of length 0"),
    ],
)
def test_a_record_that_cannot_be_read_spoils_nothing(checkpoint, name, change, reason):
    checkpoint[name] = change(checkpoint[name])
    run = load_run(checkpoint)
    assert run.dynamics is None
    assert run.step is None
    assert len(run.assumed) == 1
    assert run.assumed[0].startswith("the record of the training is left out: ")
    assert reason in run.assumed[0]
    assert run.circuits().n_heads == 2


@pytest.mark.parametrize("value", [pytest.param(0.1, marks=pytest.mark.slow), torch.tensor(0.1)])
def test_a_long_record_takes_no_minutes(checkpoint, value):
    start = time.monotonic()
    for length in (200_000, 2_000_000):
        checkpoint["qk_dynamics"] = [[value] * length] * 2
        checkpoint["training_losses"] = [value] * 500_000
        load_run(checkpoint)
    assert time.monotonic() - start < 30


# --- What is refused -------------------------------------------------------------------------------------------------


def bare(**changes):
    """A state dict of two heads with d = 3, some tensors replaced, or taken out by None."""
    torch.manual_seed(0)
    state = OneLayer(4, 2, 1).state_dict()
    state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"attention_layer__q_proj__bias": torch.zeros(8)},
            "also holds attention_layer.q_proj.bias, which would be lost",
        ),
        ({"attention_layer__mask": torch.zeros(8)}, "also holds attention_layer.mask"),
        ({"final_linear__weight": torch.eye(4)[-1:]}, "also holds final_linear.weight"),
        ({"attention_layer__o_proj__weight": None}, "lacks attention_layer.o_proj.weight; it has"),
        ({"attention_layer__q_proj__weight": None}, "lacks attention_layer.q_proj.weight"),
        ({"attention_layer__q_proj__weight": torch.zeros(8)}, r"must have axes \(H·D, D\), got shape \(8,\)"),
        ({"attention_layer__q_proj__weight": torch.zeros(7, 4)}, r"must have shape \(H·D, D\)"),
        ({"attention_layer__q_proj__weight": torch.zeros(0, 4)}, "floating-point numbers, got torch.float32 of shape"),
        ({"attention_layer__q_proj__weight": torch.zeros(8, 4).int()}, "floating-point numbers, got torch.int32"),
        ({"attention_layer__q_proj__weight": torch.full((8, 4), math.nan)}, "NaN or infinity in 32 of 32 entries"),
        ({"attention_layer__k_proj__weight": torch.zeros(12, 4)}, r"shape \(out, in\) = \(8, 4\), got \(12, 4\)"),
        ({"attention_layer__v_proj__weight": torch.zeros(8, 4, 1)}, r"axes \(out, in\), got shape \(8, 4, 1\)"),
        ({"attention_layer__o_proj__weight": torch.zeros(4, 8)}, r"N rows, with D = d \+ N, got \(8, 4\) and \(4, 8\)"),
        ({"attention_layer__o_proj__weight": torch.zeros(1, 4)}, r"= \(1, 8\), got \(1, 4\)"),
        (
            {"attention_layers__0__q_proj__weight": torch.zeros(8, 4)},
            "one attention_layer, or attention_layers numbered",
        ),
    ],
)
def test_one_layer_that_cannot_be(changes, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_run(saved(bare(**changes), tmp_path))
    assert "recognised as a checkpoint of the published code" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("final_linear.weight", torch.ones(1, 4), r"final_linear.weight must be \[0, I\].* no counterpart"),
        ("final_linear.weight", 2 * torch.eye(4)[-1:], r"must be \[0, I\]"),
        ("final_linear.weight", torch.eye(4), r"N rows, with D = d \+ N"),
        ("final_linear.weight", torch.eye(3)[-1:], r"must be \[0, I\]"),
        ("final_linear.bias", torch.ones(1), "with no bias"),
        ("final_linear.weight", None, "lacks final_linear.weight"),
        ("attention_layers.1.o_proj.weight", torch.zeros(1, 8), r"= \(4, 8\), got \(1, 8\)"),
        ("attention_layers.3.q_proj.weight", torch.zeros(8, 4), "numbered 0, 1, …, got"),
        ("attention_layers.1.o_proj.bias", torch.zeros(4), "also holds attention_layers.1.o_proj.bias"),
    ],
)
def test_layers_that_cannot_be(name, tensor, reason, tmp_path):
    torch.manual_seed(0)
    state = {**Layers(4, 2, 1, 2).state_dict(), name: tensor}
    with pytest.raises(CheckpointError, match=reason):
        load_run(saved({key: value for key, value in state.items() if value is not None}, tmp_path))


def test_sizes_that_are_not_the_file_s(checkpoint):
    for given in (Given(dim=4), Given(n_outputs=2), Given(n_heads=4)):
        with pytest.raises(ConfigError, match="was given"):
            load_run(checkpoint, given)
    with pytest.raises(CheckpointError, match="also holds more"):
        load_run({**checkpoint, "more": {"exp_avg": torch.zeros(3)}})


def test_a_record_that_claims_what_no_file_holds_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="with qk_dynamics its tensors claim 8,000,000,000,000 bytes"):
        load_run({**checkpoint, "qk_dynamics": [torch.zeros(1).expand(10**12)] * 2})
