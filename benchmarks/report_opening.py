"""How long a report takes to open and draw in headless Chromium, beside a bare plotly page with one figure.

A report is open when it can be used: all that is in sight is drawn, and the page answers.  Figures further down are
drawn while it is idle, until all are.

    python benchmarks/report_opening.py runs/demo/report.html

Both are opened from disk with the network off, in turn.  The bare page holds plotly.js as it is (`include_plotlyjs`),
so the ratio is what packing, the page around it and all its figures cost.  Needs the `test` extra and a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import Browser, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DRAWN = {
    "report": "document.documentElement.dataset.usable === 'yes'",
    "all its figures": "document.documentElement.dataset.ready === 'yes'",
    "bare plotly page": "document.querySelector('.main-svg .trace') !== null",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bare = Path(folder) / "bare.html"
        go.Figure(go.Scatter(y=[1, 3, 2])).write_html(bare, include_plotlyjs=True)
        report = options.report.resolve()
        pages = {"report": report, "all its figures": report, "bare plotly page": bare}
        sizes = {name: path.stat().st_size / 1e6 for name, path in pages.items()}
        browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
        times: dict[str, list[float]] = {name: [] for name in pages}
        for _ in range(options.repeats):
            for name, path in pages.items():
                times[name].append(opened(browser, path, DRAWN[name]))
        browser.close()
    for name, size in sizes.items():
        middle, worst = statistics.median(times[name]), max(times[name])
        print(f"{name:<17} {size:5.2f} MB  drawn after {middle:.2f} s (worst {worst:.2f} s)")
    ratios = [a / b for a, b in zip(times["report"], times["bare plotly page"], strict=True)]
    print(f"ratio             {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def opened(browser: Browser, path: Path, drawn: str) -> float:
    """Seconds from the navigation until all is drawn, by the page's own clock."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    # Asked for with every frame of the screen, so that the answer is not late by more than that.
    page.add_init_script(
        f"(function ask() {{ if (document.documentElement && {drawn}) window.drawnAfter = performance.now();"
        " else requestAnimationFrame(ask); })()"
    )
    page.goto(path.as_uri())
    while not page.evaluate("window.drawnAfter"):  # the page's policy forbids what `wait_for_function` would do
        page.wait_for_timeout(50)
    seconds = page.evaluate("window.drawnAfter") / 1000
    context.close()
    return seconds


if __name__ == "__main__":
    main()
