"""Attribution patching, lenses, interchange interventions and training loops, against the pass by hand."""

import copy
import importlib
from functools import partial

import pytest
import torch

from icl_interp.errors import ConfigError

pytestmark = pytest.mark.usefixtures("double")


def tools(name):
    return pytest.importorskip(f"transformer_lens.tools.analysis.{name}", reason="this TransformerLens lacks it")


def same(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found), wanted.detach(), rtol=1e-9, atol=1e-12)


# ---- attribution patching


def gradients(case, names):
    """How the metric's sum over prompts changes with each activation of the run on `prompt`; prompts do not meet."""
    leaves = {at: case.seen[at].clone().requires_grad_() for at in names}
    found = {}
    for at, leaf in leaves.items():
        outputs = case.run({at: lambda value, seen, leaf=leaf: leaf})
        (found[at],) = torch.autograd.grad(case.each(outputs).sum(), leaf)
    return found


def change(case, at):
    return case.clean_seen[at] - case.seen[at]


def attribute(case, granularity, as_tokens=False):
    library = tools("attribution_patching")
    try:
        config = library.EdgeAttributionConfig(granularity=granularity)
    except NotImplementedError as error:
        pytest.skip(f"before 4, nodes only: {error}")
    pair = (case.clean, case.prompt)
    pair = [case.model.to_tokens(p) for p in pair] if as_tokens else pair
    # Logits of one prompt at a time, so this is a metric of each.
    return library, library.attribution_patch(case.model, *pair, case.metric, config)


@pytest.mark.parametrize("granularity", ["node", "edge"])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_every_node_of_attribution_patching(case, granularity, as_tokens):
    library, found = attribute(case, granularity, as_tokens)
    layers = range(case.config.n_layers)
    slopes = gradients(case, [(0, "embed"), *((layer, "z") for layer in layers)])
    wanted = {}
    for p in range(case.positions):
        effect = (change(case, (0, "embed")) * slopes[0, "embed"])[:, p]
        wanted[library.Node("embed", p)] = effect.sum(-1).mean()
        for layer in layers:
            wanted[library.Node("mlp_out", p, layer)] = 0.0  # there is none
            effects = (change(case, (layer, "z")) * slopes[layer, "z"])[:, p].sum(-1).mean(0)
            for head, score in enumerate(effects):
                wanted[library.Node("attn_head_out", p, layer, head)] = score
    assert found.node_scores.keys() == wanted.keys()
    for node, score in wanted.items():
        assert found.node_scores[node] == pytest.approx(float(score), rel=1e-9, abs=1e-12), node


def written(case, seen, node):
    """(batch, d_model): what a writer adds to the stream at its position."""
    if node.kind == "attn_head_out":
        return seen[node.layer, "result"][:, node.position, node.head]
    return seen[node.layer or 0, "embed" if node.kind == "embed" else "mlp_out"][:, node.position]


def test_every_edge_of_attribution_patching(case):
    _, found = attribute(case, "edge")
    last = case.config.n_layers - 1
    at = [(layer, f"{what}_input") for layer in range(last + 1) for what in "qkv"]
    slopes = gradients(case, [*at, (last, "resid_post")])
    for (writer, reader), score in found.edge_scores.items():
        delta = written(case, case.clean_seen, writer) - written(case, case.seen, writer)
        if reader.kind == "mlp_in":
            slope = torch.zeros_like(delta)  # nothing reads it
        elif reader.kind == "logits":
            slope = slopes[last, "resid_post"][:, reader.position]
        else:
            slope = slopes[reader.layer, reader.kind][:, reader.position, reader.head]
        assert score == pytest.approx((delta * slope).sum(-1).mean().item(), rel=1e-9, abs=1e-12), (writer, reader)

    heads, layers = case.config.n_heads, case.config.n_layers
    writers = [1 + layer * (heads + 1) for layer in range(layers)]  # before each layer: embed, then heads and an MLP
    edges = sum(before * 3 * heads + before + heads for before in writers) + writers[-1] + heads + 1
    assert len(found.edge_scores) == case.positions * edges
    assert not case.model.cfg.use_split_qkv_input
    assert not case.model.cfg.use_hook_mlp_in


