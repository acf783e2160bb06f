"""Replacements against models that are what they put in a head's place, and against the estimators."""

import numpy as np
import pytest
import torch

from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.estimators import GradientDescent, KernelRegressor
from icl_interp.interventions import gradient_step, idealisation, transplant
from icl_interp.model import ICLTransformer
from icl_interp.roles import ideal_matrices, reference_shape
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing import plant

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def model_of(KQ, OV, model, d_head=None):
    """A model of these circuits (layers, heads, D, D), exactly: W_Q and W_V are the identity."""
    config = ModelConfig(**{**vars(model.config), "d_head": KQ.shape[-1]})
    one = torch.eye(KQ.shape[-1], dtype=torch.float64).expand(KQ.shape).clone()
    scaled = config.score_scale * torch.from_numpy(KQ)
    return ICLTransformer.from_weights(config, {"W_Q": one, "W_K": scaled, "W_V": one, "W_O": torch.from_numpy(OV).mT})


def circuits_of(model):
    return Circuits.from_weights(model.weights(), model.config)


def ideal_circuits(model, places, omega=None, mu=None):
    """(KQ, OV) with those of some heads put to ω·I and μ by hand."""
    circuits, d = circuits_of(model), model.config.dim
    KQ, OV = circuits.KQ.copy(), circuits.OV.copy()
    for place in places:
        w = np.trace(KQ[place][:d, :d]) / d if omega is None else omega
        m = OV[place][d, d] if mu is None else mu
        KQ[place], OV[place] = 0, 0
        KQ[place][:d, :d] = w * np.eye(d)
        OV[place][d, d] = m
    return KQ, OV


# ---- ideal selves


def test_ideal_heads_are_heads_with_ideal_circuits(deep, sample):
    expected = model_of(*ideal_circuits(deep, [(0, 1), (1, 0)]), deep)
    with idealisation(deep, ["L1H0", "L0H1"]):
        _, cache = deep.run_with_cache(sample())
        logits = deep(sample())
    _, wanted = expected.run_with_cache(sample())
    torch.testing.assert_close(logits, expected(sample()), **CLOSE)
    for name in ("attn_scores", "pattern", "result"):  # what caches show is the new head's
        for layer in range(2):
            torch.testing.assert_close(cache[name, layer], wanted[name, layer], **CLOSE)


def test_every_position_and_mask(model, sample):
    expected = model_of(*ideal_circuits(model, [(0, h) for h in range(4)]), model)
    with idealisation(model):
        torch.testing.assert_close(model(sample()), expected(sample()), **CLOSE)


def test_given_omega_and_mu_it_is_a_sum_of_kernel_regressors(model, sample):
    prompt = sample()
    omega, mu = [0.3, -0.2, 0.0, 0.1], [1.0, 2.0, -1.0, 0.5]
    expected = sum(KernelRegressor(w, m)(prompt) for w, m in zip(omega, mu, strict=True))
    with idealisation(model, omega=omega, mu=np.array(mu)):
        torch.testing.assert_close(model.predict(prompt), expected, **CLOSE)
    with idealisation(model, [2, 0], omega=[0.3, -0.2], mu=1.5):  # in the order of the heads
        _, cache = model.run_with_cache(prompt)
    for head, w in ((2, 0.3), (0, -0.2)):
        torch.testing.assert_close(cache["result", 0][:, -1, head, 3:], KernelRegressor(w, 1.5)(prompt), **CLOSE)


