"""What an ActivationCache holds and computes, entry by entry, against the pass by hand."""

import pytest
import torch
from transformer_lens import ActivationCache

from icl_interp.errors import ConfigError

OF_BLOCKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
OF_HEADS = ("q", "k", "v", "z", "result")
OF_PATTERNS = ("attn_scores", "pattern")


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


@pytest.fixture
def cache(case):
    return case.model.run_with_cache(case.prompt)[1]


def layers(case):
    return range(case.config.n_layers)


def heads(case, to=None):
    """What every head before layer `to` writes, one after the other."""
    return [
        case.seen[layer, "result"][:, :, head] for layer in layers(case)[:to] for head in range(case.config.n_heads)
    ]


def final(case):
    return case.seen[case.config.n_layers - 1, "resid_post"]


# ---- what it holds


def test_every_activation(case, cache):
    assert isinstance(cache, ActivationCache)
    same(cache["embed"], case.seen[0, "embed"])
    for layer in layers(case):
        for name in (*OF_BLOCKS, *OF_HEADS, "pattern"):
            same(cache[name, layer], case.seen[layer, name])
        closed = cache["attn_scores", layer] == -torch.inf
        same(cache["attn_scores", layer][~closed], case.seen[layer, "attn_scores"][~closed])
        assert not (case.seen[layer, "pattern"] != 0)[closed].any()
        assert (case.seen[layer, "pattern"] != 0)[~closed].all()
    same(case.model(case.prompt), case.run())


def test_every_input_of_single_heads(case):
    for switch in ("split_qkv_input", "attn_in", "hook_mlp_in"):
        getattr(case.model, f"set_use_{switch}")(True)
    _, cache = case.model.run_with_cache(case.prompt)
    for layer in layers(case):
        for name in ("q_input", "k_input", "v_input"):
            same(cache[f"blocks.{layer}.hook_{name}"], case.seen[layer, name])
            same(cache[f"blocks.{layer}.attn.hook_{name}"], case.seen[layer, name])
        same(cache[f"blocks.{layer}.hook_attn_in"], case.seen[layer, "q_input"])
        same(cache[f"blocks.{layer}.hook_mlp_in"], case.seen[layer, "resid_mid"])


@pytest.mark.parametrize("which", [-1, 2, (1, 4), [0, 3]])
@pytest.mark.parametrize("without_batch", [False, True])
def test_positions_are_sliced_at_every_hook_point(case, which, without_batch):
    case.model.set_use_split_qkv_input(True)
    prompt = case.prompt[:1] if without_batch else case.prompt
    _, cache = case.model.run_with_cache(prompt, pos_slice=which, remove_batch_dim=without_batch)
    at = {int: lambda: [which], list: lambda: which, tuple: lambda: slice(*which)}[type(which)]()  # axes stay
    for layer in layers(case):
        for name in (*OF_BLOCKS, *OF_HEADS, "q_input", "pattern"):
            whole = case.seen[layer, name][: len(prompt)]
            wanted = whole[:, :, at] if name in OF_PATTERNS else whole[:, at]
            found = cache[f"blocks.{layer}.hook_q_input"] if name == "q_input" else cache[name, layer]
            same(found, wanted[0] if without_batch else wanted)


@pytest.mark.filterwarnings("ignore:The 'move_model' parameter:DeprecationWarning")  # TransformerLens 3.0's own
def test_a_single_prompt_can_lose_its_batch_axis(case):
    model, prompt = case.model, case.prompt[:1]
    _, whole = model.run_with_cache(prompt)
    _, single = model.run_with_cache(model.to_tokens(prompt), remove_batch_dim=True)
    for name, activation in model.run_with_cache(prompt)[1].items():
        same(single[name], activation[0])
    assert whole.remove_batch_dim() is whole
    assert all(torch.equal(whole[name], single[name]) for name in single)
    same(single.stack_head_results(), torch.stack(heads(case))[:, 0])
    same(single.get_full_resid_decomposition().sum(0), final(case)[0])
    for several in (case.prompt, case.prompt.z):
        with pytest.raises(ConfigError, match="remove_batch_dim needs a batch of one prompt, got 3"):
            model.run_with_cache(several, remove_batch_dim=True)


@pytest.mark.filterwarnings("ignore:The 'move_model' parameter:DeprecationWarning")  # TransformerLens 3.0's own
def test_it_can_be_moved_and_left_out(case, cache):
    assert cache.to("meta")["pattern", 0].device.type == "meta"
    assert cache.to("meta")["pattern", 0].shape == case.seen[0, "pattern"].shape
    plain = case.model.run_with_cache(case.prompt, return_cache_object=False)[1]
    assert type(plain) is dict
    same(plain["blocks.0.attn.hook_z"], case.seen[0, "z"])
    assert case.model.run_with_cache(case.prompt, None)[0] is None


def test_some_of_the_hook_points(case):
    name, other = "blocks.0.attn.hook_z", "blocks.0.hook_attn_out"
    for some, names in ((name, {name}), ([name, other], {name, other}), ((name, other), {name, other})):
        assert case.model.run_with_cache(case.prompt, names_filter=some)[1].keys() == names
    found = case.model.run_with_cache(case.prompt, names_filter=lambda it: it.endswith("hook_z"))[1]
    assert len(found) == case.config.n_layers
    with pytest.raises(ConfigError, match="this filter passes no hook point that fires"):
        case.model.run_with_cache(case.prompt, names_filter=lambda it: "mlp.hook_post" in it)


# ---- what it computes


