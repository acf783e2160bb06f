"""The command line: what it prints, what it leaves on disk, and how it ends."""

import dataclasses
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import room_for
from safetensors.torch import save_file

from icl_interp import train
from icl_interp.cli import FAILED, INTERRUPTED, MISUSED, OK, main
from icl_interp.cli.options import parser
from icl_interp.probing import discover, registry
from icl_interp.records import Run
from icl_interp.serialization import from_data
from icl_interp.tasks import KMS, LinearRegression, MultiTaskRegression, Task
from icl_interp.testing import plant

SMALL = ["--dim", "3", "--length", "6", "--batch-size", "16", "--steps", "30", "--records", "5"]
README = (Path(__file__).parents[1] / "README.md").read_text()
COMMAND = [sys.executable, "-c", "import sys; from icl_interp.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return plant(LinearRegression(3, 8), roles=("positive", "negative", "dummy")).run.save(
        tmp_path_factory.mktemp("runs") / "planted"
    )


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    discover()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def invoke(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as left:  # argparse
        status = left.code
    return status, *capsys.readouterr()


def complaint(capsys, *arguments):
    """Exit status and the one line on standard error."""
    status, _, error = invoke(capsys, *arguments)
    lines = error.splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("icl-interp: ")
    return status, lines[0].removeprefix("icl-interp: ")


def run(*arguments, **options):
    options = {"capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **options)


# --- Fine -------------------------------------------------------------------------------------------------------------


def test_train_then_analyze(capsys, tmp_path):
    out = tmp_path / "runs" / "small"
    arguments = ["train", *SMALL, "--heads", "3", "--covariance", "kms:0.5", "--mean", "1", "2", "3", "--seed", "7"]
    status, output, error = invoke(capsys, *arguments, "--out", out)
    assert (status, error) == (OK, "")  # and no progress bar, where nobody watches
    assert re.fullmatch(rf"30 steps, loss \d\.\d{{4}}, saved to {out}\n", output)
    trained = Run.load(out)
    assert trained.task == LinearRegression(3, 6, covariance=KMS(0.5), mean=(1.0, 2.0, 3.0))
    assert (trained.model_config.n_heads, trained.seed, trained.step) == (3, 7, 30)

    status, output, error = invoke(capsys, "analyze", out, "--budget", "40", "--seed", "2")
    assert (status, error) == (OK, "")
    assert f"icl-interp: {out}" in output
    page = (out / "report.html").as_uri()
    assert output.endswith(f"written: {out / 'report.md'}, {out / 'report.json'} and, to open in a browser,\n{page}\n")
    report = json.loads((out / "report.json").read_text())
    assert (report["provenance"]["budget"], report["provenance"]["analysis_seed"]) == (40, 2)
    assert (out / "report.md").read_text().startswith("# icl-interp: ")
    Run.load(out)  # the reports beside it are no harm


def test_every_training_option_arrives(capsys, tmp_path):
    options = {
        "--layers": "2",
        "--d-head": "2",
        "--mask": "strict_causal",
        "--lr": "0.01",
        "--optimizer": "adamw",
        "--weight-decay": "0.1",
        "--noise-var": "0.3",
        "--data-seed": "9",
        "--engine": "torch",
        "--device": "cpu",
    }
    flat = [part for pair in options.items() for part in pair]
    assert invoke(capsys, "train", *SMALL, *flat, "--out", tmp_path / "r")[0] == OK
    trained = Run.load(tmp_path / "r")
    model, how = trained.model_config, trained.training
    assert (model.n_layers, model.d_head, model.mask) == (2, 2, "strict_causal")
    assert (how.lr, how.optimizer, how.weight_decay, how.batch_size, how.n_records) == (0.01, "adamw", 0.1, 16, 5)
    assert (how.data_seed, trained.versions["engine"]) == (9, "torch")
    assert trained.task == LinearRegression(3, 6, noise_var=0.3)


def test_a_covariance_from_a_file(capsys, tmp_path):
    sigma = np.array([[1, 0.2, 0], [0.2, 2, 0], [0, 0, 1]])
    np.savetxt(tmp_path / "sigma.txt", sigma)
    arguments = ["train", *SMALL, "--covariance", tmp_path / "sigma.txt", "--out", tmp_path / "r"]
    assert invoke(capsys, *arguments)[0] == OK
    np.testing.assert_allclose(Run.load(tmp_path / "r").task.sigma, sigma)


def test_overwrite(capsys, tmp_path):
    arguments = ["train", *SMALL, "--out", tmp_path / "r"]
    assert invoke(capsys, *arguments)[0] == OK
    assert complaint(capsys, *arguments) == (
        MISUSED,
        f"{tmp_path / 'r'} already holds a run; choose another place, or overwrite it",
    )
    assert invoke(capsys, *arguments, "--overwrite", "--seed", "3")[0] == OK
    assert Run.load(tmp_path / "r").seed == 3


def test_resume_begins_goes_on_and_is_content_with_what_is_finished(capsys, tmp_path):
    """The same line again and again, whatever happens to it."""
    out = tmp_path / "r"
    line = ["train", *SMALL[:-4], "--steps", "60000", "--batch-size", "256", "--records", "20", "--out", out]
    line += ["--resume", "--save-every", "0.05"]
    with subprocess.Popen([*COMMAND, *map(str, line)], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        state = tmp_path / ".r.training" / "state.safetensors"
        while not state.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert state.exists()
    assert not out.exists()
    status, _, error = invoke(capsys, *[part for part in line if part != "--resume"])
    assert status == MISUSED
    assert "was cut short; its state is in" in error
    for _ in range(2):
        status, output, error = invoke(capsys, *line)
        assert status == OK, error
        assert output.startswith("60,000 steps, loss ")
    assert not state.exists()
    assert Run.load(out).step == 60_000


def test_analyze_elsewhere_and_only_some(capsys, tmp_path, run_folder):
    before = sorted(p.name for p in run_folder.iterdir())
    arguments = ["--probe", "head_roles", "--probe", "circuit_pattern", "--budget", "40", "--out", tmp_path / "a" / "b"]
    assert invoke(capsys, "analyze", run_folder, *arguments)[0] == OK
    assert list(json.loads((tmp_path / "a" / "b" / "report.json").read_text())["probes"]) == [
        "head_roles",
        "circuit_pattern",
    ]
    assert sorted(p.name for p in run_folder.iterdir()) == before


def test_the_same_command_writes_the_same_bytes(capsys, tmp_path, run_folder):
    for name in ("a", "b"):
        invoke(capsys, "analyze", run_folder, "--budget", "40", "--out", tmp_path / name)
    for file in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.slow
def test_the_demo_trains_analyzes_and_says_where_the_report_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # its own folder is replaced
        status, output, error = invoke(capsys, "demo", "--steps", "30", "--seed", "3")
        assert (status, error) == (OK, "")
    folder = tmp_path / "runs" / "demo"
    trained = Run.load(folder)
    assert (trained.model_config.n_heads, trained.task) == (4, LinearRegression(dim=5, length=40, noise_var=0.1))
    assert (trained.step, trained.seed) == (30, 3)
    assert {"report.html", "report.md", "report.json"} < {p.name for p in folder.iterdir()}
    assert "training 4 heads for 30 steps" in output
    assert "risk_of_debiased_gd" in output
    assert output.endswith(f"{(folder / 'report.html').as_uri()}\n")


@pytest.mark.slow
def test_the_demo_replaces_no_run_of_the_users(capsys, tmp_path, run_folder):
    status, _output, error = invoke(capsys, "demo", "--steps", "30", "--out", run_folder)
    assert status == MISUSED
    assert str(run_folder) in error
    assert Run.load(run_folder).step is None  # as it was
    copy = Run.load(run_folder).save(tmp_path / "copy")
    assert invoke(capsys, "demo", "--steps", "30", "--out", copy, "--overwrite")[0] == OK
    assert Run.load(copy).step == 30


def test_the_probes_are_listed(capsys):
    status, output, _ = invoke(capsys, "probes")
    assert status == OK
    for known in discover()[0].values():
        assert f"{known.name:<18}{known.title}" in output
    assert re.search(r"for models of one layer; needs weights, forward, task; takes \w+", output)


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["analyze"], ["reproduce"], ["probes"]])
def test_help_shows_examples(capsys, command):
    status, output, _ = invoke(capsys, *command, "--help")
    assert status == OK
    examples = output[output.index("example") :]
    assert f"  icl-interp {' '.join(command)}".rstrip() in examples


@pytest.mark.parametrize("command", ["demo", "train", "analyze", "compare", "sweep", "probes", "reproduce"])
def test_the_examples_in_the_help_and_the_readme_are_commands(capsys, command):
    """Each parses: an option that was renamed would be refused before the missing run is."""
    _, output, _ = invoke(capsys, command, "--help")
    examples = output[output.index("examples:") :].splitlines()[1:]
    assert examples
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
    written = re.findall(rf"icl-interp {command}\b[^#&\n]*", shell)
    assert written
    for example in (*examples, *written):
        assert parser().parse_args(example.split()[1:]).command


def test_the_version(capsys):
    assert invoke(capsys, "--version") == (OK, f"icl-interp {version('icl-interp')}\n", "")


# --- Checkpoints of other makes ---------------------------------------------------------------------------------------


@pytest.fixture
def heads4(tmp_path):
    """A file of the published code."""
    run = plant(LinearRegression(3, 8), roles=("positive", "negative")).run
    heads, width = run.model_config.n_heads, run.model_config.d_model
    W = {name: weight[0].float() for name, weight in run.weights.items()}
    held = {f"attention_layer.{n}_proj.weight": W[f"W_{n.upper()}"].mT.reshape(heads * width, width) for n in "qkv"}
    held["attention_layer.o_proj.weight"] = W["W_O"][..., 3:].reshape(heads * width, 1).mT
    torch.save({name: weight.clone() for name, weight in held.items()}, tmp_path / "heads4.pt")
    return tmp_path / "heads4.pt"


@pytest.fixture
def two_responses(tmp_path):
    np.savez(tmp_path / "two.npz", omega=[[0.1, 0.1, 0.0], [-0.1, -0.1, 0.0]], mu=[[4.0, 1.0], [-4.0, -1.0]])
    return tmp_path / "two.npz"


def report_of(file):
    return json.loads((file.with_name(f"{file.name}.report") / "report.json").read_text())


def test_a_file_and_its_task(capsys, heads4):
    status, output, error = invoke(capsys, "analyze", heads4, "--length", 8, "--noise-var", 0.1, "--budget", 60)
    assert (status, error) == (OK, "")
    folder = heads4.parent / "heads4.pt.report"
    assert f"written: {folder / 'report.md'}" in output
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "report.json"}
    assert "recognised as: a checkpoint of the published code" in output
    assert "task (given): LinearRegression(dim=3, length=8, noise_var=0.1, covariance=None" in output
    assert "assumed: the covariates have Σ = I and mean 0: neither --covariance nor --mean was given\n" in output
    assert "assumed: β ~ N(0, I/d), and the query's response carries noise" in output
    found = report_of(heads4)
    statuses = {name: outcome["status"] for name, outcome in found["probes"].items()}
    assert statuses.pop("dynamics") == "skipped"
    assert statuses.pop("preconditioner") == "not_applicable"  # of isotropic covariates
    assert set(statuses.values()) == {"done"}
    for sentence in found["provenance"]["assumed"]:
        assert sentence in (folder / "report.md").read_text().replace("\\", "")


