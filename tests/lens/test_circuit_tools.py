"""FactoredMatrix, SVDInterpreter, composition scores, subspaces and head detection, against numpy and formulas."""

import logging

import numpy as np
import pytest
import torch
from transformer_lens import SVDInterpreter
from transformer_lens.head_detector import detect_head

from icl_interp.errors import ConfigError


def close(found, wanted, tolerance=1e-10):
    np.testing.assert_allclose(torch.as_tensor(found).detach().numpy(), wanted, rtol=tolerance, atol=tolerance)


def dense(case):
    """QK and OV of every head as numpy matrices; rows multiply, as everywhere in TransformerLens."""
    W_Q, W_K, W_V, W_O = (case.weights[name].numpy() for name in ("W_Q", "W_K", "W_V", "W_O"))
    shape = (*W_Q.shape[:2], W_Q.shape[2], W_Q.shape[2])
    QK, OV = np.empty(shape), np.empty(shape)
    for layer, head in np.ndindex(shape[:2]):
        QK[layer, head] = W_Q[layer, head] @ W_K[layer, head].T
        OV[layer, head] = W_V[layer, head] @ W_O[layer, head]
    return {"QK": QK, "OV": OV}


# ---- FactoredMatrix


@pytest.mark.parametrize("which", ["QK", "OV"])
def test_factored_circuits(case, which):
    factored, product = getattr(case.model, which), dense(case)[which]
    assert factored.shape == product.shape
    close(factored.AB, product)
    close(factored.T.AB, product.swapaxes(-1, -2))
    close(factored.norm(), np.linalg.norm(product, axis=(-1, -2)))
    close(factored.get_corner(2), product[..., :2, :2][:2, :2])
    close((factored * 3).AB, 3 * product)
    close((factored @ factored.T).AB, product @ product.swapaxes(-1, -2))
    vector = case.prompt.z[0, 0]
    close(factored @ vector, product @ vector.numpy())
    close(vector @ factored, vector.numpy() @ product)
    close(factored.make_even().AB, product)
    for layer, head in np.ndindex(product.shape[:2]):
        close(factored[layer, head].AB, product[layer, head])
        close(factored[layer, head, 1].AB, product[layer, head, 1:2])
        close(factored[layer, head, :, 2].AB, product[layer, head, :, 2:3])
    close(factored[-1].AB, product[-1])


@pytest.mark.filterwarnings("ignore:.*Vh has always returned V:DeprecationWarning")
@pytest.mark.parametrize("which", ["QK", "OV"])
def test_spectra_of_circuits(case, which):
    factored, product = getattr(case.model, which), dense(case)[which]
    U, S, V = (part.detach() for part in factored.svd())
    close(S, np.linalg.svd(product, compute_uv=False)[..., : S.shape[-1]])
    close(U @ torch.diag_embed(S) @ V.mT, product)
    close(U.mT @ U, np.broadcast_to(np.eye(S.shape[-1]), (*S.shape, S.shape[-1])))
    close(factored.U, U)
    close(factored.S, S)
    close(factored.Vh, V)  # as it says
    for layer, head in np.ndindex(product.shape[:2]):
        # There may be fewer than of the product, whose further ones are zeros.
        found = factored.eigenvalues[layer, head].detach().numpy()
        wanted = np.linalg.eigvals(product[layer, head])
        wanted = wanted[np.argsort(-np.abs(wanted))][: len(found)]
        assert np.abs(found[:, None] - wanted).min(0).max() < 1e-8
        assert np.abs(found[:, None] - wanted).min(1).max() < 1e-8


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores(deep, mode):
    circuits = dense(deep)
    reads = {"Q": circuits["QK"], "K": circuits["QK"].swapaxes(-1, -2), "V": circuits["OV"]}[mode]
    found = deep.model.all_composition_scores(mode)
    heads = (deep.config.n_layers, deep.config.n_heads)
    assert found.shape == (*heads, *heads)
    for i, h, j, k in np.ndindex(*found.shape):
        written, read = circuits["OV"][i, h], reads[j, k]
        score = np.linalg.norm(written @ read) / np.linalg.norm(written) / np.linalg.norm(read) if i < j else 0
        assert found[i, h, j, k].item() == pytest.approx(score)
    with pytest.raises(ConfigError, match="mode must be 'Q', 'K' or 'V', got 'X'"):
        deep.model.all_composition_scores("X")


# ---- SVDInterpreter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_vectors_of_what_heads_write(case, dtype):
    model, count = case.model.to(dtype), 2
    interpreter = SVDInterpreter(model)
    for layer, head in np.ndindex(case.config.n_layers, case.config.n_heads):
        try:
            found = interpreter.get_singular_vectors("OV", layer, num_vectors=count, head_index=head)
        except RuntimeError as error:
            assert dtype == torch.float64
            pytest.skip(f"before 4, float32 only: {error}")
        assert found.shape == (case.config.n_outputs, 1, count)
        assert found.dtype == dtype
        Vh = np.linalg.svd(dense(case)["OV"][layer, head])[2][:count, case.config.dim :]
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        close(found[:, 0].abs(), np.abs(Vh.T), tolerance)
        # The sign of a vector is free, but the same at every output.
        close(found[:, 0].prod(0).abs(), np.abs(Vh.prod(1)), tolerance)