def test_head_results(case, cache):
    stack, labels = cache.stack_head_results(return_labels=True)
    same(stack, torch.stack(heads(case)))
    assert labels == case.model.all_head_labels
    assert labels == [f"L{i}H{j}" for i in layers(case) for j in range(case.config.n_heads)]
    same(cache.stack_head_results(layer=1, pos_slice=-1), torch.stack(heads(case, to=1))[:, :, -1])
    rest, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    same(rest[-1], case.seen[0, "embed"])
    assert labels[-1] == "remainder"


def test_head_results_can_be_recomputed(case, cache):
    partial = ActivationCache({k: v for k, v in cache.items() if not k.endswith("result")}, case.model)
    partial.compute_head_results()
    for layer in layers(case):
        same(partial["result", layer], case.seen[layer, "result"])


@pytest.mark.parametrize("name", [*OF_BLOCKS, *OF_HEADS, "pattern"])
def test_stacked_activations(case, cache, name):
    same(cache.stack_activation(name), torch.stack([case.seen[layer, name] for layer in layers(case)]))


@pytest.mark.parametrize("to", [None, 0, 1])
@pytest.mark.parametrize("position", [None, -1, 1])
def test_residual_streams(case, cache, to, position):
    last = case.config.n_layers if to is None else to
    at = slice(None) if position is None else position
    wanted, names = [], []
    for layer in layers(case)[: last + 1]:
        for what in ("pre", "mid") if layer < last else ("pre",):
            wanted.append(case.seen[layer, f"resid_{what}"][:, at])
            names.append(f"{layer}_{what}")
    if last == case.config.n_layers:
        wanted.append(final(case)[:, at])
        names.append("final_post")
    found, labels = cache.accumulated_resid(to, incl_mid=True, pos_slice=position, return_labels=True)
    same(found, torch.stack(wanted))
    assert labels == names
    found, labels = cache.accumulated_resid(to, apply_ln=True, pos_slice=position, return_labels=True)
    keep = [i for i, name in enumerate(names) if not name.endswith("mid")]
    same(found, torch.stack([wanted[i] for i in keep]))
    assert labels == [names[i] for i in keep]


@pytest.mark.parametrize("to", [None, 0, 1])
def test_decompositions(case, cache, to):
    outs = [case.seen[layer, "attn_out"] for layer in layers(case)[:to]]
    start, none = case.seen[0, "embed"], torch.zeros_like(case.seen[0, "embed"])

    found, labels = cache.decompose_resid(to, return_labels=True)
    same(found, torch.stack([start, *outs]))
    assert labels == ["embed", *(f"{i}_attn_out" for i in range(len(outs)))]
    if outs:
        same(cache.decompose_resid(to, mode="attn", incl_embeds=False, pos_slice=0), torch.stack(outs)[:, :, 0])

    found, labels = cache.get_full_resid_decomposition(to, return_labels=True)
    same(found, torch.stack([*heads(case, to), start, none]))
    assert labels == [*(case.model.all_head_labels[: len(heads(case, to))]), "embed", "bias"]
    same(cache.apply_ln_to_stack(found), found)
    same(cache.get_full_resid_decomposition(to, pos_slice=-1), found[:, :, -1])


def test_the_inputs_of_an_mlp_are_the_streams_after_attention(case, cache):
    wanted = torch.stack([case.seen[0, "embed"], case.seen[0, "attn_out"]])
    same(cache.decompose_resid(0, mlp_input=True), wanted)
    streams = torch.stack([case.seen[0, "resid_pre"], case.seen[0, "resid_mid"]])
    same(cache.accumulated_resid(0, mlp_input=True), streams)


def test_attributions_to_outputs(case, cache):
    stack = cache.get_full_resid_decomposition()
    outputs = torch.stack([*heads(case), case.seen[0, "embed"], torch.zeros_like(final(case))])[..., case.config.dim :]
    for output in range(case.config.n_outputs):
        for token in (output, f"y{output}", torch.tensor(output), torch.tensor([output])):
            same(cache.logit_attrs(stack, token), outputs[..., output])
        same(cache.logit_attrs(stack[:, :, -1], output, pos_slice=-1), outputs[:, :, -1, output])
        same(cache.logit_attrs(stack, output).sum(0), case.run()[..., output])
    if case.config.n_outputs > 1:
        same(cache.logit_attrs(stack, "y0", "y1"), outputs[..., 0] - outputs[..., 1])
        each = torch.tensor([1, 0, 1])  # an output for every prompt
        wanted = torch.stack([outputs[:, i, -1, output] for i, output in enumerate(each)], 1)
        same(cache.logit_attrs(stack[:, :, -1], each, pos_slice=-1), wanted)


def test_gradients_at_every_hook_point(case):
    for switch in ("split_qkv_input", "attn_in", "hook_mlp_in"):
        getattr(case.model, f"set_use_{switch}")(True)
    loss, cache = case.model.run_with_cache(case.prompt, return_type="loss", incl_bwd=True)
    assert {name.removesuffix("_grad") for name in cache} == case.model.hook_dict.keys()

    names = {f"blocks.{i}.hook_{name}": (i, name) for i in layers(case) for name in (*OF_BLOCKS, "q_input")}
    names.update({f"blocks.{i}.attn.hook_{name}": (i, name) for i in layers(case) for name in (*OF_HEADS, "pattern")})
    for hook, (layer, name) in {**names, "hook_embed": (0, "embed")}.items():
        leaf = case.seen[layer, name].clone().requires_grad_()
        outputs = case.run({(layer, name): lambda value, seen, leaf=leaf: leaf})
        by_hand = (outputs[:, -1] - case.prompt.y_q).square().mean()
        (wanted,) = torch.autograd.grad(by_hand, leaf)
        same(cache[f"{hook}_grad"], wanted)
    same(loss.detach(), (case.run()[:, -1] - case.prompt.y_q).square().mean())
