"""`icl-interp sweep`: a grid on the command line or in a file."""

import pytest

from icl_interp.cli import main
from icl_interp.sweeps import Sweep

LINE = ["--dim=2", "--length=4", "--steps=20", "--batch-size=8", "--workers=1", "--probe=circuit_pattern"]
LINE.append("--budget=64")


def run(capsys, *arguments):
    status = main(["sweep", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_grid_on_the_command_line_and_again(tmp_path, capsys):
    out = tmp_path / "sweep"
    status, said, _ = run(capsys, "--heads", "1, 2", "--noise-var", "0.1,0.3", "--seeds", 2, "--out", out, *LINE)
    assert status == 0
    assert "circuit_pattern.kq_diagonal " in said
    assert "8 rows" in said
    rows = Sweep.load(out).to_pandas()
    assert set(zip(rows["n_heads"], rows["noise_var"], strict=True)) == {(1, 0.1), (1, 0.3), (2, 0.1), (2, 0.3)}
    assert run(capsys, "--heads", "1,2,3", "--out", out, *LINE)[0] == 0
    assert len(Sweep.load(out).to_pandas()) == 8 + 1  # at σ² = 0.1, the default, and seed 0 that of three heads is new


def test_a_grid_in_a_file_with_options_beside_it(tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'out = "{tmp_path / "out"}"\nprobes = ["circuit_pattern"]\nbudget = 64\nworkers = 1\nseeds = 5\n'
        "[grid]\ndim = 3\nsparsity = [1, 2]\nlength = 4\nsteps = 10\nbatch_size = 8\nn_layers = 2\nread_out = true\n"
    )
    assert run(capsys, file, "--seeds", 1)[0] == 0
    rows = Sweep.load(tmp_path / "out").to_pandas()
    assert (set(rows["task"]), set(rows["sparsity"]), len(rows)) == ({"SparseRegression"}, {1, 2}, 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--heads", "1"], "say where the rows go: --out FOLDER"),
        (["--heads", "two", "--out", "x"], "--heads takes whole numbers with commas between, got 'two'"),
        (["--lr", "1e-3,", "--out", "x"], "--lr takes numbers with commas between, got '1e-3,'"),
        (["nowhere.toml"], "nowhere.toml cannot be read as TOML"),
        (["--heads", "0", "--out", "x"], "n_heads must be a whole number ≥ 1, got 0"),
    ],
)
def test_what_is_misused(tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert complaint in error
    assert not list(tmp_path.iterdir())


def test_a_file_with_something_else_in_it(tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text('out = "x"\nn_heads = [1, 2]\n')
    status, _, error = run(capsys, file)
    assert status == 2
    assert "a sweep has no n_heads; parameters to vary go under [grid]" in error


def test_runs_that_failed_are_told(tmp_path, capsys):
    status, _, error = run(capsys, "--lr", "1e-3,1e6", "--optimizer", "sgd", "--out", tmp_path / "sweep", *LINE)
    assert status == 1
    assert "1 of 2 runs failed" in error
