"""Contexts that leave nothing behind, and the change in risk with its error."""

import copy

import numpy as np
import pytest
import torch
import transformer_lens.patching as patching

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.estimates import mean_of
from icl_interp.interventions import (
    gradient_step,
    idealisation,
    intervention,
    mean_ablation,
    resample_ablation,
    transplant,
    zero_ablation,
)
from icl_interp.model import ICLTransformer
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, Prompt
from icl_interp.testing import plant


def every_kind(model, reference):
    circuits = Run(model.config, model.weights()).circuits()
    return [
        zero_ablation(model, [0, 2]),
        mean_ablation(model, [0, 2], reference),
        resample_ablation(model, [0, 2], reference),
        idealisation(model, [0, 2]),
        gradient_step(model, [0, 2]),
        transplant(model, [0, 2], circuits, [1, 3]),
    ]


def hooks_on(model):
    ours = sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())
    return ours + sum(len(module._forward_pre_hooks) for module in model.modules())


# ---- contexts


def test_a_context_leaves_nothing_behind(model, sample):
    prompt, plain = sample(), model(sample())
    for each in every_kind(model, sample(seed=1)):
        with each as inside:
            assert inside is model
            altered = model(prompt)
            assert not torch.allclose(altered, plain)
        assert hooks_on(model) == 0
        with pytest.raises(ZeroDivisionError), each:
            1 / 0
        assert hooks_on(model) == 0
        with each:  # again
            torch.testing.assert_close(model(prompt), altered)
        torch.testing.assert_close(model(prompt), plain)


def test_contexts_nest(model, sample):
    prompt = sample()
    with zero_ablation(model, [0, 1]):
        both = model(prompt)
    with zero_ablation(model, 0), zero_ablation(model, 1):
        torch.testing.assert_close(model(prompt), both)
    with idealisation(model, 0), zero_ablation(model, [0, 1]):  # the inner one has the last word
        torch.testing.assert_close(model(prompt), both)
    once = zero_ablation(model, 0)
    with once:
        alone = model(prompt)
        with once:
            torch.testing.assert_close(model(prompt), alone)
        torch.testing.assert_close(model(prompt), alone)
    assert hooks_on(model) == 0


def test_other_hooks_stay(model, sample):
    prompt = sample()
    model.add_hook("hook_embed", lambda z, hook: 2 * z)
    doubled = model(prompt)
    with zero_ablation(model, 0):
        assert not torch.allclose(model(prompt), doubled)
        _, cache = model.run_with_cache(prompt)
    assert (cache["result", 0][:, :, 0] == 0).all()
    torch.testing.assert_close(model(prompt), doubled)


def test_transformer_lenss_sweeps_run_inside(model, sample):
    clean, corrupted = sample(2), sample(2, seed=1)
    with zero_ablation(model, 1):
        _, cache = model.run_with_cache(clean)
        found = patching.get_act_patch_attn_head_out_all_pos(
            model, model.to_tokens(corrupted), cache, lambda logits: logits[:, -1].mean()
        )
        assert found[0, 1].item() == pytest.approx(model.predict(corrupted).mean().item(), rel=1e-5)
        assert len(found[0].unique()) == 4


def test_heads_by_number_and_by_label(model, deep):
    for heads in (2, np.int64(2), "L0H2", [2], (2,), np.array([2]), ["L0H2"], range(2, 3)):
        assert zero_ablation(model, heads).heads == ((0, 2),)
    assert zero_ablation(deep, ["L1H0", "L0H2"]).heads == ((1, 0), (0, 2))
    assert idealisation(deep).heads == tuple((layer, head) for layer in range(2) for head in range(3))
    assert repr(zero_ablation(deep, ["L1H0", "L0H2"])) == "<zero ablation of L1H0, L0H2>"


@pytest.mark.parametrize(
    "heads", [4, -1, True, 1.0, "2", "L1H0", "l0h0", (0, 9), [[0]], np.array([0.5]), None, b"L0H0"]
)
def test_heads_that_are_not_there(model, heads):
    with pytest.raises(ConfigError, match=r"the heads are L0H0 to L0H3, or their numbers, 0 to 3, got "):
        zero_ablation(model, [heads] if heads is None else heads)


def test_heads_of_a_deep_model_have_labels_only(deep):
    with pytest.raises(ConfigError, match="the heads are L0H0 to L1H2, got 1"):
        zero_ablation(deep, 1)


