"""The query-row pass against a computation by hand, its masks, and what cannot reach the prediction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp import attention
from icl_interp.attention import allowed_keys, softmax_weights


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_circuits(layers=1, heads=2, d_model=4):
    return random(layers, heads, d_model, d_model, seed=1), random(layers, heads, d_model, d_model, seed=2) / 3


def test_one_head_by_hand():
    d, L = 3, 6
    KQ, OV = random_circuits(heads=1)
    z = random(1, L + 1, d + 1)
    z[:, -1, d:] = 0

    columns, query = z[0, :-1].numpy(), z[0, -1].numpy()
    exponentials = np.exp([column @ KQ[0, 0].numpy() @ query for column in columns])
    pattern = exponentials / exponentials.sum()
    expected = sum(p * (OV[0, 0].numpy() @ column) for p, column in zip(pattern, columns, strict=True))[d:]

    np.testing.assert_allclose(attention.query_row(KQ, OV, z, n_outputs=1)[0, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(attention.predict(KQ, OV, z, n_outputs=1)[0], expected, rtol=1e-12)


def test_two_layers_by_hand():
    N, L = 2, 5
    KQ, OV = random_circuits(layers=2, heads=3, d_model=5)
    z = random(1, L + 1, 5)

    Z = z[0].T.numpy()
    for layer in range(2):
        update = np.zeros_like(Z)
        for head in range(3):
            scores = Z[:, :-1].T @ KQ[layer, head].numpy() @ Z  # rows: keys, columns: queries
            pattern = np.exp(scores) / np.exp(scores).sum(0)
            update += OV[layer, head].numpy() @ Z[:, :-1] @ pattern
        Z = Z + update

    np.testing.assert_allclose(attention.predict(KQ, OV, z, n_outputs=N)[0], Z[-N:, -1], rtol=1e-12)


def test_fold_is_the_papers_circuit():
    W_Q, W_K, W_V, W_O = random(2, 4, 3), random(2, 4, 3, seed=1), random(2, 4, 3, seed=2), random(2, 3, 4, seed=3)
    KQ, OV = attention.fold(W_Q, W_K, W_V, W_O, score_scale=2.0)
    key, query = random(4, seed=4), random(4, seed=5)
    for head in range(2):
        torch.testing.assert_close(key @ KQ[head] @ query, (query @ W_Q[head]) @ (key @ W_K[head]) / 2)
        torch.testing.assert_close(OV[head] @ key, key @ W_V[head] @ W_O[head])


def test_masks():
    every, causal = allowed_keys(3, "demonstrations").int(), allowed_keys(3, "strict_causal").int()
    assert every.tolist() == [[1, 1, 1, 0]] * 4
    assert causal.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_a_row_without_keys_gets_zeros_and_finite_gradients():
    scores = random(2, 4, 4).requires_grad_()
    weights = softmax_weights(scores, allowed_keys(3, "strict_causal"))
    assert (weights[:, 0] == 0).all()
    torch.testing.assert_close(weights[:, 1:].sum(-1), torch.ones(2, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(weights.square().sum(), scores)
    assert gradient.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(heads=st.integers(1, 5), length=st.integers(1, 7), n_outputs=st.integers(1, 3), seed=st.integers(0, 99))
def test_with_one_layer_the_masks_agree_at_the_query(heads, length, n_outputs, seed):
    KQ, OV = random_circuits(heads=heads)
    z = random(3, length + 1, 4, seed=seed)
    torch.testing.assert_close(
        attention.predict(KQ, OV, z, n_outputs, "demonstrations"),
        attention.predict(KQ, OV, z, n_outputs, "strict_causal"),
        rtol=0,
        atol=0,
    )


def test_with_two_layers_the_masks_differ():
    KQ, OV = random_circuits(layers=2)
    z = random(3, 6, 4)
    difference = attention.predict(KQ, OV, z, 1, "demonstrations") - attention.predict(KQ, OV, z, 1, "strict_causal")
    assert difference.abs().min() > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_the_order_of_demonstrations_does_not_matter(layers):
    KQ, OV = random_circuits(layers)
    z = random(3, 6, 4)
    shuffled = z[:, [3, 1, 4, 0, 2, 5]]
    torch.testing.assert_close(attention.predict(KQ, OV, z, 1), attention.predict(KQ, OV, shuffled, 1))


def test_inert_parts_of_one_layer_do_not_reach_the_prediction():
    KQ, OV = random_circuits()
    z = random(3, 6, 4)
    z[:, -1, 3:] = 0
    expected = attention.predict(KQ, OV, z, 1)
    KQ[..., 3:], OV[..., :3, :] = 1e3, 1e3
    torch.testing.assert_close(attention.predict(KQ, OV, z, 1), expected, rtol=0, atol=0)


def test_the_prediction_is_what_stood_there_plus_the_heads():
    KQ, OV = random_circuits(layers=1, heads=3)
    z = random(5, 6, 4)
    parts = attention.query_row(KQ, OV, z, 2)
    assert parts.shape == (5, 3, 2)
    torch.testing.assert_close(attention.predict(KQ, OV, z, 2), z[:, -1, -2:] + parts.sum(1))
