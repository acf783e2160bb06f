"""`icl-interp analyze FILE` on every format: the report's first screen says what it was and what was assumed."""

import html
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from icl_interp.cli import main
from icl_interp.config import ModelConfig
from icl_interp.model import ICLTransformer
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant

RUN = plant(LinearRegression(dim=3, length=8), roles=["positive", "negative"]).run
CIRCUITS = RUN.circuits()
SIZES = ["--length", "8", "--noise-var", "0.1"]


def published(path):
    projections = {name: RUN.weights[f"W_{name.upper()}"][0].mT.reshape(8, 4) for name in "qkv"}
    projections["o"] = torch.cat([head[:, 3:].T for head in RUN.weights["W_O"][0]], 1)
    model = {f"attention_layer.{name}_proj.weight": weight.clone() for name, weight in projections.items()}
    omega, mu = (np.asarray(part, dtype=float).ravel() for part in (CIRCUITS.omega, CIRCUITS.mu))
    divided = omega * (4 / 5) ** 0.5
    dynamics = {"qk_dynamics": [[0.0, w] for w in divided.tolist()], "ov_dynamics": [[0.0, m] for m in mu.tolist()]}
    torch.save({"final_loss": 0.1, "training_losses": [1.0, 0.3], **dynamics, "model": model}, path)


def hooked(path):
    model = ICLTransformer.from_weights(RUN.model_config, RUN.weights)
    torch.save({**model.state_dict(), "embed.W_E": torch.zeros(1, 4)}, path)


FILES = {
    "published.pt": (published, [], "the published code of arXiv 2503.12734", "it is multiplied by 1.118"),
    "hooked.pt": (hooked, [], "a HookedTransformer", "scores are divided by √d_head = 2"),
    "mha.pt": (
        lambda path: torch.save(torch.nn.MultiheadAttention(4, 2, bias=False).state_dict(), path),
        ["--heads", "2"],
        "a torch.nn.MultiheadAttention",
        "there is one response",
    ),
    "circuits.npz": (
        lambda path: np.savez(path, KQ=CIRCUITS.KQ[0], OV=CIRCUITS.OV[0, :, 3:]),
        [],
        "plain arrays of circuits",
        "Σ = I and mean 0",
    ),
    "numbers.safetensors": (
        lambda path: save_file({"omega": torch.tensor([0.1, -0.1]), "mu": torch.tensor([3.0, -3.0])}, path),
        ["--dim", "3"],
        "plain arrays of circuits",
        "Σ = I and mean 0",
    ),
}


def first_screen(path):
    """The words of the panel on where things come from, and what stands above the claims."""
    text = path.read_text(encoding="utf-8")
    body = text[text.index("<body") :]
    return html.unescape(re.sub(r"<[^>]*>", " ", body[: body.index('<article class="card"')]))


@pytest.mark.parametrize("name", FILES)
def test_a_file(tmp_path, capsys, name):
    write, options, title, assumed = FILES[name]
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    assert main(["analyze", str(tmp_path / name), *options, *SIZES, "--budget", "64"]) == 0
    assert f"recognised as: {title}" in capsys.readouterr().out.replace("a checkpoint of ", "")
    screen = " ".join(first_screen(tmp_path / f"{name}.report" / "report.html").split())
    for said in (str(tmp_path / name), title, "assumed", assumed, "one layer, 2 heads, d = 3, N = 1"):
        assert said in screen, said
    assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.report"]


@pytest.mark.parametrize("what", ["", "weights.safetensors"])
def test_a_run(tmp_path, capsys, what):
    RUN.save(tmp_path / "run")
    assert main(["analyze", str(tmp_path / "run" / what), "--budget", "64"]) == 0
    assert "recognised as: a run of icl-interp" in capsys.readouterr().out
    screen = " ".join(first_screen(tmp_path / "run" / "report.html").split())
    assert "assumed nothing" in screen


def test_without_a_task_what_needs_one_is_skipped(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", KQ=CIRCUITS.KQ[0], OV=CIRCUITS.OV[0, :, 3:])
    assert main(["analyze", str(tmp_path / "a.npz"), "--budget", "64"]) == 0
    out = capsys.readouterr().out
    assert "not known: L and σ² did not come with the checkpoint" in out
    assert out.count("skipped: needs the task (pass task=, or --length and --noise-var on the command line)") == 9
    assert "kq_identity" in out


@pytest.mark.parametrize("name", ["mha.pt", "numbers.safetensors"])
def test_what_has_to_be_given_and_was_not_is_misuse(tmp_path, capsys, name):
    FILES[name][0](tmp_path / name)
    assert main(["analyze", str(tmp_path / name), *SIZES]) == 2
    said = capsys.readouterr().err
    assert f"{name}: " in said
    assert ", recognised as " in said
    assert "pass " in said


def test_names_in_a_file_steer_neither_a_terminal_nor_a_page(tmp_path, capsys):
    config = ModelConfig(dim=3)
    held = ICLTransformer(config, seed=0).state_dict()
    torch.save({**held, "\x1b[2J<script>alert(1)</script>": torch.zeros(1)}, tmp_path / "a.pt")
    assert main(["analyze", str(tmp_path / "a.pt")]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "it also holds �[2J<script>alert(1)</script>, which would be lost" in said

    evil = tmp_path / "<script>alert(1)"
    Run(config, ICLTransformer(config, seed=0).weights()).save(evil / "r")
    assert main(["analyze", str(evil / "r"), "--length", "8", "--noise-var", "0.1", "--budget", "64"]) == 0
    assert "<script>alert(1)" not in (evil / "r" / "report.html").read_text()
