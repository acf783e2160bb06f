from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.tasks import LinearRegression, Prompt
from icl_interp.weights import initial_weights


def circuits_and_model(
    seed: int, **sizes: int
) -> tuple[Circuits, ICLTransformer, dict[str, torch.Tensor], ModelConfig]:
    config = ModelConfig(**{"dim": 3, "n_heads": 2, **sizes})  # type: ignore[arg-type]
    weights = {k: v.double() for k, v in initial_weights(config, torch.Generator().manual_seed(seed)).items()}
    return Circuits.from_weights(weights, config), ICLTransformer.from_weights(config, weights), weights, config


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**20),
    dim=st.integers(1, 4),
    n_outputs=st.integers(1, 3),
    n_heads=st.integers(1, 4),
    n_layers=st.integers(1, 3),
    d_head=st.integers(1, 6),
)
def test_circuits_are_the_papers_transposes_of_transformerlens(seed: int, **sizes: int) -> None:
    circuits, model, _, config = circuits_and_model(seed, **sizes)
    QK = model.QK.AB.detach().numpy()
    np.testing.assert_allclose(circuits.KQ, QK.swapaxes(-1, -2) / config.score_scale, atol=1e-12)
    np.testing.assert_allclose(circuits.OV, model.OV.AB.detach().numpy().swapaxes(-1, -2), atol=1e-12)


def test_blocks_by_hand() -> None:
    """d = 1, N = 1: KQ and OV are 2 × 2, and every entry has a name."""
    config = ModelConfig(dim=1, n_heads=1, d_head=1, attn_scale=2.0)
    weights = {
        "W_Q": torch.tensor([[[[3.0], [5.0]]]]),
        "W_K": torch.tensor([[[[7.0], [11.0]]]]),
        "W_V": torch.tensor([[[[13.0], [17.0]]]]),
        "W_O": torch.tensor([[[[19.0, 23.0]]]]),
    }
    circuits = Circuits.from_weights(weights, config)
    np.testing.assert_allclose(circuits.KQ[0, 0], [[7 * 3 / 2, 7 * 5 / 2], [11 * 3 / 2, 11 * 5 / 2]])
    np.testing.assert_allclose(circuits.OV[0, 0], [[19 * 13, 19 * 17], [23 * 13, 23 * 17]])
    assert circuits.KQ_11.item() == 10.5
    assert circuits.KQ_21.item() == 16.5
    assert circuits.OV_21.item() == 299
    assert circuits.OV_22.item() == 391
    assert circuits.diagonal.item() == 10.5
    assert circuits.omega.item() == 10.5
    assert circuits.mu.item() == 391


def test_several_responses_have_an_omega_a_feature_and_a_mu_a_response() -> None:
    KQ, OV = np.random.default_rng(0).standard_normal((2, 2, 3, 5, 5))
    circuits = Circuits(KQ, OV, dim=3, n_outputs=2)
    for layer, head in np.ndindex(2, 3):
        np.testing.assert_array_equal(circuits.diagonal[layer, head], [KQ[layer, head, i, i] for i in range(3)])
        np.testing.assert_array_equal(circuits.mu[layer, head], [OV[layer, head, i, i] for i in (3, 4)])
        assert circuits.omega[layer, head] == pytest.approx(np.trace(KQ[layer, head, :3, :3]) / 3)
    circuits.diagonal[:] = 0  # a copy: whoever writes on it leaves the circuits alone
    assert circuits.diagonal.all()


def test_responses_labels_reach_the_response_of_their_row() -> None:
    """OV_22[m, n] takes from the labels of response n and gives to the prediction of response m."""
    OV = np.zeros((1, 1, 4, 4))
    OV[0, 0, 2 + 1, 2 + 0] = 3.0
    circuits = Circuits(np.zeros((1, 1, 4, 4)), OV, dim=2, n_outputs=2)
    x, y, x_q, y_q = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 7, 2), (5, 7, 2), (5, 2), (5, 2)))
    even = 3 * y.mean(1)[:, 0]  # scores of zero weigh all demonstrations alike
    torch.testing.assert_close(
        circuits.predict(Prompt(x, y, x_q, y_q)), torch.stack([torch.zeros(5).double(), even], 1)
    )


