"""The gallery: every claim is on its first table, nothing that a reproduction says becomes markup, and it is drawn."""

import re
from typing import get_args

import numpy as np
import pytest

from icl_interp.probing import Equation, Estimate, Frames, Heatmap, Lines, Table, Text, Threshold, exact
from icl_interp.reproduce import Claim, Gallery, Reproduction, Status
from icl_interp_reports import gallery_html, gallery_markdown
from icl_interp_reports.templating import SYMBOLS
from icl_interp_reports.words import OUTCOMES, called

HOSTILE = (
    "<script>document.title = 'stolen'</script> </style><!-- \x1b[31m \u202e {{ 7 * 7 }} \" onload='x' <img src=x>"
)
STEPS = np.array([1, 10, 1_000])
X = np.geomspace(1, 1e5, 50)


def claims(text):
    estimate, threshold = Estimate(1.5, 1.0, 2.5, "prompts"), Threshold(text, 0.0, 3.0)
    return tuple(Claim(f"{text} {s}", s, f"{text} found {s}", text, estimate, threshold) for s in get_args(Status))


def blocks(text):
    return (
        Text(text),
        Equation(r"\omega_h = \pm\gamma", text),
        Table((text, "b"), ((text, exact(1.0)), (None, 2)), text, text),
        Heatmap(np.eye(6)[None], (text,), text, text),
        Frames(np.arange(24.0).reshape(3, 2, 2, 2), STEPS, (text, "q"), text, text),
        Frames(np.arange(24.0).reshape(3, 2, 2, 2), STEPS, (text, "q"), text, "OV"),
        Lines(X, np.stack([np.sqrt(X), -np.sqrt(X)]), (text, "down"), text, text, text, text, True),
    )


def entry(name, text="words", **parts):
    told = {"claims": claims(text), "blocks": blocks(text), "runs": {"h2": text}, "schedule": "quick"}
    return Reproduction(
        **{"name": name, "title": text, "source": text, "command": text, "seconds": 1.25, **told, **parts}
    )


def gallery(text="words"):
    failed = entry("figure-9", text, claims=(), blocks=(), failure=text, details=f"Traceback\n  {text}")
    silent = entry("theorem-4.2", text, claims=(), runs={})
    return [*(entry(f"figure-{n}", text) for n in (1, 3, 13)), failed, entry("table-1", text), silent]


def test_every_outcome_has_its_words_and_its_sign():
    assert set(OUTCOMES) == {*get_args(Status), "failed"}
    assert set(SYMBOLS) >= set(OUTCOMES)


@pytest.mark.parametrize(
    ("name", "words"),
    [("figure-4", "Figure 4"), ("table-1", "Table 1"), ("theorem-4.2", "Theorem 4.2"), ("same-sign", "Same sign")],
)
def test_what_figures_are_called(name, words):
    assert called(name) == words


def first_table(page):
    return re.search(r'<table class="narrow gallery">.*?</table>', page, re.DOTALL)[0]


def test_every_claim_is_in_the_first_table_and_leads_to_its_figure():
    page = gallery_html(gallery())
    table = first_table(page)
    for each in gallery():
        assert f'<a href="#made-{each.name}">{called(each.name)}</a>' in table
        assert f'<article class="card" id="made-{each.name}"' in page
    assert table.count("words reproduced") == 4
    assert table.count("the paper&#39;s own statement does not hold") == 4
    for status in ("differs", "does_not_hold"):  # which a reader wants to know without looking further
        assert f"words found {status}" in table
    assert "words found reproduced" not in table
    assert "Failed:" in page
    assert "No claim is made." in table


def test_a_card_says_what_was_trained_and_how_it_is_made_again():
    page = gallery_html([entry("figure-1", runs={"h2": "two heads, 50,000 steps"}, command="icl-interp reproduce x")])
    assert "<dt>training h2</dt><dd>two heads, 50,000 steps</dd>" in page
    assert "Made in 1.2 seconds, trainings apart, by <code>icl-interp reproduce x</code>" in page
    assert "Wanted 0 … 3: words. The interval covers prompts." in " ".join(page.split())


def test_nothing_made_yet():
    assert "Nothing was made yet." in gallery_html([])
    assert 'id="plotly"' not in gallery_html([])


def test_nothing_that_is_said_becomes_markup(tmp_path):
    wild, tame = gallery_html(gallery(HOSTILE)), gallery_html(gallery())
    tags = re.compile(r"<(?!math|m[a-z]+|/m)[/a-z!][^\s>]*")
    without_scripts = re.compile(r"<script.*?</script>", re.DOTALL)
    assert tags.findall(without_scripts.sub("", wild)) == tags.findall(without_scripts.sub("", tame))
    assert wild.count("<script") == tame.count("<script")
    assert "\x1b" not in wild
    assert "\u202e" not in wild


def test_the_same_reproductions_give_the_same_bytes():
    assert gallery_html(gallery()) == gallery_html(gallery())
    assert gallery_markdown(gallery()) == gallery_markdown(gallery())


def test_what_a_figure_takes(tmp_path):
    """So that twenty of them stay below four megabytes."""
    alone, many = len(gallery_html([entry("figure-1")])), len(gallery_html(gallery()))
    assert alone < 2_100_000
    assert (many - alone) / 5 < 40_000


def test_markdown():
    document = gallery_markdown([entry("figure-1"), entry("figure-9", claims=(), blocks=(), failure="no *luck*")])
    assert document.startswith(
        "# Figures and tables of arXiv 2503.12734 and 2408.04532, done again\n\n| figure | the paper says |"
    )
    assert "| Figure 1 | words differs | words | 1.50 \\[1.00, 2.50\\] | differs |" in document
    assert "## Figure 9: words\n\nIn the paper: words.\n\n*failed*: no \\*luck\\*" in document
    wild = gallery_markdown(gallery(HOSTILE))
    assert "<script" not in wild.replace(r"\<", "")
    assert all(line.isprintable() for line in wild.split("\n"))


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    return Gallery(tmp_path_factory.mktemp("gallery")).write([*gallery(), *gallery(HOSTILE)[:1]])


def opened(browser, file, width=1280, scheme="light"):
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800})
    said = []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    return context, page, said


def test_figures_are_drawn_when_the_reader_comes_near(browser, page_file):
    context, page, said = opened(browser, page_file)
    figures = page.locator(".drawn")
    assert figures.last.get_attribute("data-drawn") is None
    room = figures.last.bounding_box()["height"]
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg.main-svg").first.wait_for()
        assert figure.bounding_box()["width"] > 300
    page.locator("#made-table-1 .drawn[data-drawn=yes]").last.wait_for()
    assert figures.last.bounding_box()["height"] == pytest.approx(room, abs=2)
    sliders = page.locator("#made-figure-3 input[type=range]")
    sliders.first.focus()
    page.keyboard.press("Home")
    assert [sliders.nth(i).get_attribute("aria-valuetext") for i in range(2)] == ["1", "1"]
    assert said == []
    assert page.title() == "Papers, done again · icl-interp"
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (400, "dark")])
def test_for_everyone(browser, page_file, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    context, page, _ = opened(browser, page_file, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(50)
    found = Axe().run(page).response["violations"]
    assert found == [], [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found]
    context.close()