def test_a_file_without_a_task_says_what_is_missing(capsys, heads4):
    status, output, error = invoke(capsys, "analyze", heads4, "--budget", 60)
    assert (status, error) == (OK, "")
    assert "task: not known: L and σ² did not come with the checkpoint; pass task= to analyze(), or --length" in output
    assert output.count("skipped: needs the task (pass task=, or --length and --noise-var on the command line)") == 9
    assert "kq_diagonal" in output  # what needs no task is measured all the same
    assert "Σ = I" not in output


def test_files_side_by_side_keep_their_reports_apart(capsys, heads4):
    other = heads4.with_suffix(".safetensors")
    save_file(torch.load(heads4, weights_only=True), other)
    (heads4.parent / "report.html").write_text("of something else")
    for file in (heads4, other):
        assert invoke(capsys, "analyze", file, "--probe", "circuit_pattern")[0] == OK
        assert report_of(file)["provenance"]["origin"] == str(file)
    assert (heads4.parent / "report.html").read_text() == "of something else"


def test_the_weights_of_a_run_are_the_run(capsys, tmp_path, run_folder):
    folder = Run.load(run_folder).save(tmp_path / "r")
    assert invoke(capsys, "analyze", folder / "weights.safetensors", "--probe", "circuit_pattern")[0] == OK
    assert (folder / "report.html").is_file()
    assert not list(folder.glob("*.report"))


