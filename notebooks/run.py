"""Run the notebooks from top to bottom and write their outputs into them, figures as pictures too.

    python notebooks/run.py [hooks circuits write_a_probe]

Figures are kept interactive for Jupyter and as PNG for whoever only looks, which needs kaleido and
a Chrome; that of a cell tagged "picture" is also written to `pictures`.  What a cell tagged
"not-kept" shows is left out.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Execute all cells, in a new kernel that works in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(
        env={
            **os.environ,
            "PLOTLY_RENDERER": os.environ.get("PLOTLY_RENDERER", "plotly_mimetype+png"),
        }
    )
    return notebook


def tidy(notebook: NotebookNode) -> None:
    """Leave out what differs from one execution to the next, and what it said on the way."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [] if "not-kept" in cell.metadata.get("tags", []) else cell.outputs
            cell.outputs = [output for output in kept if output.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}


def keep_picture(notebook: NotebookNode, path: Path) -> None:
    """The figure of the cell that is tagged "picture", as a file for the README."""
    for cell in notebook.cells:
        if "picture" in cell.metadata.get("tags", []):
            path.write_bytes(base64.b64decode(cell.outputs[-1].data["image/png"]))


def main() -> None:
    """Run those that are named, or all."""
    for path in [HERE / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        tidy(notebook)
        nbformat.write(notebook, path)
        keep_picture(notebook, HERE / "pictures" / f"{path.stem}.png")
        print(
            f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB"
        )


if __name__ == "__main__":
    main()