@pytest.mark.parametrize("which", ["w_in", "w_out"])
def test_there_are_no_mlp_weights_to_decompose(case, which):
    says = r"the model has no MLP|does not expose a single dense MLP weight"  # the latter is TransformerLens 4's own
    with pytest.raises((ConfigError, NotImplementedError), match=says):
        SVDInterpreter(case.model).get_singular_vectors(which, layer_index=0)


# ---- subspaces


def test_subspaces_of_heads(deep):
    tools = pytest.importorskip("transformer_lens.tools.analysis.projection_kernel")
    rank = deep.config.n_outputs  # what the last layer's heads write; those of full rank are asked for otherwise
    found = tools.attention_head_subspace_affinity(deep.model, target_role="Q", rank=rank)
    for h, k in np.ndindex(deep.config.n_heads, deep.config.n_heads):
        written = np.linalg.svd(deep.weights["W_O"][0, h].numpy().T)[0][:, :rank]
        read = np.linalg.svd(deep.weights["W_Q"][1, k].numpy())[0][:, :rank]
        assert found.scores[0, h, 1, k].item() == pytest.approx(np.linalg.norm(written.T @ read) ** 2)
    with pytest.raises(ValueError, match="Could not extract role O at layer 1, head 0"):
        tools.attention_head_subspace_affinity(deep.model, target_role="Q")


# ---- head detection


def score(pattern, wanted, measure, exclude_bos, exclude_current):
    """By the formulas of the detector: a share of all attention, or one minus the mean absolute difference of a row."""
    pattern, wanted = pattern.clone(), wanted.clone()
    blind = torch.zeros_like(pattern, dtype=torch.bool)
    blind[:, 0] |= exclude_bos
    blind |= exclude_current & torch.eye(len(pattern), dtype=torch.bool)
    if measure == "mul":
        pattern[blind] = 0
        return ((pattern * wanted).sum() / pattern.sum()).item()
    difference = (pattern - wanted).abs().masked_fill(blind, 0)
    return 1 - round((difference.sum() / len(pattern)).item(), 3)


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("exclude_bos", [False, True])
@pytest.mark.parametrize("exclude_current", [False, True])
def test_detecting_heads(deep, measure, exclude_bos, exclude_current):
    options = {"error_measure": measure, "exclude_bos": exclude_bos, "exclude_current_token": exclude_current}
    previous = torch.diag(torch.ones(deep.positions - 1), -1)
    own = torch.ones(deep.positions, deep.positions).tril(-1).double()
    own[-1] = 0
    for asked, wanted in (("previous_token_head", previous), (own, own)):
        for prompt in (deep.prompt[:1], deep.model.to_tokens(deep.prompt[:1])):
            found = detect_head(deep.model, prompt, asked, **options)
            for layer, head in np.ndindex(*found.shape):
                pattern = deep.seen[layer, "pattern"][0, head]
                by_hand = score(pattern, wanted, measure, exclude_bos, exclude_current)
                assert found[layer, head].item() == pytest.approx(by_hand, abs=1e-6 if measure == "mul" else 1.1e-3)


def test_detecting_some_heads_on_several_prompts(deep, caplog):
    every = detect_head(deep.model, deep.prompt[:1], "previous_token_head")
    for some in ([(0, 2), (1, 1)], {0: [2], 1: [1]}):
        found = detect_head(deep.model, deep.prompt[:1], "previous_token_head", heads=some)
        chosen = torch.zeros_like(every, dtype=torch.bool)
        chosen[0, 2] = chosen[1, 1] = True
        assert torch.equal(found[chosen], every[chosen])
        assert (found[~chosen] == -1).all()
    apart = [detect_head(deep.model, deep.prompt[i : i + 1], "previous_token_head") for i in range(3)]
    together = detect_head(deep.model, [deep.prompt[i : i + 1] for i in range(3)], "previous_token_head")
    torch.testing.assert_close(together, torch.stack(apart).mean(0))
    with pytest.raises(ConfigError, match="remove_batch_dim needs a batch of one prompt, got 3"):
        detect_head(deep.model, deep.prompt, "previous_token_head")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["duplicate_token_head", "induction_head"])
def test_detectors_that_compare_tokens_say_why_they_cannot(case, name):
    for prompt in (case.prompt[:1], case.model.to_tokens(case.prompt[:1])):
        with pytest.raises(
            AttributeError, match=r"columns of numbers, not token ids.*\(duplicate token heads, induction"
        ):
            detect_head(case.model, prompt, name)
    with pytest.raises(ConfigError, match="no text that it could read"):
        detect_head(case.model, "some text", "previous_token_head")
