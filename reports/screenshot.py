"""Pictures of a report's first screen and of its cards, light and dark, taken in headless Chromium.

    icl-interp demo && python reports/screenshot.py runs/demo/report.html pictures --height 1180

made those of the first screen in `reports/pictures`.  Needs the `test` extra and an installed Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Take the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser (default: chromium)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
        for scheme in ("light", "dark"):
            context = browser.new_context(
                color_scheme=scheme, offline=True, viewport={"width": options.width, "height": options.height}
            )
            page = context.new_page()
            page.goto(options.report.resolve().as_uri())
            page.wait_for_selector("html[data-ready=yes]", state="attached")
            _take(page, options.folder, scheme)
        browser.close()


def _take(page: Page, folder: Path, scheme: str) -> None:
    page.screenshot(path=folder / f"report-{scheme}.png")
    for card in page.locator("article.card").all():
        card.screenshot(path=folder / f"{card.get_attribute('id')}-{scheme}.png")


if __name__ == "__main__":
    main()
