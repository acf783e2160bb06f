"""The report in a browser, from disk with the network off: what a reader sees, reaches by keyboard, and prints."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import icl_interp as icl
from icl_interp.analysis import Analysis
from icl_interp.probing import (
    Bars,
    Equation,
    Estimate,
    Frames,
    Heatmap,
    Lines,
    Need,
    Outcome,
    Scatter,
    Surface,
    Table,
    Text,
    Threshold,
    Verdict,
)
from icl_interp.tasks import LinearRegression, UnavailableTask

HOSTILE = (
    "<script>document.title = 'stolen'</script> </style></script><!--<script> \x1b[31m \u202e {{ 7 * 7 }} "
    "\" onload='x' <img src=https://example.org/x onerror=document.title=1> javascript:alert(1) \udcff"
)
SORTED = ("1,200", "−3.5 ± 0.1", "2e−05", "∞", "", "0.25 [0.1, 0.5]")
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def run():
    task = LinearRegression(dim=3, length=20, noise_var=0.1)
    return icl.train(task, n_heads=3, steps=300, n_records=40, seed=0, progress=False)


@pytest.fixture(scope="module")
def trained(run):
    """A few of the probes, whose page is drawn in a fraction of the time that all of them take."""
    return icl.analyze(run, budget=2_000, probes=["circuit_pattern", "risk", "dynamics"])


def every_block(text):
    rng = np.random.default_rng(0)
    x = np.arange(1.0, 30.0)
    waves = np.array([np.sin(x / 4), np.cos(x / 4)])
    numbers = (1200, Estimate(-3.5, -3.6, -3.4), 2e-5, float("inf"), None, Estimate(0.25, 0.1, 0.5))
    return (
        Text(text),
        Equation(r"\hat y = \sum_h \mu_h \frac{1}{2}", text),
        Table((text, "number"), tuple((text, number) for number in numbers), text, text, first_screen=True),
        Table(tuple(f"{text} {i}" for i in range(12)), ((text,) * 12,) * 3, text),  # wider than any screen
        Heatmap(rng.normal(size=(3, 4, 6)), (text, "b", "c"), text, text, (text,) * 4, (text,) * 6, first_screen=True),
        Heatmap(rng.normal(size=(2, 50, 50)), ("b", "c"), text, text),
        Frames(rng.normal(size=(4, 2, 3, 3)), np.array([0, 1, 10, 1_000]), (text, "q"), text, text),
        Lines(x, waves, (text, "two"), text, text, text, text, True, waves - 0.1, waves + 0.1),
        Scatter(rng.normal(size=8), rng.normal(size=8), text, (text,) * 8, text, text, text),
        Bars((text, "b"), np.array([1.0, -1.0]), text, text, text, np.array([0.5, -2.0]), np.array([1.5, -0.5])),
        Surface(np.linspace(0, 1, 9), np.linspace(-1, 1, 7), rng.normal(size=(7, 9)), text, text, text, text),
        Heatmap(np.full((1, 2, 2), np.nan), ("inert",), text),
    )


def every_status(base, text):
    estimate, threshold = Estimate(1.0, 0.0, 2.5, text), Threshold(text, low=3.0)
    verdicts = tuple(
        Verdict(f"{text} {status}", text, status, text, estimate, threshold)
        for status in ("holds", "fails", "inconclusive", "not_applicable")
    )
    done = Outcome(text, text, "done", None, every_block(text), verdicts, about=text, source=text, looked_at=Need.TASK)
    others = [
        Outcome(f"{text} {status}", text, status, reason=text, details=f"Traceback\n  {text}")
        for status in ("skipped", "not_applicable", "failed", "broken")
    ]
    task = UnavailableTask(base.provenance.model.dim, 8, 1, text)
    changed = replace(base.provenance, origin=text, task=task, task_from=text)
    return Analysis(changed, base.circuits, (done, *others))


@pytest.fixture(scope="module")
def files(run, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    analyses = {
        "trained": trained,
        "every probe": icl.analyze(run, budget=2_000),
        "every block": every_status(trained, "some name"),
        "hostile": every_status(trained, HOSTILE),
        "long": every_status(trained, "x" * 10_000),
    }
    for name, analysis in analyses.items():
        analysis.to_html(folder / f"{name}.html")
    return folder


PAGES = ("every probe", "every block", "hostile", "long")


@contextmanager
def opened(browser, file, **settings):
    """A page that has drawn what it draws; it must have said nothing and asked the network for nothing."""
    scripts = settings.get("java_script_enabled", True)
    context = browser.new_context(offline=True, **settings)
    said: list[str] = []
    try:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        page.goto(file.as_uri())
        if scripts:
            page.wait_for_selector("html[data-ready=yes]", state="attached")
        yield page
    finally:
        context.close()
    assert [line for line in said if not line.startswith(("file:", "data:"))] == []


def size(width, height=800):
    return {"viewport": {"width": width, "height": height}}


def numbers_of(page, figure):
    return np.array(
        page.evaluate("id => document.getElementById(id).data.map(t => [...t.z].map(row => [...row]))", figure)
    )


# --- Opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_is_drawn_and_nothing_is_said(browser, files, name):
    with opened(browser, files / f"{name}.html") as page:
        for figure in page.locator(".drawn").all():
            assert figure.get_attribute("data-drawn") == "yes"
            box = figure.locator("svg.main-svg").first.bounding_box()
            assert box["width"] > 100
            assert box["height"] > 50
        assert page.locator("#no-figures").is_hidden()
        assert page.title().endswith("· icl-interp")
        assert page.evaluate("document.querySelectorAll('img, iframe, script[src], link').length") == 0


def test_no_other_script_runs(browser, files):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((files / "trained.html").as_uri())
    page.evaluate(
        """() => {
            const inline = document.createElement('script'); inline.textContent = "window.ran = 'inline'";
            const image = document.createElement('div');
            image.innerHTML = "<img src=x onerror=\\"window.ran = 'handler'\\">";
            document.body.append(inline, image);
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert page.evaluate("fetch('data:,x').then(() => 'fetched', () => 'refused')") == "refused"
    context.close()


def test_without_decompression_the_page_says_so_and_keeps_its_numbers(browser, files):
    context = browser.new_context(offline=True)
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto((files / "trained.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert page.locator("#no-figures").is_visible()
    assert page.locator(".still svg").first.is_visible()
    assert page.locator("#probe-risk .numbers").first.is_visible()
    context.close()


# --- By keyboard ------------------------------------------------------------------------------------------------------


def test_the_slider_goes_through_the_snapshots(browser, files, trained):
    frames = {block.title: block for block in trained["dynamics"].blocks if isinstance(block, Frames)}
    with opened(browser, files / "trained.html") as page:
        card = page.locator("#probe-dynamics")
        sliders = card.locator("input[type=range]")
        figures = [sliders.nth(i).get_attribute("data-figure") for i in range(2)]
        last = len(frames["KQ"].moments) - 1
        sliders.first.focus()
        for keys, moment in (
            (("ArrowLeft", "ArrowLeft"), last - 2),
            (("Home",), 0),
            (("ArrowRight",), 1),
            (("End",), last),
        ):
            for key in keys:
                page.keyboard.press(key)
            step = f"{frames['KQ'].moments[moment]:,}"
            for i, name in enumerate(("KQ", "OV")):  # the second follows the first
                assert sliders.nth(i).get_attribute("aria-valuetext") == step
                assert card.locator("output").nth(i).inner_text() == step
                expected = frames[name].matrices[moment].astype(np.float32)
                page.wait_for_timeout(100)  # it is drawn with the next frame of the screen
                np.testing.assert_allclose(numbers_of(page, figures[i]), expected, rtol=1e-6)


def test_tables_are_sorted_by_number(browser, files):
    with opened(browser, files / "every block.html") as page:
        table = page.locator("table.sortable", has_text="number").first
        head = table.locator("th").nth(1)
        head.locator("button").focus()
        column = "table => [...table.tBodies[0].rows].map(row => row.cells[1].textContent)"
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        ascending = table.evaluate(column)
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        descending = table.evaluate(column)
    values = ["−3.50 ± 0.10", "2e−05", "0.25 [0.10, 0.50]", "1,200", "∞"]
    assert [value for value in ascending if value] == values
    assert [value for value in descending if value] == values[::-1]


def test_wide_tables_scroll_and_details_open(browser, files):
    with opened(browser, files / "every block.html", **size(400)) as page:
        box = page.locator(".scroll[tabindex='0']", has=page.locator("th:nth-child(12)")).first
        box.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
        details = page.locator("details:not([open]) summary").first
        details.focus()
        page.keyboard.press("Enter")
        assert page.locator("details[open]").count() > 0


def test_the_first_tab_leads_past_the_header(browser, files):
    with opened(browser, files / "long.html") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the claims"
        assert page.locator(".skip").bounding_box()["x"] >= 0
        page.keyboard.press("Enter")
        assert page.url.endswith("#claims")


# --- For everyone -----------------------------------------------------------------------------------------------------


LOOKS = [
    *((name, *look) for name in PAGES[:2] for look in (("light", 1280), ("dark", 400))),
    ("every block", "dark", 1280),  # colours of every kind
    *((name, "light", 400) for name in PAGES[2:]),
]


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("trained", "light", 1280),
        *(pytest.param(*look, marks=pytest.mark.slow) for look in LOOKS),
    ],
)
def test_axe_finds_no_violation(browser, files, name, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, files / f"{name}.html", color_scheme=scheme, **size(width)) as page:
        page.evaluate(OPEN_ALL)
        page.wait_for_timeout(50)  # what scrolls has become focusable
        found = Axe().run(page).response["violations"]
    assert found == [], [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found]


@pytest.mark.parametrize("name", ["every probe", *PAGES[2:]])  # what is hostile has every block
def test_a_narrow_screen_is_wide_enough(browser, files, name):
    with opened(browser, files / f"{name}.html", **size(400)) as page:
        page.evaluate(OPEN_ALL)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        for figure in page.locator(".drawn").all():
            assert figure.locator("svg.main-svg").first.bounding_box()["width"] <= 400
        page.set_viewport_size({"width": 900, "height": 800})
        wide = "figure => figure.querySelector('svg').getBoundingClientRect().width > 500"
        page.wait_for_function(f"[...document.querySelectorAll('.drawn')].every({wide})")


def test_the_readers_scheme_is_followed_and_the_button_turns_it_round(browser, files):
    background = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('.drawn .xtick text')).fill"
    with opened(browser, files / "every block.html", color_scheme="light") as page:
        light = page.evaluate(background), page.evaluate(text)
        page.get_by_role("button", name="Dark").click()
        dark = page.evaluate(background), page.evaluate(text)
        page.get_by_role("button", name="Light").click()
        assert (page.evaluate(background), page.evaluate(text)) == light
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    with opened(browser, files / "every block.html", color_scheme="dark") as page:
        assert (page.evaluate(background), page.evaluate(text)) == dark