def test_inert_parts_are_those_that_no_prediction_sees() -> None:
    """Fill what is called inert with noise: nothing moves.  Touch any live entry: something does."""
    for n_layers in (1, 2):
        circuits, _, _, _ = circuits_and_model(0, n_layers=n_layers, n_outputs=2)
        rng = np.random.default_rng(0)
        prompt = LinearRegression(3, 9).sample(50, generator=torch.Generator().manual_seed(0))
        prompt = type(prompt)(prompt.x, torch.cat([prompt.y] * 2, -1), prompt.x_q, torch.cat([prompt.y_q] * 2, -1))
        prompt = prompt.to(dtype=torch.float64)
        before = circuits.predict(prompt)

        def changed(KQ: np.ndarray, OV: np.ndarray, circuits: Circuits = circuits) -> Circuits:
            return Circuits(KQ, OV, circuits.dim, circuits.n_outputs, circuits.mask)

        noise = [rng.standard_normal(m.shape) for m in (circuits.KQ, circuits.OV)]
        live = circuits.KQ_live[:, None], circuits.OV_live[:, None]
        noisy = changed(np.where(live[0], circuits.KQ, noise[0]), np.where(live[1], circuits.OV, noise[1]))
        torch.testing.assert_close(noisy.predict(prompt), before)
        for which, mask in enumerate((circuits.KQ_live, circuits.OV_live)):
            for layer, row, column in np.argwhere(mask):
                parts = [circuits.KQ.copy(), circuits.OV.copy()]
                parts[which][layer, 0, row, column] += 1
                assert not torch.allclose(changed(*parts).predict(prompt), before), (which, layer, row, column)


def test_masked_hides_inert_parts() -> None:
    circuits, _, _, _ = circuits_and_model(0)
    KQ, OV = circuits.masked()
    assert np.isnan(KQ[:, :, :, 3:]).all()
    assert np.isfinite(KQ[:, :, :, :3]).all()
    assert np.isnan(OV[:, :, :3]).all()
    assert np.isfinite(OV[:, :, 3:]).all()


def test_head_outputs_sum_to_the_prediction_of_the_hooked_model() -> None:
    circuits, model, _, _ = circuits_and_model(5)
    prompt = LinearRegression(3, 9).sample(20, generator=torch.Generator().manual_seed(0)).to(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(circuits.head_outputs(prompt).sum(1), model.predict(prompt))


def test_any_factorisation_has_the_same_circuits() -> None:
    circuits, _, weights, config = circuits_and_model(1)
    rng = torch.Generator().manual_seed(2)
    a, b = (torch.randn(1, 2, 4, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    other = {
        "W_Q": weights["W_Q"] @ a,
        "W_K": weights["W_K"] @ a.inverse().mT,
        "W_V": weights["W_V"] @ b,
        "W_O": b.inverse() @ weights["W_O"],
    }
    again = Circuits.from_weights(other, config)
    np.testing.assert_allclose(again.KQ, circuits.KQ, atol=1e-9)
    np.testing.assert_allclose(again.OV, circuits.OV, atol=1e-9)


@pytest.mark.parametrize("attn_scale", [1.0, None])
def test_the_scale_is_folded_in(attn_scale: float | None) -> None:
    config = ModelConfig(dim=3, attn_scale=attn_scale)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    wanted = weights["W_K"][0, 1] @ weights["W_Q"][0, 1].T / (attn_scale or 2.0)
    np.testing.assert_allclose(Circuits.from_weights(weights, config).KQ[0, 1], wanted, rtol=1e-5, atol=1e-7)
