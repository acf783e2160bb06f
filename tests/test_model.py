"""The hooked model: the same numbers as the query-row pass, under TransformerLens's names, shapes and tools."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformer_lens.patching as patching
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import ActivationCache, SVDInterpreter
from transformer_lens.head_detector import detect_head

from icl_interp import attention
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.model import ICLTransformer
from icl_interp.tasks import LinearRegression, Prompt
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


def metric(logits):
    return logits[:, -1, 0].mean()


@pytest.fixture
def model():
    return ICLTransformer(CONFIG, seed=0, dtype=torch.float64).eval()


@pytest.fixture
def prompt():
    return make_prompt()


@pytest.fixture
def clean():
    return make_prompt(seed=1)


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
        model.run_with_hooks(z, fwd_hooks=[("hook_embed", overwrite), ("blocks.0.hook_resid_pre", overwrite)])
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


def test_hook_names_and_shapes(model, prompt):
    residual, per_head, width = (B, P, D), (B, P, HEADS, D), (B, P, HEADS, D_HEAD)
    block = {
        **dict.fromkeys(["hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post"], residual),
        "hook_mlp_out": residual,
        **dict.fromkeys(["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"], width),
        "attn.hook_result": per_head,
        **dict.fromkeys(["attn.hook_attn_scores", "attn.hook_pattern"], (B, HEADS, P, P)),
    }
    switched = {
        **{f"{at}hook_{what}_input": per_head for at in ("", "attn.") for what in "qkv"},
        "hook_attn_in": per_head,
        "hook_mlp_in": residual,
    }

    def table(points):
        return {"hook_embed": residual, **{f"blocks.{i}.{k}": v for i in range(LAYERS) for k, v in points.items()}}

    def shapes():
        logits, cache = model.run_with_cache(prompt)
        return logits, {name: tuple(activation.shape) for name, activation in cache.items()}

    expected, found = shapes()
    assert found == table(block)
    assert found.keys() == model.hook_dict.keys()

    for switch in ("split_qkv_input", "attn_in", "hook_mlp_in"):
        getattr(model, f"set_use_{switch}")(True)
    logits, found = shapes()
    assert found == table({**block, **switched})
    torch.testing.assert_close(logits, expected)


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


def test_training_does_not_import_transformer_lens():
    code = "import icl_interp.attention, icl_interp.weights, sys; sys.exit('transformer_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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


# ---- hooks


def test_zero_ablation_drops_the_head(prompt):
    config = ModelConfig(dim=DIM, n_outputs=N, n_heads=3)
    model = ICLTransformer(config, seed=0, dtype=torch.float64)

    def ablate(result, hook):
        result[:, :, 1] = 0
        return result

    with torch.no_grad():
        ablated = model.run_with_hooks(prompt, fwd_hooks=[("blocks.0.attn.hook_result", ablate)])[:, -1]
    parts = attention.query_row(*circuits(model), prompt.z, N)
    torch.testing.assert_close(ablated, parts[:, [0, 2]].sum(1))
    torch.testing.assert_close(model.predict(prompt), parts.sum(1))


def test_edited_scores_have_effect(model, prompt):
    def only_the_query(scores, hook):  # opens what the mask had closed
        scores = torch.full_like(scores, -torch.inf)
        scores[..., -1] = 0
        return scores

    with model.hooks([("blocks.0.attn.hook_attn_scores", only_the_query)]):
        _, cache = model.run_with_cache(prompt)
    assert (cache["pattern", 0][..., -1] == 1).all()
    assert (cache["pattern", 0][..., :-1] == 0).all()


@pytest.mark.parametrize("point", ["hook_q_input", "attn.hook_k_input", "attn.hook_v_input", "hook_attn_in"])
def test_inputs_of_single_heads_can_be_edited(model, prompt, point):
    model.set_use_attn_in(True)
    model.set_use_split_qkv_input(True)

    def edit(inputs, hook):
        inputs[:, :, 1] = 0
        return inputs

    _, before = model.run_with_cache(prompt)
    with torch.no_grad(), model.hooks([(f"blocks.1.{point}", edit)]):
        _, after = model.run_with_cache(prompt)
    changed = (before["result", 1] != after["result", 1]).flatten(0, 1).any(-1).any(0)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("blocks.0.hook_q_input", r"call model.set_use_split_qkv_input\(True\) first"),
        ("blocks.1.attn.hook_v_input", r"call model.set_use_split_qkv_input\(True\) first"),
        ("blocks.0.hook_attn_in", r"call model.set_use_attn_in\(True\) first"),
        ("blocks.0.hook_mlp_in", r"call model.set_use_hook_mlp_in\(True\) first"),
        ("blocks.0.hook_patern", r"did you mean .*blocks.0.attn.hook_pattern"),
        ("blocks.7.attn.hook_z", r"did you mean blocks.\d.attn.hook_z"),
        ("xyz", "model.hook_dict lists those that do"),
    ],
)
def test_hooks_that_would_never_be_called_are_refused(model, prompt, name, advice):
    def hook(activation, hook):
        raise AssertionError("never called")

    for attempt in (
        lambda: model.run_with_hooks(prompt, fwd_hooks=[(name, hook)]),
        lambda: model.hooks(bwd_hooks=[(name, hook)]).__enter__(),
        lambda: model.add_hook(name, hook),
        lambda: model.add_perma_hook(name, hook),
        lambda: model.run_with_cache(prompt, names_filter=name),
        lambda: model.run_with_cache(prompt, names_filter=[name]),
    ):
        with pytest.raises(ConfigError, match=f"no hook point '{name}' fires; {advice}"):
            attempt()
    with pytest.raises(ConfigError, match="this filter passes no hook point that fires"):
        model.add_hook(lambda other: other == name, hook)
    assert not model.list_hooks() if hasattr(model, "list_hooks") else True


def test_switching_off_takes_hooks_away(model, prompt):
    name = "blocks.0.hook_q_input"
    model.set_use_split_qkv_input(True)
    model.add_hook(name, lambda inputs, hook: inputs * 0, is_permanent=True)
    edited = model(prompt)
    model.set_use_split_qkv_input(False)
    plain = model(prompt)
    model.set_use_split_qkv_input(True)
    torch.testing.assert_close(model(prompt), plain)
    assert not torch.allclose(edited, plain)


def test_gradients_reach_every_hook_point(model, prompt):
    _, cache = model.run_with_cache(prompt, return_type="loss", incl_bwd=True)
    forward = {name for name in cache if not name.endswith("_grad")}
    assert {name.removesuffix("_grad") for name in cache if name.endswith("_grad")} == forward
    # The loss is linear in the last residual stream's query: its gradient there is known.
    gradient = cache["blocks.1.hook_resid_post_grad"][:, -1, DIM:]
    torch.testing.assert_close(gradient, 2 * (model.predict(prompt) - prompt.y_q).detach() / (B * N))


# ---- ActivationCache


def test_decompositions_sum_to_the_prediction(model, prompt):
    _, cache = model.run_with_cache(prompt)
    assert isinstance(cache, ActivationCache)
    resid = cache["resid_post", -1]

    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels == model.all_head_labels == [f"L{i}H{j}" for i in range(LAYERS) for j in range(HEADS)]
    parts, names = cache.decompose_resid(return_labels=True)
    assert names == ["embed", "0_attn_out", "1_attn_out"]
    full, _ = cache.get_full_resid_decomposition(return_labels=True)
    for total in (cache["hook_embed"] + heads.sum(0), parts.sum(0), full.sum(0), cache.accumulated_resid()[-1]):
        torch.testing.assert_close(total, resid)
    torch.testing.assert_close(cache.apply_ln_to_stack(full), full)
    assert cache.stack_activation("pattern").shape == (LAYERS, B, HEADS, P, P)
    assert cache.accumulated_resid(incl_mid=True).shape == (2 * LAYERS + 1, B, P, D)

    for output in range(N):
        for token in (output, f"y{output}", torch.tensor(output), torch.tensor([output])):
            attributed = cache.logit_attrs(full, token).sum(0)
            torch.testing.assert_close(attributed, model(prompt)[..., output])
    difference = cache.logit_attrs(full, "y0", "y1").sum(0)
    torch.testing.assert_close(difference, model(prompt)[..., 0] - model(prompt)[..., 1])


def test_head_results_can_be_recomputed(model, prompt):
    _, cache = model.run_with_cache(prompt)
    partial = ActivationCache({k: v for k, v in cache.items() if not k.endswith("result")}, model)
    partial.compute_head_results()
    torch.testing.assert_close(partial["result", 0], cache["result", 0])


@pytest.mark.filterwarnings("ignore:The 'move_model' parameter:DeprecationWarning")  # TransformerLens 3.0's own
def test_a_single_prompt_can_lose_its_batch_axis(model, prompt):
    _, whole = model.run_with_cache(prompt[:1])
    _, single = model.run_with_cache(prompt[:1], remove_batch_dim=True)
    assert single["pattern", 0].shape == (HEADS, P, P)
    assert torch.equal(whole.remove_batch_dim().to("cpu")["pattern", 0], single["pattern", 0])
    torch.testing.assert_close(single.get_full_resid_decomposition().sum(0), single["resid_post", -1])
    with pytest.raises(ConfigError, match="needs a batch of one prompt, got 3"):
        model.run_with_cache(prompt, remove_batch_dim=True)
    assert type(model.run_with_cache(prompt, return_cache_object=False)[1]) is dict


# ---- TransformerLens's tools


def test_patching_the_residual_stream_by_hand(model, prompt, clean):
    _, cache = model.run_with_cache(clean)
    found = patching.get_act_patch_resid_pre(model, model.to_tokens(prompt), cache, metric)
    assert found.shape == (LAYERS, P)
    for layer in range(LAYERS):
        for position in range(P):
            stream = model(prompt, stop_at_layer=layer).detach()
            stream[:, position] = cache["resid_pre", layer][:, position]
            expected = metric(model(stream, start_at_layer=layer)).item()
            assert found[layer, position].item() == pytest.approx(expected, rel=1e-5)  # sweeps store float32


def test_patching_heads_by_hand(model, prompt, clean):
    _, cache = model.run_with_cache(clean)
    _, corrupted = model.run_with_cache(prompt)
    found = patching.get_act_patch_attn_head_out_all_pos(model, model.to_tokens(prompt), cache, metric)
    last = LAYERS - 1
    for head in range(HEADS):
        z = corrupted["z", last].clone()
        z[:, :, head] = cache["z", last][:, :, head]
        out = corrupted["resid_pre", last] + torch.einsum("bphk,hkd->bpd", z, model.W_O[last])
        assert found[last, head].item() == pytest.approx(metric(model.unembed(out)).item(), rel=1e-5)


SWEEPS = [name for name in dir(patching) if name.startswith("get_act_patch") and "direct_path" not in name]


@pytest.mark.parametrize("name", SWEEPS)
def test_every_patching_sweep_runs_over_positions(model, prompt, clean, name):
    _, cache = model.run_with_cache(clean)
    found = getattr(patching, name)(model, model.to_tokens(prompt), cache, metric)
    assert found.isfinite().all()
    assert all(size in (3, 5, LAYERS, HEADS, P) for size in found.shape)
    if "pos" in name and "all_pos" not in name:
        assert P in found.shape


def test_direct_paths(model, prompt, clean):
    if not hasattr(patching, "get_act_patch_direct_path"):
        pytest.skip("this TransformerLens has no direct path patching")
    (_, cache), (_, corrupted) = model.run_with_cache(clean), model.run_with_cache(prompt)
    tokens = model.to_tokens(prompt)
    found = patching.get_act_patch_direct_path(model, tokens, cache, corrupted, metric, 0, 0, verbose=False)
    assert found[1].ne(metric(model(prompt)).item()).all()
    assert not model.cfg.use_split_qkv_input


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_attribution_patching(model, prompt, clean, granularity):
    tools = pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
    try:
        config = tools.EdgeAttributionConfig(granularity=granularity)
        found = tools.attribution_patch(model, model.to_tokens(clean), model.to_tokens(prompt), metric, config)
    except NotImplementedError as error:
        pytest.skip(f"this TransformerLens: {error}")
    # The metric is linear in the last layer's heads, so there the estimate is the effect itself.
    (_, cache), (_, corrupted) = model.run_with_cache(clean), model.run_with_cache(prompt)
    change = (cache["result", 1] - corrupted["result", 1])[:, -1, :, DIM].mean(0)
    for head in range(HEADS):
        node = tools.Node("attn_head_out", layer=1, head=head, position=L)
        assert found.node_scores[node] == pytest.approx(change[head].item())
    assert found.node_scores[tools.Node("mlp_out", layer=1, position=L)] == 0  # there is none


def test_logit_lens(model, prompt):
    tools = pytest.importorskip("transformer_lens.tools.analysis.logit_lens")
    result = tools.logit_lens(model, model.to_tokens(prompt), positions=None)
    torch.testing.assert_close(result.readout.values[-1], model(prompt).detach())


def test_head_detector(model, prompt):
    pattern = torch.zeros(P, P)
    pattern[-1, :L] = 1  # how much of all attention is the query's
    scores = detect_head(model, prompt[:1], pattern)
    torch.testing.assert_close(scores, torch.full((LAYERS, HEADS), 1 / L, dtype=torch.float64))
    for name in ("duplicate_token_head", "induction_head"):
        with pytest.raises(AttributeError, match="columns of numbers, not token ids"):
            detect_head(model, prompt[:1], name)
    with pytest.raises(ConfigError, match="no text that it could read"):
        detect_head(model, "some text", "previous_token_head")


def test_svd_and_composition(model):
    single = ICLTransformer(CONFIG, seed=0)  # TransformerLens 3 takes the SVD of float32 only
    vectors = SVDInterpreter(single).get_singular_vectors("OV", layer_index=0, head_index=1, num_vectors=2)
    assert vectors.shape == (N, 1, 2)

    KQ, OV = circuits(model)
    for mode, reads in (("Q", KQ.mT), ("K", KQ), ("V", OV.mT)):
        scores = model.all_composition_scores(mode)
        assert scores.shape == (LAYERS, HEADS, LAYERS, HEADS)
        assert not scores[1].any()
        assert not scores[:, :, 0].any()
        written, read = OV[0, 1].mT, reads[1, 2]
        torch.testing.assert_close(scores[0, 1, 1, 2], (written @ read).norm() / written.norm() / read.norm())
    with pytest.raises(ConfigError, match="mode must be 'Q', 'K' or 'V', got 'X'"):
        model.all_composition_scores("X")


def test_other_things_tools_ask_for(model, prompt):
    assert model.to_str_tokens(prompt) == ["x1", "x2", "x3", "x4", "x5", "x6", "query"]
    assert model.to_single_token("y1") == 1
    with pytest.raises(ConfigError, match="the outputs are y0, y1, got ' cat'"):
        model.to_single_token(" cat")
    assert torch.equal(model.tokens_to_residual_directions(torch.tensor([[1, 0]])), model.W_U.T[[1, 0]][None])
    assert [layer for layer, _ in model.blocks_with("attn")] == [0, 1]
    assert model.blocks_with("mlp") == []
    assert not model.accumulated_bias(1, mlp_input=True).any()
    assert model.ln_final(prompt.z) is not None
    tokens = model.to_tokens(prompt)
    assert (tokens.shape, tokens.ndim, len(tokens)) == ((B, P), 2, B)
    assert tokens[1:].to("cpu").shape == (B - 1, P)
    model.set_use_attn_result(False)
    assert "blocks.0.attn.hook_result" in model.run_with_cache(prompt)[1]


def test_transformer_lenss_training_loop_takes_the_model():
    tools = pytest.importorskip("transformer_lens.tools.training")
    model = ICLTransformer(ModelConfig(dim=3), seed=0)
    prompts = LinearRegression(dim=3, length=8).sample(512, generator=rng())
    table = prompts.z
    table[:, -1, 3:] = prompts.y_q
    before = model(prompts, return_type="loss").item()
    config = tools.TrainConfig(num_epochs=5, batch_size=64, lr=0.03, device="cpu", print_every=None)
    tools.train(model, config, [{"tokens": row} for row in table])
    assert model(prompts, return_type="loss").item() < 0.9 * before
    assert torch.equal(model.W_U, torch.eye(4)[:, 3:])


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
    with pytest.raises(ConfigError, match=r"reads a Prompt, or its z .* got list"):
        model.to_tokens([1, 2])
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
