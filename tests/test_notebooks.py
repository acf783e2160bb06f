"""The notebooks run from top to bottom, and open with pictures in them."""

import base64
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("hooks", "circuits", "write_a_probe")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def runner():
    spec = spec_from_file_location("notebooks_run", FOLDER / "run.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_these_are_all():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name, runner, tmp_path, monkeypatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "json")  # pictures are made without a browser's help
    before = read(name)
    after = runner.run(read(name), tmp_path)  # raises where a cell does
    for old, new in zip(code_of(before), code_of(after), strict=True):
        said = [output.output_type for output in new.outputs if output.get("name") != "stderr"]
        assert "error" not in said
        if "not-kept" not in old.metadata.get("tags", []):
            assert len(said) == len(old.outputs), new.source  # what it shows here it has shown there


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_its_pictures(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # once, in order
    figures = [o.data for cell in cells for o in cell.outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert figures
    for figure in figures:  # for whoever only looks
        assert base64.b64decode(figure["image/png"]).startswith(b"\x89PNG")
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_nothing_away_and_says_nothing_twice(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not any(word in text for word in ("Traceback", "Warning", "/tmp", "/home", "/root", "site-packages"))
    words = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    assert words[0].startswith("# ")
    assert len(set(words)) == len(words)


def test_running_leaves_out_what_differs_from_time_to_time(runner):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("import sys; print('kept'); print('lost', file=sys.stderr)"),
            nbformat.v4.new_code_cell("'large'", metadata={"tags": ["not-kept"]}),
        ]
    )
    runner.run(notebook, FOLDER)
    runner.tidy(notebook)
    first, second = notebook.cells
    assert [output.text for output in first.outputs] == ["kept\n"]
    assert second.outputs == []
    assert "execution" not in first.metadata
