"""Every entry of every patching sweep, against a pass by hand in which that slice is the clean run's."""

import itertools

import pytest
import torch
import transformer_lens.patching as patching

from icl_interp.errors import ConfigError

pytestmark = pytest.mark.usefixtures("double")

# Sweep: the activation, its axes, and where a cell of the sweep lies in the activation.
VECTORS = {
    **{name: (name, ["pos"], lambda p: (slice(None), p)) for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")},
    **{
        f"attn_head_{what}_by_pos": (name, ["pos", "head"], lambda p, h: (slice(None), p, h))
        for what, name in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))
    },
    **{
        f"attn_head_{what}_all_pos": (name, ["head"], lambda h: (slice(None), slice(None), h))
        for what, name in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))
    },
}
PATTERNS = {
    "attn_head_pattern_all_pos": ("pattern", ["head"], lambda h: (slice(None), h)),
    "attn_head_pattern_by_pos": ("pattern", ["head", "pos"], lambda h, p: (slice(None), h, p)),
    "attn_head_pattern_dest_src_pos": ("pattern", ["head", "pos", "pos"], lambda h, p, k: (slice(None), h, p, k)),
}
SWEEPS = {**VECTORS, **PATTERNS}
STACKS = {
    "block_every": ["resid_pre", "attn_out", "mlp_out"],
    "attn_head_all_pos_every": [f"attn_head_{what}_all_pos" for what in ("out", "q", "k", "v", "pattern")],
    "attn_head_by_pos_every": [f"attn_head_{what}_by_pos" for what in ("out", "q", "k", "v", "pattern")],
}
new = pytest.mark.skipif(not hasattr(patching, "PatchingResult"), reason="this TransformerLens returns tensors only")


def sweep(name):
    return getattr(patching, f"get_act_patch_{name}")


def put(case, layer, name, where):
    """An edit that puts the clean run's slice there."""

    def edit(value, seen):
        value = value.clone()
        value[where] = case.clean_seen[layer, name][where]
        return value

    return {(layer, name): edit}


def expected(case, name, metric):
    """(layers, *axes, …): the metric of each pass by hand."""
    activation, axes, where = SWEEPS[name]
    sizes = [{"pos": case.positions, "head": case.config.n_heads}[axis] for axis in axes]
    cells = [
        metric(case.run(put(case, layer, activation, where(*cell))))
        for layer in range(case.config.n_layers)
        for cell in itertools.product(*map(range, sizes))
    ]
    return torch.stack(cells).unflatten(0, (case.config.n_layers, *sizes))


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_no_sweep_is_left_out():
    found = {name.removeprefix("get_act_patch_") for name in dir(patching) if name.startswith("get_act_patch_")}
    assert found - {"direct_path", "direct_path_all_sources"} == {*SWEEPS, *STACKS}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_entry_of_a_sweep(case, name):
    cache, _ = case.caches
    wanted = expected(case, name, case.metric)
    same(sweep(name)(case.model, case.model.to_tokens(case.prompt), cache, case.metric), wanted)
    if name != "mlp_out":  # there is no MLP, so nothing to put there
        assert (wanted != case.metric(case.run())).any()


@pytest.mark.parametrize("name", STACKS)
def test_every_entry_of_the_sweeps_that_are_stacked(case, name):
    cache, _ = case.caches
    parts = [expected(case, part, case.metric) for part in STACKS[name]]
    if name == "attn_head_by_pos_every":
        parts[-1] = parts[-1].mT  # patterns have heads before positions
    same(sweep(name)(case.model, case.prompt, cache, case.metric), torch.stack(parts))


@pytest.mark.parametrize("name", ["resid_pre", "attn_head_v_by_pos"])
def test_sweeps_without_gradients(case, name):  # then they write into what they are given
    cache, _ = case.caches
    z = case.prompt.z
    with torch.no_grad():
        for prompt in (case.model.to_tokens(z), case.prompt):
            same(sweep(name)(case.model, prompt, cache, case.metric), expected(case, name, case.metric))
    assert torch.equal(z, case.prompt.z)


@pytest.mark.parametrize("name", [*SWEEPS, *STACKS])
def test_a_bare_z_is_refused_where_positions_would_be_read_off_its_shape(case, name):
    cache, _ = case.caches
    with pytest.raises(ConfigError, match=r"hooks run on a Prompt, or on model.to_tokens\(z\).* got a tensor of shape"):
        sweep(name)(case.model, case.prompt.z, cache, case.metric)


@new
@pytest.mark.parametrize("name", ["attn_out", "attn_head_pattern_by_pos"])
def test_every_prompt_apart(case, name):
    cache, _ = case.caches
    wanted, without = expected(case, name, case.each), case.each(case.run())
    found = sweep(name)(case.model, case.prompt, cache, case.each, reduce="none", baseline=True)
    same(found.values, wanted)
    same(found.baseline, without)
    same(found.effect(), wanted - without)
    same(found.mean(), wanted.mean(-1))
    same(found.stderr(), wanted.std(-1) / 3**0.5)
    clean = case.each(case.run(prompt=case.clean))
    same(found.normalized(clean), (wanted - without) / (clean - without))
    same(sweep(name)(case.model, case.prompt, cache, case.each, reduce="mean"), wanted.mean(-1))


@new
def test_several_metrics_at_once(deep):
    cache, _ = deep.caches
    metrics = {"all": deep.metric, "last": lambda logits: logits[0, -1, 1]}
    found = sweep("attn_head_by_pos_every")(deep.model, deep.prompt, cache, metrics, baseline=True)
    parts = [expected(deep, part, metrics["last"]) for part in STACKS["attn_head_by_pos_every"]]
    parts[-1] = parts[-1].mT
    same(found["last"].values, torch.stack(parts))
    same(found.baseline, torch.stack([metric(deep.run()) for metric in metrics.values()]))


def direct_path(case, source, target, what):
    """The outputs if one head reads, through its q, k or v, what another writes in the clean run."""
    (from_layer, from_head), (layer, head) = source, target
    change = (case.clean_seen[from_layer, "result"] - case.seen[from_layer, "result"])[:, :, from_head]

    def edit(value, seen):
        value = value.clone()
        value[:, :, head] += change
        return value

    return case.run({(layer, f"{what}_input"): edit})


@pytest.mark.skipif(not hasattr(patching, "get_act_patch_direct_path"), reason="before 4, it needs a LayerNorm to run")
@pytest.mark.parametrize("what", ["q", "k", "v"])
def test_direct_paths(deep, what):
    heads = list(itertools.product(range(deep.config.n_layers), range(deep.config.n_heads)))
    wanted = torch.zeros(deep.config.n_layers, deep.config.n_heads, deep.config.n_layers, deep.config.n_heads)
    for source, target in itertools.product(heads, heads):
        if source[0] < target[0]:
            wanted[(*source, *target)] = deep.metric(direct_path(deep, source, target, what))
    clean, corrupted = deep.caches
    common = (deep.model, deep.prompt, clean, corrupted, deep.metric)
    same(patching.get_act_patch_direct_path_all_sources(*common, component=what, verbose=False), wanted)
    deep.model.set_use_attn_in(True)
    same(patching.get_act_patch_direct_path(*common, 0, 1, component=what, verbose=False), wanted[0, 1])
    assert deep.model.cfg.use_attn_in
    assert not deep.model.cfg.use_split_qkv_input