def given_task(file):
    provenance = report_of(file)["provenance"]
    return from_data(Task, provenance["task"]), provenance


@pytest.mark.parametrize(
    ("options", "task", "assumed"),
    [
        (["--covariance", "kms:0.5"], {"covariance": KMS(0.5)}, "the covariates have mean 0: --mean was not given"),
        (["--mean", 1, 2, 3], {"mean": (1.0, 2.0, 3.0)}, "the covariates have Σ = I: --covariance was not given"),
        (["--mean", 2, "--covariance", "kms:0.5"], {"mean": 2.0, "covariance": KMS(0.5)}, None),
        (["--dim", 3, "--outputs", 1, "--heads", 2, "--mask", "strict_causal"], {}, "the covariates have Σ = I and"),
    ],
)
def test_every_word_on_the_task_arrives(capsys, heads4, options, task, assumed):
    line = ["--length", 7, "--noise-var", 0.2, "--probe", "head_roles", "--budget", 40]
    status, _, error = invoke(capsys, "analyze", heads4, *options, *line)
    assert (status, error) == (OK, "")
    found, provenance = given_task(heads4)
    assert (found, provenance["task_from"]) == (LinearRegression(3, 7, noise_var=0.2, **task), "given")
    about_x = [sentence for sentence in provenance["assumed"] if sentence.startswith("the covariates")]
    assert [sentence[: len(assumed or "")] for sentence in about_x] == ([assumed] if assumed else [])


