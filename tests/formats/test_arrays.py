"""Plain arrays, as npz and as safetensors: the same circuits, numbers, roles and predictions."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import icl_interp as icl
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.formats import Given, load_run
from icl_interp.roles import classify, reference_shape
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant

TASK = LinearRegression(dim=4, length=20)


@pytest.fixture
def planted():
    return plant(TASK, roles=["positive", "negative", "dummy"])


def write(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_circuits_come_back(planted, tmp_path, ending):
    circuits = planted.run.circuits()
    run = load_run(write(tmp_path / f"a.{ending}", KQ=circuits.KQ[0], OV=circuits.OV[0, :, TASK.dim :]))
    found, prompt = run.circuits(), TASK.sample(200)
    np.testing.assert_allclose(found.KQ, circuits.KQ, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.OV[:, :, TASK.dim :], circuits.OV[:, :, TASK.dim :], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.predict(prompt), circuits.predict(prompt), rtol=1e-5, atol=1e-5)
    heads = classify(found, [TASK.sample(4_000).to(dtype=torch.float64)], reference_shape(TASK, TASK.dim))
    assert heads.roles == planted.roles
    assert (run.model_config.dim, run.model_config.n_heads, run.model_config.n_outputs) == (4, 3, 1)
    assert run.format == "plain arrays of circuits"
    assert run.origin == str(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_two_numbers_a_head(planted, tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", omega=planted.omega, mu=planted.mu)
    run = load_run(path, Given(dim=4))
    circuits = run.circuits()
    np.testing.assert_allclose(circuits.omega[0], planted.omega, atol=1e-12)
    np.testing.assert_allclose(circuits.mu[0, :, 0], planted.mu, atol=1e-12)
    assert not circuits.KQ[..., 4, :].any()
    assert not circuits.OV[..., 4, :4].any()
    prompt = TASK.sample(200)
    torch.testing.assert_close(
        circuits.predict(prompt), planted.run.circuits().predict(prompt), rtol=1e-4, atol=1e-5
    )  # planted in single precision
    np.testing.assert_allclose(icl.Run.load(path, dim=4).circuits().KQ, circuits.KQ)
    np.testing.assert_allclose(icl.analyze(path, TASK, probes=["circuit_pattern"]).circuits.KQ, circuits.KQ)
    with pytest.raises(CheckpointError, match=r"ω and μ alone do not say what d is: pass dim= to Run.load, a task, or"):
        load_run(path)


def test_a_diagonal_and_several_responses(tmp_path):
    omega, mu = np.arange(6.0).reshape(2, 3), np.array([[1.0, -2.0], [0.5, 0.0]])
    run = load_run(write(tmp_path / "a.npz", omega=omega, mu=mu))
    circuits = run.circuits()
    assert (circuits.dim, circuits.n_outputs) == (3, 2)
    np.testing.assert_allclose(circuits.KQ_11[0], [np.diag(row) for row in omega])
    np.testing.assert_allclose(circuits.OV_22[0], [np.diag(row) for row in mu])


def test_arrays_in_memory():
    KQ, OV = torch.randn(2, 4, 4), torch.randn(2, 1, 4)
    np.testing.assert_allclose(load_run({"KQ": KQ, "OV": OV}).circuits().KQ[0], KQ.double(), atol=1e-12)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"KQ": np.ones((2, 4, 4)), "OV": np.ones((2, 4))}, r"OV must have axes \(heads, outputs, d_model\)"),
        ({"KQ": np.ones((2, 4, 3)), "OV": np.ones((2, 1, 3))}, r"got \(2, 4, 3\) and \(2, 1, 3\)"),
        ({"KQ": np.ones((2, 4, 4)), "OV": np.ones((3, 1, 4))}, r"got \(2, 4, 4\) and \(3, 1, 4\)"),
        ({"KQ": np.ones((2, 4, 4)), "OV": np.ones((2, 4, 4))}, "KQ must have shape"),
        ({"KQ": np.ones((0, 4, 4)), "OV": np.ones((0, 1, 4))}, "KQ must have shape"),
        ({"KQ": np.full((2, 4, 4), np.nan), "OV": np.ones((2, 1, 4))}, "must be finite"),
        ({"KQ": np.ones((2, 4, 4)), "OV": np.ones((2, 1, 4)), "W_E": np.ones(3)}, "it also holds W_E, which would be"),
        ({"omega": np.ones(2), "mu": np.ones(3)}, r"got \(2,\) and \(3,\)"),
        ({"omega": np.ones((2, 3)), "mu": np.ones((2, 1, 1))}, r"omega must have shape"),
        ({"omega": np.float64(1.0), "mu": np.float64(1.0)}, r"got \(\) and \(\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, said):
    path = write(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match=f"a.npz: an npz file, recognised as plain arrays of circuits: .*{said}"):
        load_run(path, Given(dim=3))


def test_what_was_given_must_agree(tmp_path):
    path = write(tmp_path / "a.npz", KQ=np.ones((2, 4, 4)), OV=np.ones((2, 1, 4)))
    for given, said in (
        (Given(dim=5), "dim is 3 in .*, 5 was given"),
        (Given(n_heads=3), "n_heads is 2 in"),
        (Given(n_outputs=2), "n_outputs is 1 in"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_run(path, given)
