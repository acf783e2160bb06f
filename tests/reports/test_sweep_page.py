"""A sweep's page in a browser: what it computes, what it draws, and what filters do."""

from __future__ import annotations

import re
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from icl_interp.estimates import share_of
from icl_interp.sweeps.summary import Summary
from icl_interp_reports import sweep_html


def rows(count):
    draw = np.random.default_rng(0)
    at = np.arange(count)
    heads, noise = 1 + at % 4, np.where(at // 4 % 2, 0.1, 0.3)
    return pd.DataFrame(
        {
            "cell": [f"{i:016x}" for i in at],
            "n_heads": heads,
            "noise_var": noise,
            "dim": 5,
            "seed": at // 8,
            "error": None,
            "fit.sign.status": draw.choice(["holds", "fails", "not_applicable"], count, p=[0.7, 0.2, 0.1]),
            "fit.sign.value": draw.normal(size=count),
            "fit.eta.value": heads + draw.normal(size=count),
            "fit.kind": draw.choice(["opposite", "same_sign"], count),
        }
    )


@pytest.fixture(scope="module")
def table():
    return rows(400)


@pytest.fixture(scope="module")
def file(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("sweep") / "sweep.html"
    path.write_text(sweep_html(Summary.of(table), "a sweep", {table["cell"][4]: "runs/4/report.html"}))
    return path


@pytest.fixture
def page(browser, file):
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    said = []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    yield page
    assert said == []
    context.close()


def ask(page, what, along="n_heads", beside=""):
    page.select_option("#what", label=what)
    page.select_option("#along", along)
    page.select_option("#beside", beside)


def numbers(text):
    return [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", text.replace("−", "-"))]


def told(page):
    return [numbers(text) for text in page.evaluate("document.getElementById('lines').data.at(-1).text")]


def test_means_have_their_t_intervals(page, table):
    ask(page, "eta")
    for heads, (value, low, high, count) in zip(range(1, 5), told(page), strict=True):
        sample = table["fit.eta.value"][table["n_heads"] == heads]
        half = stats.t.ppf(0.975, len(sample) - 1) * sample.sem()
        assert (value, low, high) == pytest.approx(
            (sample.mean(), sample.mean() - half, sample.mean() + half), rel=2e-3
        )
        assert count == len(sample)


def test_shares_have_their_exact_intervals(page, table):
    ask(page, "sign holds", "noise_var")
    for noise, (value, low, high, count) in zip((0.1, 0.3), told(page), strict=True):
        judged = table[(table["noise_var"] == noise) & (table["fit.sign.status"] != "not_applicable")]
        exact = share_of(int((judged["fit.sign.status"] == "holds").sum()), len(judged))
        assert (value, low, high) == pytest.approx((exact.value, exact.low, exact.high), rel=2e-3)
        assert count == len(judged)


def test_two_parameters_make_curves_and_a_heat_map(page, table):
    assert page.input_value("#along") == "n_heads"
    assert page.input_value("#beside") == "noise_var"
    ask(page, "eta", "n_heads", "noise_var")
    drawn = page.evaluate("document.getElementById('heat').data[0].z")
    means = table.groupby(["noise_var", "n_heads"])["fit.eta.value"].mean().unstack()
    assert np.array(drawn) == pytest.approx(means.to_numpy(), rel=1e-3)
    assert page.evaluate("document.getElementById('lines').data.length") == 6  # two curves, each in a band
    ask(page, "eta", "n_heads", "")
    assert page.locator("#heat").is_hidden()


def test_runs_are_sorted_and_filtered_and_the_figures_follow(page, table):
    assert page.inner_text("#left") == "1 to 50 of 400 runs"
    page.fill("#runs input[aria-label='Filter n_heads']", "> 2")
    page.fill("#runs input[aria-label='Filter fit.kind']", "same")
    chosen = table[(table["n_heads"] > 2) & (table["fit.kind"] == "same_sign")]
    page.get_by_text("(400 in all)").wait_for()
    assert f"of {len(chosen)} runs (400 in all)" in page.inner_text("#left")
    ask(page, "eta")
    assert [point[3] for point in told(page)] == list(chosen.groupby("n_heads").size())
    page.get_by_role("button", name="seed").click()
    page.get_by_role("button", name="seed").click()
    seeds = [int(cell) for cell in page.locator("#runs tbody td:nth-child(4)").all_inner_texts()]
    assert seeds == sorted(chosen["seed"], reverse=True)[:50]
    page.click("#clear")
    page.click("#after")
    page.get_by_text("of 400 runs").wait_for()


def test_runs_lead_to_their_reports_and_columns_can_be_added(page):
    link = page.locator("#runs tbody a")
    assert (link.count(), link.get_attribute("href")) == (
        1,
        "runs/4/report.html",
    )  # the first of one head at little noise
    before = page.locator("#runs thead th").count()
    page.select_option("#more", "fit.eta")
    assert page.locator("#runs thead th").count() == before + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_for_everyone(browser, file, scheme):
    from axe_playwright_python.sync_playwright import Axe

    sizes = {"width": 900, "height": 900}
    context = browser.new_context(offline=True, color_scheme=scheme, viewport=sizes, bypass_csp=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    found = Axe().run(page).response["violations"]
    assert found == [], [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found]
    context.close()


def test_ten_thousand_runs_open_in_time(browser, tmp_path):
    """The bound is loose: how fast it is, a script under benchmarks says."""
    path = tmp_path / "sweep.html"
    path.write_text(sweep_html(Summary.of(rows(10_000)), "many"))
    context = browser.new_context(offline=True)
    page = context.new_page()
    started = time.monotonic()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert time.monotonic() - started < 30
    assert page.inner_text("#left") == "1 to 50 of 10,000 runs"
    context.close()