def test_a_run_has_a_task_to_take_the_rest_from(capsys, tmp_path, run_folder):
    out = ["--probe", "head_roles", "--budget", 40, "--out", tmp_path]
    assert invoke(capsys, "analyze", run_folder, "--length", 20, "--mean", 1, *out)[0] == OK
    provenance = json.loads((tmp_path / "report.json").read_text())["provenance"]
    assert from_data(Task, provenance["task"]) == dataclasses.replace(Run.load(run_folder).task, length=20, mean=1.0)
    assert (provenance["task_from"], provenance["assumed"]) == ("given", [])


def test_several_responses(capsys, two_responses):
    line = ["--length", 8, "--noise-var", 0.1, "--probe", "head_roles", "--budget", 40]
    assert complaint(capsys, "analyze", two_responses, *line) == (
        MISUSED,
        "the model has 2 responses: say with --supports which features each depends on, as in --supports "
        '"0,1,2,3;2,3,4,5"',
    )
    assert invoke(capsys, "analyze", two_responses, *line, "--supports", "1,0;1, 2")[0] == OK
    found, provenance = given_task(two_responses)
    assert found == MultiTaskRegression(3, [(0, 1), (1, 2)], 8)
    assert "the covariates are x ~ N(0, I)" in provenance["assumed"]
    assert any(sentence.startswith("every response has a β of its own") for sentence in provenance["assumed"])


def test_a_run_of_several_responses_under_another_length(capsys, tmp_path):
    task = MultiTaskRegression(3, [(0, 1), (1, 2)], 8, shared_signal=True, signal_var=2.0)
    run = train(task, n_heads=2, steps=5, n_records=2, out=tmp_path / "r", progress=False)
    line = ["analyze", tmp_path / "r", "--probe", "head_roles", "--budget", 40]
    for option, changed in ((["--length", 20], {"length": 20}), (["--supports", "0;2"], {"supports": [[0], [2]]})):
        assert invoke(capsys, *line, *option)[0] == OK
        provenance = json.loads((tmp_path / "r" / "report.json").read_text())["provenance"]
        assert from_data(Task, provenance["task"]) == dataclasses.replace(run.task, **changed)
    status, said = complaint(capsys, *line, "--mean", 1)
    assert (status, said) == (
        MISUSED,
        "several responses share covariates x ~ N(0, I): leave --covariance and --mean out",
    )


@pytest.mark.parametrize(
    ("options", "got"),
    [
        (["--length", 8], "--length"),
        (["--noise-var", 0.1], "--noise-var"),
        (["--mean", 0], "--mean"),
        (["--covariance", "kms:0.5", "--length", 8], "--length, --covariance"),
        (["--supports", "0,1"], "--supports"),
    ],
)
def test_half_a_task_is_none(capsys, heads4, options, got):
    status, line = complaint(capsys, "analyze", heads4, *options)
    assert status == MISUSED
    assert line == (
        f"a task needs both --length and --noise-var, and {heads4} has no task to take them from; got only {got}"
    )
    assert not heads4.with_name("heads4.pt.report").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dim", 0], "--dim must be a whole number ≥ 1, got 0"),
        (["--outputs", -1], "--outputs must be a whole number ≥ 1, got -1"),
        (["--heads", 0], "--heads must be a whole number ≥ 1, got 0"),
        (["--attn-scale", 0], "--attn-scale must be a finite number > 0, got 0"),
        (["--attn-scale", "nan"], "--attn-scale must be a finite number > 0, got nan"),
        (["--dim", 4], "dim is 3 in "),
        (["--heads", 3], "n_heads is 2 in "),
        (["--length", 0, "--noise-var", 1], "length must be a whole number ≥ 1, got 0"),
        (["--length", 8, "--noise-var", -1], "noise_var must be a finite number ≥ 0, got -1.0"),
        (["--length", 8, "--noise-var", 1, "--mean", 1, 2], "mean must be one finite number or 3 of them"),
        (["--length", 8, "--noise-var", 1, "--covariance", "gone"], "--covariance must be kms:RHO or a text file"),
        (["--length", 8, "--noise-var", 1, "--supports", "0,3"], "supports[0] must be features among 0 … 2, each once"),
        (["--length", 8, "--noise-var", 1, "--supports", "0;1"], "n_outputs is 1 in "),
        (["--supports", "0;1", "--outputs", 1], "--supports has 2 sets, one for each response, and --outputs is 1"),
        (["--supports", "0,;1"], "--supports must be sets of features, one for each response, as in "),
        (["--supports", ""], "--supports must be sets of features, one for each response, as in "),
        (["--supports", "0,1", "--mean", 1, "--length", 8, "--noise-var", 1], "several responses share covariates"),
    ],
)
def test_a_file_with_what_cannot_be(capsys, heads4, options, said):
    status, line = complaint(capsys, "analyze", heads4, *options)
    assert status == MISUSED
    assert line.startswith(said)
    assert not heads4.with_name("heads4.pt.report").exists()