@pytest.mark.parametrize("heads", [[], (), [1, 1], [1, "L0H1"]])
def test_no_head_or_one_twice(model, heads):
    with pytest.raises(ConfigError, match="name at least one head, and each once, got"):
        zero_ablation(model, heads)


def test_only_models_can_be_altered(model):
    run = Run(model.config, model.weights())
    with pytest.raises(ConfigError, match=r"act on an ICLTransformer, such as run.model\(\), got a Run"):
        zero_ablation(run, 0)


# ---- the change in risk


def test_the_change_is_paired(model, sample, monkeypatch):
    prompt, reference = sample(100), sample(100, seed=1)
    for each in every_kind(model, reference):
        before = (model.predict(prompt) - prompt.y_q) ** 2
        with each:
            after = (model.predict(prompt) - prompt.y_q) ** 2
        expected = mean_of((after - before)[:, 0].detach().numpy())
        found = each.risk_change(prompt)
        monkeypatch.setattr(intervention, "CHUNK_NUMBERS", 4 * 8**2 * 7)  # 7 prompts at a time
        in_pieces = each.risk_change(prompt[i : i + 30] for i in range(0, 100, 30))
        monkeypatch.undo()
        for estimate in (found, in_pieces):
            np.testing.assert_allclose(
                (estimate.value, estimate.low, estimate.high), (expected.value, expected.low, expected.high)
            )
        assert hooks_on(model) == 0


def test_removing_every_head_leaves_the_variance_of_the_response():
    """The prediction is then zero, so the risk is E[y_q²] = 1 + σ²; with ideal heads it is where it was."""
    run = plant(roles=["positive", "negative"]).run
    model, prompt = run.model(), run.task.sample(4_000, generator=torch.Generator().manual_seed(0))
    change = zero_ablation(model, [0, 1]).risk_change(prompt)
    risk = model(prompt, return_type="loss").item()
    assert change.low < 1.1 - risk < change.high
    assert change.half < 0.1
    assert abs(idealisation(model).risk_change(prompt).value) < 1e-4


def test_intervals_cover(task):
    """A 95 % interval of 200 prompts holds the truth (of 40,000) about as often as it should."""
    model = plant(task, roles=["positive", "negative"]).run.model()
    edit = zero_ablation(model, 0)
    truth = edit.risk_change(task.sample(40_000, generator=torch.Generator().manual_seed(0))).value
    generator = torch.Generator().manual_seed(1)
    held = [
        e.low < truth < e.high for e in (edit.risk_change(task.sample(200, generator=generator)) for _ in range(300))
    ]
    assert 0.90 < np.mean(held) < 0.985


@pytest.mark.gpu
def test_on_a_gpu_they_do_the_same(model, sample):
    prompt, reference = sample(20), sample(20, seed=1)
    expected = [each.risk_change(prompt) for each in every_kind(model, reference)]
    on_gpu = copy.deepcopy(model).cuda()
    for each, wanted in zip(every_kind(on_gpu, reference.to("cuda")), expected, strict=True):
        for given in (prompt, prompt.to("cuda")):
            found = each.risk_change(given)
            assert (found.value, found.half) == pytest.approx((wanted.value, wanted.half), rel=1e-8)


def test_several_responses_are_averaged():
    model = ICLTransformer(ModelConfig(dim=3, n_outputs=2), seed=0)
    prompt = Prompt(torch.randn(50, 7, 3), torch.randn(50, 7, 2), torch.randn(50, 3), torch.randn(50, 2))
    before = model(prompt, return_type="loss")
    with zero_ablation(model, 0):
        after = model(prompt, return_type="loss")
    assert zero_ablation(model, 0).risk_change(prompt).value == pytest.approx((after - before).item(), abs=1e-6)


def test_prompts_that_cannot_tell(model, sample):
    edit = zero_ablation(model, 0)
    for none in (sample()[:0], []):
        with pytest.raises(ConfigError, match="needs prompts to be measured on, got none"):
            edit.risk_change(none)
    assert edit.risk_change(sample(1)).half == np.inf
    spoilt = sample(10)
    spoilt.y[3] = torch.nan
    assert edit.risk_change(spoilt).half == np.inf
    with pytest.raises(ConfigError, match="got a reference of 9 for 10"):
        resample_ablation(model, 0, sample(9, seed=1)).risk_change(sample(10))
    with pytest.raises(ConfigError, match=r"d_model = 4\), that is dim 3"):
        edit.risk_change(LinearRegression(5, 7).sample(10))
    assert hooks_on(model) == 0
