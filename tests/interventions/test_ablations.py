"""Ablations against the same thing by hand: weights set to zero, other prompts' outputs written in."""

import pytest
import torch

from icl_interp.errors import ConfigError
from icl_interp.interventions import intervention, mean_ablation, resample_ablation, zero_ablation


def test_zero_ablation_is_a_head_without_weights(deep, sample, with_weights):
    prompt = sample()

    def silence(weights):
        weights["W_O"][0, 1] = 0
        weights["W_O"][1, 2] = 0

    with zero_ablation(deep, ["L0H1", "L1H2"]):
        ablated = deep(prompt)
    torch.testing.assert_close(ablated, with_weights(deep, silence)(prompt), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(ablated, deep(prompt))


def written_in(model, prompt, layer, head, values):
    """The model's logits with `values` (batch, positions, d_model) for what one head adds, by TransformerLens alone."""

    def write(result, hook):
        result[:, :, head] = values
        return result

    with torch.no_grad():
        return model.run_with_hooks(prompt, fwd_hooks=[(f"blocks.{layer}.attn.hook_result", write)])


def test_mean_ablation_puts_the_mean_at_each_position(deep, sample):
    prompt, reference = sample(4), sample(9, seed=1)
    _, cache = deep.run_with_cache(reference)
    expected = written_in(deep, prompt, 0, 1, cache["result", 0][:, :, 1].mean(0))
    with mean_ablation(deep, "L0H1", reference):
        torch.testing.assert_close(deep(prompt), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected, deep(prompt))


def test_resampling_puts_another_prompts_output(deep, sample):
    prompt, reference = sample(4), sample(9, seed=1)
    _, cache = deep.run_with_cache(reference)
    rows = torch.randperm(9, generator=torch.Generator().manual_seed(3))[:4]
    expected = written_in(deep, prompt, 0, 1, cache["result", 0][rows, :, 1])
    with resample_ablation(deep, "L0H1", reference, seed=3):
        torch.testing.assert_close(deep(prompt), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(deep(prompt), expected, rtol=1e-12, atol=1e-12)  # the same draw each time
    with resample_ablation(deep, "L0H1", reference, seed=4):
        assert not torch.allclose(deep(prompt), expected)


def test_a_long_reference_is_run_in_pieces(deep, sample, monkeypatch):
    prompt, reference = sample(4), sample(9, seed=1)
    for ablation in (mean_ablation, resample_ablation):
        with ablation(deep, ["L0H1", "L1H0"], reference):
            expected = deep(prompt)
        monkeypatch.setattr(intervention, "CHUNK_NUMBERS", 3 * 8**2 * 2)  # two prompts at a time
        with ablation(deep, ["L0H1", "L1H0"], reference):
            torch.testing.assert_close(deep(prompt), expected, rtol=1e-12, atol=1e-12)
        monkeypatch.undo()


def test_resampling_every_head_predicts_for_the_other_prompt(model, deep, sample):
    prompt, reference = sample(4), sample(4, seed=1)
    rows = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    for each in (model, deep):
        expected = each.predict(reference)[rows]
        with resample_ablation(each, each.all_head_labels, reference):
            torch.testing.assert_close(each.predict(prompt), expected)


def test_the_reference_sees_the_hooks_that_are_on_when_it_is_run(deep, sample):
    prompt, reference = sample(), sample(seed=1)
    with zero_ablation(deep, ["L0H0", "L0H1", "L0H2"]):
        frozen = mean_ablation(deep, "L1H0", reference)
    with frozen:
        altered = deep(prompt)
    with mean_ablation(deep, "L1H0", reference):
        assert not torch.allclose(deep(prompt), altered)


def test_references_that_do_not_fit_are_refused(model, sample):
    prompt = sample(5)
    with (
        pytest.raises(ConfigError, match=r"needs a reference prompt of its own, got a reference of 3 for 5"),
        resample_ablation(model, 0, sample(3)),
    ):
        model(prompt)
    for ablation in (mean_ablation, resample_ablation):
        with (
            pytest.raises(ConfigError, match="the reference has 4 demonstrations and these prompts 7"),
            ablation(model, 0, sample(9, length=4)),
        ):
            model(prompt)
        for wrong in (prompt.z, prompt[:0], None):
            with pytest.raises(ConfigError, match="reference must be a Prompt, with at least one prompt in it, got"):
                ablation(model, 0, wrong)