def test_a_files_name_does_not_steer_the_terminal(capsys, heads4):
    odd = heads4.rename(heads4.with_name("\x1b[31m\u202e.pt"))
    _, output, _ = invoke(capsys, "analyze", odd, "--probe", "circuit_pattern")
    assert "written: " in output
    assert all(line.isprintable() for line in output.split("\n"))
    _, line = complaint(capsys, "analyze", odd, "--length", 8)
    assert line.isprintable()


# --- The README's probe -----------------------------------------------------------------------------------------------


def test_the_readmes_probe_runs_from_a_file(capsys, tmp_path, run_folder):
    (example,) = re.findall(r"```python\n(from dataclasses .*?)```", README, flags=re.DOTALL)
    (tmp_path / "bias.py").write_text(example)
    arguments = ["--probe", tmp_path / "bias.py", "--budget", "200", "--out", tmp_path / "report"]
    status, output, error = invoke(capsys, "analyze", run_folder, *arguments)
    assert (status, error) == (OK, "")
    assert "Does the model predict too much on average?" in output
    assert "unbiased" in output
    assert json.loads((tmp_path / "report" / "report.json").read_text())["probes"]["bias"]["status"] == "done"
    page = (tmp_path / "report" / "report.html").read_text()
    assert '<article class="card" id="probe-bias"' in page
    assert "load_file(&#39;bias.py&#39;)" in page


def test_a_file_and_a_name_and_each_once(capsys, tmp_path, run_folder):
    (example,) = re.findall(r"```python\n(from dataclasses .*?)```", README, flags=re.DOTALL)
    (tmp_path / "bias.py").write_text(example)
    probes = [part for probe in ("bias.py", "head_roles", "bias.py") for part in ("--probe", probe)]
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert invoke(capsys, "analyze", run_folder, *probes, "--budget", "40", "--out", "report")[0] == OK
    finally:
        os.chdir(here)
    assert list(json.loads((tmp_path / "report/report.json").read_text())["probes"]) == ["bias", "head_roles"]


# --- Misused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heads", "0"], "n_heads must be a whole number ≥ 1, got 0"),
        (["--layers", "-1"], "n_layers must be a whole number ≥ 1, got -1"),
        (["--steps", "0"], "steps must be a whole number ≥ 1, got 0"),
        (["--seed", "-1"], "seed must be a whole number ≥ 0, got -1"),
        (["--records", "1"], "n_records must be a whole number ≥ 2, got 1"),
        (["--noise-var", "-0.1"], "noise_var must be a finite number ≥ 0, got -0.1"),
        (["--lr", "nan"], "lr must be a finite number > 0, got nan"),
        (["--mean", "1", "2"], "mean must be one finite number or 3 of them, got (1.0, 2.0)"),
        (["--covariance", "kms:2"], "--covariance kms:RHO needs −1 < RHO < 1, got 'kms:2'"),
        (["--covariance", "kms:half"], "--covariance kms:RHO needs −1 < RHO < 1, got 'kms:half'"),
        (["--covariance", "gone.txt"], "--covariance must be kms:RHO or a text file of d rows of d numbers, got"),
        (["--covariance", "/"], "--covariance must be kms:RHO or a text file of d rows of d numbers, got '/'"),
        (["--device", "tpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
    ],
)
def test_train_with_what_cannot_be(capsys, tmp_path, arguments, said):
    status, line = complaint(capsys, "train", *SMALL, *arguments, "--out", tmp_path / "r")
    assert status == MISUSED
    assert line.startswith(said)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ("1 2 0\n2 1 0\n0 0 1\n", "covariance must be positive definite, got a smallest eigenvalue of -1"),
        ("1 0\n0 1\n", "covariance must have shape (3, 3) for dim=3, got (2, 2)"),
        ("1 0 0\n0.5 1 0\n0 0 1\n", "covariance must be symmetric"),
        ("1 0 0\n0 nan 0\n0 0 1\n", "covariance must be finite"),
        ("", "covariance must have shape (3, 3) for dim=3, got"),
        ("1 0\n0 1 0\n", "--covariance must be kms:RHO or a text file of d rows of d numbers, got"),
        ("one two\n", "--covariance must be kms:RHO or a text file of d rows of d numbers, got"),
        ("\x00\x01\x02", "--covariance must be kms:RHO or a text file of d rows of d numbers, got"),
    ],
)
def test_train_with_a_bad_covariance_file(capsys, tmp_path, matrix, said):
    (tmp_path / "sigma.txt").write_text(matrix)
    arguments = ["--covariance", tmp_path / "sigma.txt", "--out", tmp_path / "r"]
    status, line = complaint(capsys, "train", *SMALL, *arguments)
    assert status == MISUSED
    assert line.startswith(said)