def test_planted_models_are_their_ideal_selves_whatever_fills_their_inert_parts():
    for task in (None, LinearRegression(4, 20, covariance=kms(0.6))):
        given = {"omega": [0.2, -0.2, 0.1], "mu": [2.0, -1.5, 0.0]}
        run = plant(task, inert_noise=1.0, **given).run
        model = run.model().double()
        prompt = run.task.sample(64, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
        with idealisation(model, task=run.task):
            ideal = model.predict(prompt)
        torch.testing.assert_close(ideal, model.predict(prompt), rtol=1e-4, atol=1e-5)  # planted in float32


def test_several_responses_keep_their_features_by_task(sample):
    config = ModelConfig(dim=3, n_outputs=2, n_heads=2)
    model = ICLTransformer(config, seed=0, dtype=torch.float64)
    circuits = circuits_of(model)
    KQ, OV = np.zeros_like(circuits.KQ), np.zeros_like(circuits.OV)
    KQ[..., :3, :3] = circuits.KQ_11 * np.eye(3)
    OV[..., 3:, 3:] = circuits.OV_22 * np.eye(2)
    z = torch.randn(5, 8, 5, dtype=torch.float64)
    with idealisation(model):
        torch.testing.assert_close(model(z), model_of(KQ, OV, model)(z), **CLOSE)


def test_the_shape_is_the_roles(model):
    task = LinearRegression(3, 7, covariance=kms(0.5))
    shape = reference_shape(task, 3)
    with idealisation(model, 1, omega=0.4, task=task):
        _, cache = model.run_with_cache(task.sample(2))
    z = cache["resid_pre", 0][..., :3]
    expected = 0.4 * z[:, -1:] @ torch.from_numpy(shape) @ z[:, :-1].mT
    torch.testing.assert_close(cache["attn_scores", 0][:, 1, -1:, :-1], expected, **CLOSE)
    matrices = ideal_matrices(circuits_of(model), shape)
    assert matrices.shape == (1, 4, 3, 3)
    np.testing.assert_allclose(matrices[0, 1] / matrices[0, 1, 0, 0] * shape[0, 0], shape)


# ---- a step of gradient descent


@pytest.mark.parametrize("step", [0.8, np.array([[0.5, 0.1, 0.0], [0.2, 0.7, 0.0], [0.0, 0.3, 0.9]])])
@pytest.mark.parametrize("heads", [None, [1, 3]])
def test_a_step_of_debiased_gradient_descent(model, sample, step, heads):
    prompt = sample()
    _, cache = model.run_with_cache(prompt)
    others = [] if heads is None else [h for h in range(4) if h not in heads]
    expected = GradientDescent(step, debiased=True)(prompt) + cache["result", 0][:, -1, others, 3:].sum(1)
    with gradient_step(model, heads, step=step):
        torch.testing.assert_close(model.predict(prompt), expected, **CLOSE)


def test_the_heads_own_step_is_the_sum_of_omega_mu(model, sample):
    circuits = circuits_of(model)
    eta = float((circuits.omega[0] * circuits.mu[0, :, 0]).sum())
    with gradient_step(model):
        torch.testing.assert_close(model.predict(sample()), GradientDescent(eta, debiased=True)(sample()), **CLOSE)


def test_a_step_sees_what_the_mask_lets_it_see(deep, sample):
    prompt = sample(2)
    with gradient_step(deep, ["L0H0", "L0H1", "L0H2"], step=0.8):
        middle = deep(prompt, stop_at_layer=1)[..., 3:]
    for p in range(8):
        x, y = prompt.z[:, :p, :3], prompt.z[:, :p, 3:]
        centred = x - x.mean(1, keepdim=True)
        step = 0.8 * torch.einsum("bln,bld,bd->bn", y, centred, prompt.z[:, p, :3]) / p if p else torch.zeros(2, 1)
        torch.testing.assert_close(middle[:, p], prompt.z[:, p, 3:] + step.double(), **CLOSE)


def test_heads_of_small_omega_are_a_step_to_first_order(sample):
    run = plant(LinearRegression(3, 7), omega=[1e-4, -1e-4], mu=[1e3, -1e3], permute=False).run
    model = run.model().double()
    with gradient_step(model):
        step = model.predict(sample())
    torch.testing.assert_close(step, model.predict(sample()), rtol=1e-2, atol=1e-3)


# ---- heads of another checkpoint


def test_transplanting_every_head_makes_the_donor(deep, sample):
    config = ModelConfig(dim=3, n_heads=3, n_layers=2, d_head=6, mask="strict_causal", attn_scale=0.7)
    donor = ICLTransformer(config, seed=5, dtype=torch.float64)
    with transplant(deep, None, circuits_of(donor)):
        torch.testing.assert_close(deep(sample()), donor(sample()), **CLOSE)


def test_one_head_from_elsewhere(deep, sample, with_weights):
    donor = ICLTransformer(deep.config, seed=5, dtype=torch.float64)

    def graft(weights):
        for name in weights:
            weights[name][1, 0] = donor.weights()[name][0, 2]

    with transplant(deep, "L1H0", circuits_of(donor), "L0H2"):
        torch.testing.assert_close(deep(sample()), with_weights(deep, graft)(sample()), **CLOSE)


def test_a_wider_donor(model, sample):
    donor = ICLTransformer(ModelConfig(dim=3, n_heads=6), seed=5, dtype=torch.float64)
    _, own = model.run_with_cache(sample())
    _, theirs = donor.run_with_cache(sample())
    with transplant(model, [3, 1], circuits_of(donor), [5, 0]):
        _, cache = model.run_with_cache(sample())
    expected = own["result", 0].clone()
    expected[:, :, 3], expected[:, :, 1] = theirs["result", 0][:, :, 5], theirs["result", 0][:, :, 0]
    torch.testing.assert_close(cache["result", 0][..., 3:], expected[..., 3:], **CLOSE)


# ---- the residual stream they read


def test_they_read_what_the_layer_reads_now(deep, sample):
    """Edits of the stream by hooks that come later, in place or not, reach the new heads as they do the old ones."""
    prompt, other = sample(), sample(seed=1)
    expected = model_of(*ideal_circuits(deep, [(1, 0)]), deep)
    _, cache = deep.run_with_cache(other)

    def replaced(residual, hook):
        return torch.cat([residual[:, :3], cache["resid_pre", 1][:, 3:]], dim=1)

    def in_place(residual, hook):
        residual[:, 3:] = cache["resid_pre", 1][:, 3:]

    for edit in (replaced, in_place):
        hooks = [("blocks.1.hook_resid_pre", edit)]
        with torch.no_grad(), idealisation(deep, "L1H0"):
            found = deep.run_with_hooks(prompt, fwd_hooks=hooks)
        with torch.no_grad():
            torch.testing.assert_close(found, expected.run_with_hooks(prompt, fwd_hooks=hooks), **CLOSE)


def test_they_read_inputs_of_their_own_where_heads_have_some(deep, sample):
    expected = model_of(*ideal_circuits(deep, [(1, 0), (1, 2)]), deep)
    edited = []
    for each in (deep, expected):
        each.set_use_split_qkv_input(True)
        hooks = [
            (f"blocks.1.hook_{what}_input", lambda x, hook, by=by: x * torch.tensor(by)[:, None])
            for what, by in (("q", [0.5, 1, 2]), ("k", [3, 1, 0.1]), ("v", [1, 1, -2]))
        ]
        replaced = idealisation(deep, ["L1H0", "L1H2"]) if each is deep else each.hooks()
        with torch.no_grad(), replaced:
            edited.append(each.run_with_hooks(sample(), fwd_hooks=hooks))
    torch.testing.assert_close(*edited, **CLOSE)


def test_gradients_flow_through_them(deep, sample):
    expected = model_of(*ideal_circuits(deep, [(0, 1)]), deep)
    gradients = []
    for each in (deep, expected):
        with idealisation(deep, "L0H1") if each is deep else each.hooks():
            _, cache = each.run_with_cache(sample(), return_type="loss", incl_bwd=True)
        gradients.append(cache["hook_embed_grad"])
    torch.testing.assert_close(*gradients, **CLOSE)


# ---- what is refused


def test_numbers_that_do_not_fit_are_refused(model):
    with pytest.raises(
        ConfigError, match=r"omega must be one finite number, or one for each of 2 heads, got \[1, 2, 3"
    ):
        idealisation(model, [0, 1], omega=[1, 2, 3])
    with pytest.raises(ConfigError, match="mu must be one finite number, or one for each of 4 heads, got nan"):
        idealisation(model, mu=float("nan"))
    with pytest.raises(ConfigError, match=r"step must be a finite number or a \(3, 3\) matrix, got"):
        gradient_step(model, step=np.eye(2))
    with pytest.raises(ConfigError, match=r"step must be a finite number or a \(3, 3\) matrix, got inf"):
        gradient_step(model, step=float("inf"))
    for replace in (idealisation, gradient_step):
        with pytest.raises(ConfigError, match="the task's dim must be the model's, 3, got 5"):
            replace(model, task=LinearRegression(5, 40))
    donor = circuits_of(model)
    with pytest.raises(ConfigError, match="2 heads need as many of the donor's, got 1"):
        transplant(model, [0, 1], donor, 3)
    other = circuits_of(ICLTransformer(ModelConfig(dim=4, n_heads=4), seed=0))
    with pytest.raises(ConfigError, match=r"the donor's \(d, N\) must be the model's, \(3, 1\), got \(4, 1\)"):
        transplant(model, 0, other)
    small = circuits_of(ICLTransformer(ModelConfig(dim=3, n_heads=2), seed=0))
    with pytest.raises(ConfigError, match="the heads are L0H0 to L0H1, or their numbers, 0 to 1, got 'L0H3'"):
        transplant(model, 3, small)