# --- Without scripts, and on paper ------------------------------------------------------------------------------------


def test_without_scripts_everything_is_there(browser, files, trained):
    with opened(browser, files / "trained.html", java_script_enabled=False) as page:
        for outcome in trained:
            card = page.locator(f"#probe-{outcome.probe}")
            assert outcome.title in card.inner_text()
            for verdict in outcome.verdicts:
                assert verdict.sentence in card.inner_text()
        assert page.locator("#probe-circuit_pattern .still svg").first.is_visible()
        assert page.locator("#probe-risk .numbers").first.is_visible()  # what is drawn with scripts only
        assert page.locator("#theme, .slider, .drawn, #no-figures").locator("visible=true").count() == 0


@pytest.mark.parametrize("scripts", [True, False])
def test_on_paper_it_is_light_and_whole(browser, files, tmp_path, scripts):
    with opened(browser, files / "trained.html", color_scheme="dark", java_script_enabled=scripts) as page:
        page.emulate_media(media="print", color_scheme="dark")
        if scripts:
            assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 31, 38)"
            assert page.evaluate("getComputedStyle(document.querySelector('.drawn text')).fill") == "rgb(26, 31, 38)"
        assert page.locator("#theme, .slider, .skip").locator("visible=true").count() == 0
        assert page.locator("#probe-circuit_pattern .still svg").first.is_visible()
        assert page.locator(".sortable th", has_text="head").first.is_visible()
        assert page.locator("#probe-circuit_pattern .numbers td").first.is_visible()  # of a closed <details>
        page.emulate_media(media="screen")
        data = page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert data.startswith(b"%PDF")
    assert data.count(b"/Type /Page\n") > 3