def test_train_over_what_is_not_ours(capsys, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for arguments in ([], ["--overwrite"]):
        status, line = complaint(capsys, "train", *SMALL, *arguments, "--out", tmp_path / "thesis")
        assert (status, line) == (
            MISUSED,
            f"{tmp_path / 'thesis'} exists and is not a run of ours; choose another place",
        )
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "-1"], "seed must be a whole number ≥ 0, got -1"),
        (["--budget", "0"], "budget must be a whole number ≥ 1, got 0"),
        (["--probe", "typo"], "no probe 'typo'; there are circuit_pattern, head_roles, kernel_fit, "),
        (["--probe", "gone.py"], "no probe file at "),
        (["--device", "cuda:99"], "device 'cuda:99' was asked for, but torch sees "),
    ],
)
def test_analyze_with_what_cannot_be(capsys, tmp_path, run_folder, arguments, said):
    status, line = complaint(capsys, "analyze", run_folder, "--out", tmp_path / "report", *arguments)
    assert status == MISUSED
    assert line.startswith(said)
    assert not (tmp_path / "report").exists()


def test_a_probe_file_that_raises_on_import(capsys, tmp_path, run_folder):
    (tmp_path / "bad.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    status, line = complaint(capsys, "analyze", run_folder, "--probe", tmp_path / "bad.py")
    assert (status, line) == (
        MISUSED,
        f"{tmp_path / 'bad.py'} could not be loaded: RuntimeError: first line second line",
    )


@pytest.mark.parametrize(
    "arguments",
    [[], ["frobnicate"], ["train"], ["analyze"], ["analyze", "r", "--seed", "one"], ["train", "--hedas", "2"]],
)
def test_what_is_no_command(capsys, arguments):
    status, output, error = invoke(capsys, *arguments)
    assert (status, output) == (MISUSED, "")
    assert error.startswith("usage: icl-interp")
    assert "error: " in error.splitlines()[-1]


# --- Failed -----------------------------------------------------------------------------------------------------------


def test_analyze_what_is_not_there(capsys, tmp_path):
    """A mistyped path is a mistake in the command; a damaged run is not."""
    status, line = complaint(capsys, "analyze", tmp_path / "gone")
    assert status == MISUSED
    assert "does not exist" in line
    (tmp_path / "pictures").mkdir()
    status, line = complaint(capsys, "analyze", tmp_path / "pictures")
    assert status == MISUSED
    assert "is not a run: expected a folder with run.json" in line


@pytest.mark.parametrize("command", [["analyze"], ["train", *SMALL, "--out"]])
def test_a_name_longer_than_any_file_has(capsys, command):
    status, line = complaint(capsys, *command, "x" * 5000)
    assert status in (FAILED, MISUSED)
    assert "File name too long" in line or "does not exist" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_output_to_a_full_disk(capsys, monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it is part of the test
    monkeypatch.setattr(sys, "stdout", full)
    status, line = complaint(capsys, "probes")
    assert (status, line) == (FAILED, "[Errno 28] No space left on device")
    with pytest.raises(OSError, match="No space left"):
        full.close()


@pytest.mark.parametrize("file", ["run.json", "weights.safetensors", "dynamics.safetensors"])
def test_analyze_a_truncated_run(capsys, tmp_path, file):
    out = tmp_path / "r"
    invoke(capsys, "train", *SMALL, "--out", out)
    whole = (out / file).read_bytes()
    (out / file).write_bytes(whole[: len(whole) // 2])
    status, line = complaint(capsys, "analyze", out)
    assert status == FAILED
    assert file in line


def test_what_a_file_says_does_not_steer_the_terminal(capsys, tmp_path):
    out = tmp_path / "r"
    invoke(capsys, "train", *SMALL, "--out", out)
    description = json.loads((out / "run.json").read_text())
    description["model"]["\x1b[2J\x07\u202eevil"] = 1
    (out / "run.json").write_text(json.dumps(description))
    status, line = complaint(capsys, "analyze", out)
    assert status == FAILED
    assert "evil" in line
    assert line.isprintable()


CRASH = """
from icl_interp.probes import Need, probe

@probe(name="crash", title="Will it crash?", needs=Need.NONE)
class Crash:
    def run(self, context):
        raise RuntimeError("no luck")

    def blocks(self, result):
        return []

    def judge(self, result):
        return []
"""


def test_a_probe_that_raises_is_reported_and_the_others_are_shown(capsys, tmp_path, run_folder):
    (tmp_path / "crash.py").write_text(CRASH)
    arguments = [
        "--probe",
        tmp_path / "crash.py",
        "--probe",
        "head_roles",
        "--budget",
        "40",
        "--out",
        tmp_path / "report",
    ]
    status, output, error = invoke(capsys, "analyze", run_folder, *arguments)
    assert (status, error) == (FAILED, "icl-interp: probes that did not finish: crash\n")
    assert "failed: RuntimeError: no luck" in output
    assert "sign_matching" in output
    probes = json.loads((tmp_path / "report" / "report.json").read_text())["probes"]
    assert [p["status"] for p in probes.values()] == ["failed", "done"]
    assert "no luck" in (tmp_path / "report" / "report.md").read_text()


def test_a_report_that_cannot_be_written_does_not_hide_what_was_found(capsys, tmp_path, run_folder):
    (tmp_path / "file").write_text("in the way")
    arguments = ["--probe", "head_roles", "--budget", "40", "--out", tmp_path / "file" / "report"]
    status, output, error = invoke(capsys, "analyze", run_folder, *arguments)
    assert status == FAILED
    assert re.fullmatch(r"icl-interp: could not write .*report\.json: \w.*\n", error)
    assert "sign_matching" in output
    assert "written:" not in output


def test_a_run_that_cannot_be_saved_is_rescued(capsys, tmp_path, own_temporary_folder):
    (tmp_path / "file").write_text("in the way")
    status, line = complaint(capsys, "train", *SMALL, "--out", tmp_path / "file" / "run")
    assert status in (FAILED, MISUSED)
    assert "file/run" in line
    if "what was trained is in " in line:  # unless it was refused before the first step
        place = Path(line.partition("what was trained is in ")[2])
        assert place.is_relative_to(own_temporary_folder)
        assert Run.load(place).step == 30


def test_a_training_that_diverges_keeps_what_it_had(capsys, tmp_path, own_temporary_folder):
    arguments = ["train", *SMALL, "--optimizer", "sgd", "--lr", "1e6", "--steps", "400", "--out", tmp_path / "r"]
    status, line = complaint(capsys, *arguments)
    assert status == FAILED
    assert re.match(
        r"the loss became (nan|inf) between steps \d+ and \d+: try a smaller lr \(it was 1000000\.0\);", line
    )
    Run.load(Path(line.partition("what was trained is in ")[2]))


def test_without_a_place_for_the_rescue_there_is_still_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    (tmp_path / "file").write_text("in the way")
    arguments = ["train", *SMALL, "--optimizer", "sgd", "--lr", "1e6", "--steps", "400", "--out", tmp_path / "r"]
    status, line = complaint(capsys, *arguments)
    assert status == FAILED
    assert "; nor could what was trained be kept: " in line


# --- The paper's figures ----------------------------------------------------------------------------------------------


@pytest.fixture
def own_figures(monkeypatch):
    """Figures that take no training, in place of the paper's."""
    from icl_interp.probing import Text, exact
    from icl_interp.reproduce import Claim, recipe, recipes

    recipes()
    monkeypatch.setattr(sys.modules[recipes.__module__], "_known", {})

    @recipe("figure-10", "Ten", "Figure 10")
    def ten(bench):
        return [Claim("it is ten", "differs", "It is nine.", "10", exact(9.0))], [Text("ten")]

    @recipe("figure-4", "Four", "Figure 4")
    def four(bench):
        return [Claim("it is four", "reproduced", "It is.")], []

    return recipe


def test_figures_are_made_kept_and_shown_together(capsys, tmp_path, own_figures):
    status, output, error = invoke(capsys, "reproduce", "figure-10", "--out", tmp_path)
    assert (status, error) == (OK, "")  # that a number differs is no failure of the command
    assert output.startswith("Figure 10: Ten\n  differs: it is ten (paper 10; ours 9): It is nine.\n")
    page = tmp_path / "quick" / "gallery.html"
    assert output.endswith(f"to open in a browser,\n{page.as_uri()}\n")
    assert "made-figure-4" not in page.read_text()
    status, output, _ = invoke(capsys, "reproduce", "figure-4", "--out", tmp_path)
    assert status == OK
    assert "Figure 10" not in output  # it is not made again
    assert page.read_text().index('id="made-figure-4"') < page.read_text().index('id="made-figure-10"')
    kept = json.loads((tmp_path / "quick" / "gallery.json").read_text())["reproductions"]
    assert [each["name"] for each in kept] == ["figure-4", "figure-10"]
    assert kept[1]["claims"][0]["ours"]["value"] == 9.0
    assert (tmp_path / "quick" / kept[1]["blocks"]).is_file()
    assert "| Figure 4 | it is four |" in (tmp_path / "quick" / "gallery.md").read_text()


def test_schedules_do_not_mix(capsys, tmp_path, own_figures):
    for schedule in ("quick", "paper"):
        assert invoke(capsys, "reproduce", "figure-4", "--schedule", schedule, "--out", tmp_path)[0] == OK
        result = json.loads((tmp_path / schedule / "results" / "figure-4.json").read_text())
        assert result["command"] == f"icl-interp reproduce figure-4 --schedule {schedule}"


def test_a_figure_that_crashes_is_visible_and_the_others_are_made(capsys, tmp_path, own_figures):
    @own_figures("figure-5", "Five", "Figure 5")
    def five(bench):
        raise RuntimeError("no luck")

    status, output, error = invoke(capsys, "reproduce", "all", "--out", tmp_path)
    assert (status, error) == (FAILED, "icl-interp: could not be made: figure-5\n")
    assert "Figure 5: Five\n  failed: RuntimeError: no luck\n" in output
    assert "Figure 10: Ten" in output
    page = (tmp_path / "quick" / "gallery.html").read_text()
    assert "RuntimeError: no luck" in page
    assert "Traceback" in page


def test_ctrl_c_keeps_the_figures_that_are_made(capsys, tmp_path, own_figures):
    @own_figures("figure-5", "Five", "Figure 5")
    def five(bench):
        raise KeyboardInterrupt

    status, _, error = invoke(capsys, "reproduce", "all", "--out", tmp_path)
    assert status == INTERRUPTED
    assert error == "icl-interp: interrupted; made so far: figure-4; the same command goes on from here\n"
    assert 'id="made-figure-4"' in (tmp_path / "quick" / "gallery.html").read_text()


def test_a_kept_result_that_is_damaged(capsys, tmp_path, own_figures):
    invoke(capsys, "reproduce", "all", "--out", tmp_path)
    (tmp_path / "quick" / "results" / "figure-10.json").write_text('{"name": "figure-10"')
    status, line = complaint(capsys, "reproduce", "figure-4", "--out", tmp_path)
    assert status == FAILED
    assert line.startswith("what was kept of figure-10 cannot be read, make it again: ")
    assert 'id="made-figure-4"' in (tmp_path / "quick" / "gallery.html").read_text()
    assert invoke(capsys, "reproduce", "figure-10", "--out", tmp_path)[0] == OK


@pytest.mark.parametrize(
    ("names", "said"), [(["figure-99"], "nothing called figure-99 can"), ([], "nothing called (no name) can")]
)
def test_a_figure_that_is_none(capsys, tmp_path, own_figures, names, said):
    status, line = complaint(capsys, "reproduce", *names, "--out", tmp_path / "out")
    assert status == MISUSED
    assert line == f"{said} be reproduced: name some of figure-4, figure-10, or all"
    assert not (tmp_path / "out").exists()


def test_the_list_of_figures(capsys, own_figures):
    status, output, error = invoke(capsys, "reproduce", "--list")
    assert (status, error) == (OK, "")
    assert output == "figure-4           Four (Figure 4)\nfigure-10          Ten (Figure 10)\n"


# --- Real processes ---------------------------------------------------------------------------------------------------


def test_the_console_script_is_this_function():
    (script,) = entry_points(group="console_scripts", name="icl-interp")
    assert script.load() is main


def test_a_full_disk_costs_the_run_nothing_but_its_place(capsys, tmp_path):
    """The limit stands for the disk, and holds for the place of rescue too: both are named, in one line."""
    with room_for(200):
        status, output, error = invoke(capsys, "train", *SMALL, "--out", tmp_path / "r")
    assert (status, output) == (FAILED, "")
    assert re.fullmatch(
        r"icl-interp: could not save the run to \S+/r: File too large; nor could what was trained be kept: could not "
        r"save the run to \S+/run: File too large\n",
        error,
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", [["train", *SMALL[:-4], "--records", "20"], ["demo"]])
def test_ctrl_c_saves_what_was_trained(tmp_path, command):
    """On a terminal, whose progress bar says when training is under way."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    arguments = [*command, "--steps", "50000000", "--out", str(tmp_path / "r")]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = ""
        patience = time.monotonic() + 60
        while not re.search(r"[1-9]\d+/50000000", shown) and time.monotonic() < patience:
            if select.select([ours], [], [], 1.0)[0]:
                shown += os.read(ours, 1000).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        shown += os.read(ours, 100_000).decode(errors="replace")
    os.close(ours)
    assert process.returncode == INTERRUPTED
    trained = Run.load(tmp_path / "r")
    assert 0 < trained.step < 50_000_000
    assert f"{trained.step:,} steps, loss " in output
    assert f"interrupted after {trained.step:,} of 50,000,000 steps; what was trained is saved" in shown
    assert "Traceback" not in shown


def test_a_pipe_that_nobody_reads_on_is_no_error(tmp_path, run_folder):
    """As in `icl-interp analyze runs/h4 | head -1`: the report is written all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ["analyze", run_folder, "--probe", "head_roles", "--budget", "40", "--out", tmp_path]
    done = run(*arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (OK, "")
    assert (tmp_path / "report.json").is_file()
    assert (tmp_path / "report.md").is_file()


def test_a_terminal_without_greek_still_shows_the_verdicts(capsys, monkeypatch, run_folder, tmp_path):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", narrow)
    status = main(["analyze", str(run_folder), "--probe", "head_roles", "--budget", "40", "--out", str(tmp_path)])
    assert status == OK
    assert b"sign_matching" in narrow.buffer.getvalue()