def rewired(case, cut):
    """The outputs on the first clean prompt, if readers get of these writers what the first corrupted prompt gives."""
    edits = {}
    for reader in {reader for _, reader in cut}:
        kind = "resid_post" if reader.kind == "logits" else reader.kind

        def edit(value, seen, kind=kind, layer=reader.layer):
            value = value.clone()
            for writer, to in cut:
                if to.layer == layer and kind == ("resid_post" if to.kind == "logits" else to.kind):
                    where = (0, to.position) if to.head is None else (0, to.position, to.head)
                    value[where] += (written(case, case.seen, writer) - written(case, seen, writer))[0]
            return value

        if kind != "mlp_in":  # nothing reads it
            edits[reader.layer, kind] = edit
    return case.run(edits, case.clean[:1])


def test_how_faithful_a_circuit_is(deep):
    library, found = attribute(deep, "edge")
    edges = list(found.edge_scores)
    clean, corrupt = deep.metric(deep.run(prompt=deep.clean[:1])), deep.metric(deep.run(prompt=deep.prompt[:1]))
    for kept in (edges, edges[::3], [edge for edge, _ in zip(edges, range(40), strict=False)], []):
        result = library.faithfulness(deep.model, deep.clean[:1], deep.prompt[:1], deep.metric, kept)
        cut = [edge for edge in edges if edge not in set(kept)]
        wanted = (deep.metric(rewired(deep, cut)) - corrupt) / (clean - corrupt)
        assert result.recovered == pytest.approx(wanted.item(), abs=1e-9)
    assert result.recovered == pytest.approx(0, abs=1e-9)
    mean = library.FaithfulnessConfig(ablation="mean")
    tokens = [deep.model.to_tokens(p) for p in (deep.clean[:1], deep.prompt[:1], deep.prompt[1:])]
    with pytest.raises(AttributeError, match="not token ids, so they have no 'dtype'"):
        library.faithfulness(deep.model, *tokens[:2], deep.metric, [], mean, mean_tokens=tokens[2])


def test_attribution_patching_refuses_a_bare_z(case):
    library = tools("attribution_patching")
    with pytest.raises(ValueError, match=r"expects 2D \[batch, seq\] token tensors, got clean \(3, 6, "):
        library.attribution_patch(case.model, case.clean.z, case.prompt.z, case.metric)


# ---- lenses


@pytest.mark.parametrize("give", ["prompt", "tokens", "cache"])
def test_the_logit_lens_at_every_layer(case, give):
    library = tools("logit_lens")
    given = {
        "prompt": {"input": case.prompt},
        "tokens": {"input": case.model.to_tokens(case.prompt)},
        "cache": {"cache": case.model.run_with_cache(case.prompt)[1]},
    }[give]
    found = library.logit_lens(case.model, positions=None, incl_mid=True, **given)
    names = [(layer, what) for layer in range(case.config.n_layers) for what in ("pre", "mid")]
    streams = [case.seen[layer, f"resid_{what}"] for layer, what in names] + [
        case.seen[case.config.n_layers - 1, "resid_post"]
    ]
    same(found.values, torch.stack(streams)[..., case.config.dim :])
    assert found.labels == [*(f"{layer}_{what}" for layer, what in names), "final_post"]
    target = library.logit_lens(case.model, targets="y0", **given)
    same(target.values, torch.stack(streams[::2])[:, :, -1, case.config.dim : case.config.dim + 1])


@pytest.mark.parametrize("unit", ["component", "layer", "head"])
def test_direct_logit_attribution(case, unit):
    library = tools("direct_logit_attribution")
    layers, output = range(case.config.n_layers), case.config.n_outputs - 1
    start = case.seen[0, "embed"]
    wanted = {
        "component": [start, *(case.seen[i, "attn_out"] for i in layers)],
        "layer": [case.seen[i, f"resid_{what}"] for i in layers for what in ("pre", "mid")]
        + [case.seen[layers[-1], "resid_post"]],
        "head": [case.seen[i, "result"][:, :, h] for i in layers for h in range(case.config.n_heads)] + [start],
    }[unit]
    found = library.direct_logit_attribution(case.model, case.prompt, f"y{output}", unit=unit, pos=None)
    same(found.attribution, torch.stack(wanted)[..., case.config.dim + output])
    found = library.direct_logit_attribution(case.model, case.prompt, output, unit=unit)
    same(found.attribution, torch.stack(wanted)[:, :, -1, case.config.dim + output])


