"""How large the page of a sweep is, how long it takes to write and to open in headless Chromium, by its rows.

    icl-interp sweep examples/fate_of_seeds.toml
    python benchmarks/sweep_opening.py runs/fate_of_seeds --rows 2048 10000

Where the sweep has fewer rows they are repeated, as if for further noises, with every number moved by a thousandth, so
that none compresses better than a measured one.  The bare plotly page of `report_opening.py` is opened in turn with it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from playwright.sync_api import sync_playwright
from report_opening import DRAWN, FLAGS, opened

from icl_interp.sweeps import Sweep
from icl_interp.sweeps.summary import Summary
from icl_interp_reports import sweep_html


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_048, 10_000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    measured = Sweep.load(options.sweep).to_pandas()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bare = Path(folder) / "bare.html"
        go.Figure(go.Scatter(y=[1, 3, 2])).write_html(bare, include_plotlyjs=True)
        browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
        for count in options.rows:
            page, started = Path(folder) / f"{count}.html", time.perf_counter()
            page.write_text(sweep_html(Summary.of(repeated(measured, count)), "sweep"))
            written = time.perf_counter() - started
            pairs = [
                (opened(browser, page, DRAWN["report"]), opened(browser, bare, DRAWN["bare plotly page"]))
                for _ in range(options.repeats)
            ]
            own, ratio = [a for a, _ in pairs], statistics.median(a / b for a, b in pairs)
            said = f"{count:>7,} rows: {page.stat().st_size / 1e6:.2f} MB, written in {written:.1f} s"
            told = f"open after {statistics.median(own):.2f} s (worst {max(own):.2f} s), {ratio:.2f} times a bare page"
            print(f"{said}, {told}")
        browser.close()


def repeated(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """So many rows, each copy for another noise."""
    draw, copies = np.random.default_rng(0), []
    for copy in range(-(-count // len(rows))):
        again = rows.copy()
        again["noise_var"] = 0.1 * (1 + copy)
        again["cell"] = [f"{cell[:-2]}{copy:02x}" for cell in rows["cell"]]
        for name in again.columns[again.columns.str.contains(".", regex=False)]:
            if copy and again[name].dtype.kind == "f":
                again[name] *= 1 + 1e-3 * draw.normal(size=len(rows))
        copies.append(again)
    return pd.concat(copies, ignore_index=True).head(count)


if __name__ == "__main__":
    main()
