"""A browser for the report's tests: the Chromium of the machine, driven offline."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    """Skips where there is no browser; in CI that is a failure, or nobody would notice."""
    lacks = pytest.fail if os.environ.get("CI") else pytest.skip
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        lacks(f"no Chromium to open the report in: none of {', '.join(NAMES)}")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        lacks(f"no playwright to drive the browser with: {error}")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()
