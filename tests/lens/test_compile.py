"""A compiled model gives the eager one's numbers, and no hook on it goes uncalled, however and whenever it came."""

import importlib
import sys

import pytest
import torch

from icl_interp.errors import ConfigError

# What torch's compiler itself warns of, of blocks that are compiled apart.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

NAME = "blocks.0.hook_attn_out"
TRACED = [f"icl_interp.{module}" for module in ("attention", "weights", "compat", "lens", "model")]


@pytest.fixture(scope="module")
def unchecked():
    """The class of models without the checks of shapes at run time, which take Dynamo seconds to trace."""
    checked = {name: sys.modules.pop(name) for name in TRACED}
    finders = list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in finders if "jaxtyping" not in type(finder).__module__]
    yield importlib.import_module("icl_interp.model").ICLTransformer
    sys.meta_path[:] = finders
    sys.modules.update(checked)
    for name, module in checked.items():
        setattr(sys.modules["icl_interp"], name.rpartition(".")[2], module)


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def case(shallow, unchecked):
    shallow.model = unchecked.from_weights(shallow.config, shallow.weights).eval()
    return shallow


def compiled(model, how, **options):
    """The model to call, compiled as users do it."""
    options = {"backend": "eager", **options}
    if how == "torch.compile":
        return torch.compile(model, **options)
    if how == "model.compile":
        model.compile(**options)
    else:
        for block in model.blocks:
            block.compile(**options)
    return model


def ablate(activation, hook):
    return torch.zeros_like(activation)


def without(case):
    """The outputs by hand with the first layer ablated."""
    return case.run({(0, "attn_out"): lambda value, seen: value * 0})


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


WAYS = ["torch.compile", "model.compile", "block.compile"]


def test_without_hooks_it_is_the_eager_model(case):
    """Block by block; of whole models, see what a full graph has no room for."""
    same(compiled(case.model, "block.compile", fullgraph=True)(case.prompt), case.run())


def test_without_hooks_its_gradients_are_the_eager_ones(case):
    compiled(case.model, "torch.compile", backend="aot_eager")(case.prompt, return_type="loss").backward()
    by_hand = {name: weight.requires_grad_() for name, weight in case.weights.items()}
    loss = (case.run()[:, -1] - case.prompt.y_q).square().mean()
    for name, gradient in zip(by_hand, torch.autograd.grad(loss, list(by_hand.values())), strict=True):
        for layer, block in enumerate(case.model.blocks):
            same(getattr(block.attn, name).grad, gradient[layer])


def test_other_inputs(case):
    model = compiled(case.model, "torch.compile")
    same(model(model.to_tokens(case.prompt)), case.run())
    with torch.no_grad():
        same(model(case.prompt.z), case.run())


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ("torch.compile", "run without hooks"),
        ("torch.compile", "hook at once"),
        pytest.param("model.compile", "run without hooks", marks=pytest.mark.slow),
        ("block.compile", "run without hooks"),
    ],
)
def test_hooks_are_called_however_they_are_added(case, how, first):
    model = compiled(case.model, how)
    if first == "run without hooks":
        same(model(case.prompt), case.run())

    case.model.add_hook(NAME, ablate)
    same(model(case.prompt), without(case))
    model.reset_hooks()
    same(model(case.prompt), case.run())

    with case.model.hooks([(NAME, ablate)]):
        same(model(case.prompt), without(case))
    same(model(case.prompt), case.run())

    case.model.blocks[0].hook_attn_out.add_hook(ablate)
    same(model(case.prompt), without(case))
    case.model.blocks[0].hook_attn_out.remove_hooks()
    same(model(case.prompt), case.run())

    same(model.run_with_hooks(case.prompt, fwd_hooks=[(NAME, ablate)]), without(case))
    with pytest.raises(ConfigError, match="hooks run on a Prompt"):
        model.run_with_hooks(case.prompt.z, fwd_hooks=[(NAME, ablate)])
    logits, cache = model.run_with_cache(case.prompt)
    same(logits, case.run())
    assert cache.keys() == case.model.hook_dict.keys()
    same(cache["attn_out", 0], case.seen[0, "attn_out"])


@pytest.mark.parametrize("how", WAYS)
def test_one_hook_in_the_place_of_another_is_called(case, how):
    model = compiled(case.model, how)
    for factor in (0, 2, 3):
        with case.model.hooks([(NAME, lambda value, hook, factor=factor: factor * value)]):
            wanted = case.run({(0, "attn_out"): lambda value, seen, factor=factor: factor * value})
            same(model(case.prompt), wanted)


@pytest.mark.parametrize("how", ["model.compile", "block.compile"])
def test_gradients_reach_hooks(case, how):
    model = compiled(case.model, how)
    _, cache = model.run_with_cache(case.prompt, return_type="loss", incl_bwd=True)
    leaf = case.seen[0, "embed"].clone().requires_grad_()
    outputs = case.run({(0, "embed"): lambda value, seen: leaf})
    loss = (outputs[:, -1] - case.prompt.y_q).square().mean()
    same(cache["hook_embed_grad"], torch.autograd.grad(loss, leaf)[0])


def test_backward_hooks_alone(case):
    model = compiled(case.model, "torch.compile")
    model(case.prompt, return_type="loss")
    with case.model.hooks(bwd_hooks=[("blocks.0.attn.hook_result", ablate)]):
        model(case.prompt, return_type="loss").backward()
    assert not any(parameter.grad.any() for parameter in case.model.blocks[0].attn.parameters())


def test_hooks_on_more_points_than_a_function_is_recompiled_for(case):
    model = compiled(case.model, "torch.compile")
    model(case.prompt)
    names = [name for name in case.model.hook_dict if "mlp" not in name]  # there is none
    assert len(names) > torch._dynamo.config.recompile_limit
    for name in names:
        with case.model.hooks([(name, ablate)]):
            eager = case.model(case.prompt)
            same(model(case.prompt), eager)
            assert not torch.allclose(eager, case.run())
    same(model(case.prompt), case.run())


@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_a_full_graph_has_no_room_for_hooks_and_says_so(case, how):
    model = compiled(case.model, how, fullgraph=True)
    same(model(case.prompt), case.run())
    with (
        case.model.hooks([(NAME, ablate)]),
        pytest.raises(torch._dynamo.exc.Unsupported, match="no hooks under fullgraph=True"),
    ):
        model(case.prompt)
    same(model(case.prompt), case.run())


def test_switches_are_seen(case):
    model = compiled(case.model, "torch.compile")
    model(case.prompt)
    case.model.set_use_split_qkv_input(True)
    with case.model.hooks([("blocks.0.hook_v_input", ablate)]):
        wanted = case.run({(0, "v_input"): lambda value, seen: value * 0})
        same(model(case.prompt), wanted)
