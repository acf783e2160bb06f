"""Hook points: their names and shapes, what editing them does, and which hooks are refused."""

import pytest
import torch

from icl_interp.errors import ConfigError


@pytest.fixture
def model(deep):
    return deep.model


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


def zero(activation, hook):
    return activation * 0


def test_hook_names_and_shapes(deep, model):
    batch, positions, heads, width = 3, deep.positions, 3, 6
    residual, per_head, vector = (
        (batch, positions, width),
        (batch, positions, heads, width),
        (batch, positions, heads, 5),
    )
    block = {
        **dict.fromkeys(["hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post"], residual),
        "hook_mlp_out": residual,
        **dict.fromkeys(["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"], vector),
        "attn.hook_result": per_head,
        **dict.fromkeys(["attn.hook_attn_scores", "attn.hook_pattern"], (batch, heads, positions, positions)),
    }
    switched = {
        **{f"{at}hook_{what}_input": per_head for at in ("", "attn.") for what in "qkv"},
        "hook_attn_in": per_head,
        "hook_mlp_in": residual,
    }

    def table(points):
        return {"hook_embed": residual, **{f"blocks.{i}.{k}": v for i in range(2) for k, v in points.items()}}

    def shapes():
        logits, cache = model.run_with_cache(deep.prompt)
        return logits, {name: tuple(activation.shape) for name, activation in cache.items()}

    expected, found = shapes()
    assert found == table(block)
    assert found.keys() == model.hook_dict.keys()

    for switch in ("split_qkv_input", "attn_in", "hook_mlp_in"):
        getattr(model, f"set_use_{switch}")(True)
    logits, found = shapes()
    assert found == table({**block, **switched})
    same(logits, expected)

    model.set_use_attn_result(False)
    assert "blocks.0.attn.hook_result" in model.run_with_cache(deep.prompt)[1]


# ---- editing


def test_zero_ablation_drops_the_head(case):
    def ablate(result, hook):
        result[:, :, 1] = 0
        return result

    def by_hand(result, seen):
        return torch.stack([head * (i != 1) for i, head in enumerate(result.unbind(2))], 2)

    last = case.config.n_layers - 1
    with torch.no_grad():
        ablated = case.model.run_with_hooks(case.prompt, fwd_hooks=[(f"blocks.{last}.attn.hook_result", ablate)])
    same(ablated, case.run({(last, "result"): by_hand}))
    dropped = case.seen[last, "result"][:, :, 1, case.config.dim :]
    same(ablated, case.run() - dropped)


def test_edited_scores_have_effect(case):
    def only_the_query(scores, hook):  # opens what the mask had closed
        scores = torch.full_like(scores, -torch.inf)
        scores[..., -1] = 0
        return scores

    with case.model.hooks([("blocks.0.attn.hook_attn_scores", only_the_query)]):
        _, cache = case.model.run_with_cache(case.prompt)
    assert (cache["pattern", 0][..., -1] == 1).all()
    assert (cache["pattern", 0][..., :-1] == 0).all()
    same(cache["z", 0], cache["v", 0][:, -1:].expand_as(cache["z", 0]))


@pytest.mark.parametrize("point", ["hook_q_input", "attn.hook_k_input", "attn.hook_v_input", "hook_attn_in"])
def test_inputs_of_single_heads_can_be_edited(deep, model, point):
    model.set_use_attn_in(True)
    model.set_use_split_qkv_input(True)

    def edit(inputs, hook):
        inputs[:, :, 1] = 0
        return inputs

    def by_hand(inputs, seen):
        return torch.stack([x * (i != 1) for i, x in enumerate(inputs.unbind(2))], 2)

    with torch.no_grad(), model.hooks([(f"blocks.1.{point}", edit)]):
        found = model(deep.prompt)
    edited = "qkv" if "attn_in" in point else point.removesuffix("_input")[-1]
    same(found, deep.run({(1, f"{what}_input"): by_hand for what in edited}))


def test_backward_hooks_edit_gradients(deep, model):
    with model.hooks(bwd_hooks=[("blocks.1.attn.hook_result", zero)]):
        model(deep.prompt, return_type="loss").backward()
    deep.weights = {name: weight.requires_grad_() for name, weight in deep.weights.items()}
    outputs = deep.run({(1, "result"): lambda value, seen: value.detach()})
    loss = (outputs[:, -1] - deep.prompt.y_q).square().mean()
    for name, gradient in zip(deep.weights, torch.autograd.grad(loss, list(deep.weights.values())), strict=True):
        same(torch.stack([getattr(block.attn, name).grad for block in model.blocks]), gradient)
        assert gradient[0].any()


# ---- what is refused


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
def test_hooks_that_would_never_be_called_are_refused(deep, model, name, advice):
    def hook(activation, hook):
        raise AssertionError("never called")

    for attempt in (
        lambda: model.run_with_hooks(deep.prompt, fwd_hooks=[(name, hook)]),
        lambda: model.hooks(bwd_hooks=[(name, hook)]).__enter__(),
        lambda: model.add_hook(name, hook),
        lambda: model.add_perma_hook(name, hook),
        lambda: model.run_with_cache(deep.prompt, names_filter=name),
        lambda: model.run_with_cache(deep.prompt, names_filter=[name]),
    ):
        with pytest.raises(ConfigError, match=f"no hook point '{name}' fires; {advice}"):
            attempt()
    with pytest.raises(ConfigError, match="this filter passes no hook point that fires"):
        model.add_hook(lambda other: other == name, hook)
    assert not model.list_hooks() if hasattr(model, "list_hooks") else True


def test_hooks_on_a_bare_z_are_refused(case):
    z, tokens, name = case.prompt.z, case.model.to_tokens(case.prompt.z), "blocks.0.hook_resid_pre"
    for hooks in ({"fwd_hooks": [(name, zero)]}, {"bwd_hooks": [(name, zero)], "reset_hooks_end": False}):
        with pytest.raises(
            ConfigError, match=r"hooks run on a Prompt, or on model.to_tokens\(z\).* got a tensor of sha"
        ):
            case.model.run_with_hooks(z, **hooks)
    same(case.model.run_with_hooks(z), case.run())
    edited = case.run({(0, "resid_pre"): lambda value, seen: value * 0})
    same(case.model.run_with_hooks(tokens, fwd_hooks=[(name, zero)]), edited)
    same(case.model.run_with_hooks(z, fwd_hooks=[(name, zero)], start_at_layer=0), edited)  # a residual stream
    assert case.model.run_with_hooks(tokens, None) is None


def test_switching_off_takes_hooks_away(deep, model):
    name = "blocks.0.hook_q_input"
    model.set_use_split_qkv_input(True)
    model.add_hook(name, zero, is_permanent=True)
    edited = model(deep.prompt)
    model.set_use_split_qkv_input(False)
    plain = model(deep.prompt)
    model.set_use_split_qkv_input(True)
    same(model(deep.prompt), plain)
    assert not torch.allclose(edited, plain)