def test_a_jacobian_lens_says_what_it_needs(case):
    library = tools("jacobian_lens")
    with pytest.raises((TypeError, ValueError), match="TransformerBridge"):
        library.JacobianLens.fit(case.model, [case.prompt], corpus="x")


# ---- interchange interventions


@pytest.mark.parametrize("as_tokens", [False, True])
def test_interchange_interventions(deep, as_tokens):
    library = tools("interchange")
    name, layer, at = "blocks.1.hook_resid_pre", 1, torch.tensor([5, 0, 3])
    prompt, clean = (deep.model.to_tokens(p) if as_tokens else p for p in (deep.prompt, deep.clean))

    def outputs(prompts):
        return deep.model(prompts)[:, -1]

    source = library.collect_activations(deep.model, name, clean, outputs, positions=at, batch_size=2)
    rows = torch.arange(3)
    same(source, deep.clean_seen[layer, "resid_pre"][rows, at])

    basis = library.random_basis(deep.config.d_model, 2, seed=0).double()

    def edit(value, seen):
        value = value.clone()
        value[rows, at] += 0.5 * (source - value[rows, at]) @ basis @ basis.T
        return value

    step = library.SubspaceInterchange(basis, strength=0.5)
    found = library.intervened_logits(deep.model, name, step, prompt, source, outputs, positions=at, batch_size=2)
    same(found, deep.run({(layer, "resid_pre"): edit})[:, -1])

    fit = partial(library.fit_das, deep.model, name, prompt, clean, torch.tensor([0, 1, 0]), outputs, rank=2)
    learned = fit(base_positions=at, source_positions=at, epochs=30, batch_size=2)
    assert learned.losses[-1] < learned.losses[0]
    assert all(parameter.requires_grad for name, parameter in deep.model.named_parameters() if "attn" in name)
    with pytest.raises(ValueError, match=r"reinitialized cannot reset blocks\.0\.attn\.W_Q"):
        library.reinitialized(deep.model, seed=1)  # an untrained copy is ICLTransformer(config, seed=1)


# ---- training


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_transformer_lenss_training_loop(case, momentum):
    try:
        library, name = importlib.import_module("transformer_lens.tools.training"), "TrainConfig"
    except ModuleNotFoundError:  # its home and name before 4
        library, name = importlib.import_module("transformer_lens.train"), "HookedTransformerTrainConfig"
    table = case.prompt.z
    table[:, -1, case.config.dim :] = case.prompt.y_q
    rows = [{"tokens": row} for row in table]
    options = {"num_epochs": 3, "batch_size": 2, "lr": 0.1, "momentum": momentum, "optimizer_name": "SGD", "seed": 7}
    twin = copy.deepcopy(case.model)
    library.train(twin, getattr(library, name)(**options, device="cpu", print_every=None), rows)

    weights = {name: weight.requires_grad_() for name, weight in case.model.weights().items()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.1, momentum=momentum)
    torch.manual_seed(7)
    batches = torch.utils.data.DataLoader(range(3), batch_size=2, shuffle=True)
    case.weights = weights
    for _ in range(3):
        for some in batches:
            prompt = type(case.prompt)(*(part[some] for part in vars(case.prompt).values()))
            loss = (case.run(prompt=prompt)[:, -1] - prompt.y_q).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, weight in weights.items():
        same(twin.weights()[name], weight)
    assert torch.equal(twin.W_U, case.model.W_U)
    assert not torch.allclose(twin.W_Q, case.model.W_Q)


def test_training_without_an_answer_is_refused(case):
    with pytest.raises(ConfigError, match="the loss needs the query's response"):
        case.model(case.prompt.z, return_type="loss")
