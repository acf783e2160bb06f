"""A study on its page and in Markdown, and what it says beside the verdicts of a report."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest

from icl_interp import analyze
from icl_interp.analysis import Analysis
from icl_interp.calibration import Coverage, Error, FamilyTold, Found, Rate, Study, ThresholdTold, spread_of
from icl_interp.probing import Estimate, Outcome, Threshold, Verdict, exact
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant
from icl_interp_reports import calibration_html, calibration_markdown, to_html, to_markdown, to_text
from icl_interp_reports.plots import Axis, Curve, Dot, axis_around, plot_svg
from icl_interp_reports.reliability import sampled

HOSTILE = "<script>document.title = 'stolen'</script> </style><!-- \x1b[31m \u202e {{ 7 * 7 }} \" onload='x' | `a` *b*"
SMALL, LARGE, BARE = "fit.small_gap", "fit.large_share", "steps.near_one"
SPAN = np.linspace(0, 1, 50)


def study(text="plain words"):
    """Numbers of this test's own: two families that violate the first claim, one of which sometimes passes."""
    families = (
        FamilyTold("planted", text, False, 1_000, (SMALL, LARGE), ()),
        FamilyTold("wrong_scale", f"scaled: {text}", False, 1_000, (), (SMALL, LARGE)),
        FamilyTold("long_trained", text, True, 300, (), (SMALL,)),
    )
    rates = (
        Rate("planted", SMALL, "holds", 1_000, 950, 2, 40, 8),
        Rate("wrong_scale", SMALL, "violates", 1_000, 1, 999, 0, 0),
        Rate("long_trained", SMALL, "violates", 300, 0, 300, 0, 0),
        Rate("planted", LARGE, "holds", 1_000, 1_000, 0, 0, 0),
        Rate("wrong_scale", LARGE, "violates", 1_000, 0, 1_000, 0, 0),
        Rate("planted", BARE, "unsaid", 1_000, 500, 500, 0, 0),
    )
    spreads = (
        spread_of(SMALL, "planted", "holds", 0.1 * SPAN),
        spread_of(SMALL, "wrong_scale", "violates", 0.5 + SPAN),
        spread_of(SMALL, "long_trained", "violates", 0.08 + SPAN),
        spread_of(LARGE, "planted", "holds", [float("inf")] * 3),
    )
    thresholds = (
        ThresholdTold(SMALL, -np.inf, 0.1, text),
        ThresholdTold(LARGE, 0.9, np.inf, text),
        ThresholdTold(BARE, 0.9, 1.1, text),
    )
    coverage = tuple(Coverage("fit.eta", text, n, 1_900 - n // 1_000, 2_000, "planted") for n in (0, 8_192, 32_768))
    errors = (
        Error("fit.eta", "size", "planted", (0.01, 0.1), (0.002, 0.03), (-0.001, 0.0), (90, 10)),
        Error("fit.eta", "prompts", "planted", (8_192.0, 131_072.0), (0.02, 0.005), (0.001, 0.001), (90, 10)),
        Error("fit.mu", "size", "wrong_scale", (0.5,), (0.1,), (0.1,), (3,)),
    )
    found = (Found(SMALL, 0.1, 40, 50), Found(SMALL, 0.01, 60, 60), Found(SMALL, 0.1, 10, 10))
    return Study(
        "reporting", (32_768, 131_072), families, rates, spreads, coverage, errors, thresholds, found, ((text, text),)
    )


def lean():
    """Families and rates only."""
    full = study()
    return Study(full.draw, full.budget, full.families[:1], full.rates[:2])


def empty():
    return Study("choosing", (32_768, 131_072), (), ())


class Page(HTMLParser):
    """Elements in their order, by tag and attributes; every one that is opened is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


# --- The page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [study, lean, empty])
def test_the_page_is_well_formed_and_whatever_it_refers_to_is_there(make):
    text = calibration_html(make())
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        assert attributes.get("href", "#claims").removeprefix("#") in ids
        assert not {"src", "onload", "style"} & set(attributes)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert max(np.diff(levels), default=0) <= 1
    assert all(picture["aria-label"] for picture in page.all("svg") if "role" in picture)
    assert 'id="plotly"' not in text  # a hundred pictures without it


def test_the_page_says_how_often_each_claim_is_found_and_passes():
    text = " ".join(calibration_html(study()).split())
    table = re.search(r'<table class="calibrated">.*?</table>', text)[0]
    row = re.search(r'<tr><th scope="row"><a href="#of-fit-small_gap">.*?</tr>', table)[0]
    said = " ".join(re.sub(r"<[^>]+>", " ", row).split())
    assert said == "small gap ≤ 0.1 950 of 992 planted 1 of 1,000 wrong_scale 4 %"
    assert 'title="scaled: plain words">wrong_scale' in row
    assert "No family says anything of it." in re.search(r'href="#of-steps-near_one".*?</tr>', table)[0]
    assert "2,300 models of 3 families" in text
    assert "drawn anew after the thresholds were chosen" in text
    assert "those on which thresholds are chosen" in calibration_html(replace(study(), draw="choosing"))


def test_every_claim_has_its_pictures_and_its_counts():
    text = calibration_html(study())
    parts = {name: text.split(f'id="of-{name}"')[1] for name in ("fit-small_gap", "fit-large_share", "steps-near_one")}
    small = parts["fit-small_gap"].partition('<div id="of-')[0]
    assert small.count('class="curve violates"') == 2 + 2  # both families in both pictures
    assert small.count('class="curve holds"') == 1
    assert small.count('class="dot chosen"') == 2
    assert small.count('class="threshold"') == 1  # of two ends one is finite
    assert "long_trained at ≤ 0.1: 2" in small  # of 0.08 … 1.08
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", small)
    assert cells[:7] == ["planted", "true", "1,000", "950", "2", "40", "8"]
    assert cells[-6:] == ["0.01", "60", "60", "0.1", "50", "60"]  # families together, by size
    assert 'class="curve' not in parts["fit-large_share"].partition("<article")[0]  # no number of it is finite
    assert "svg" not in parts["steps-near_one"].partition("<section")[0]


def test_intervals_and_errors_have_their_pictures_and_numbers():
    text = calibration_html(study())
    coverage = text.split('id="coverage"')[1].split('id="errors"')[0]
    assert coverage.count('<g class="dot c0">') == 3
    assert coverage.count('class="band"') == 1
    assert "planted, 32,768 prompts: 1,868 of 2,000" in coverage
    errors = text.split('id="errors"')[1]
    assert errors.count("planted: rms error") == 2
    assert errors.count("planted: |bias|") == 2
    assert 'id="coverage"' not in calibration_html(lean())


def test_a_page_of_fifty_claims_stays_small():
    many = [replace(rate, claim=f"probe_{i}.claim") for i in range(50) for rate in study().rates[:3]]
    spreads = [replace(spread, claim=f"probe_{i}.claim") for i in range(50) for spread in study().spreads[:3]]
    thresholds = [replace(study().thresholds[0], claim=f"probe_{i}.claim") for i in range(50)]
    large = replace(study(), rates=tuple(many), spreads=tuple(spreads), thresholds=tuple(thresholds))
    assert len(calibration_html(large).encode()) < 1_000_000


def test_nothing_that_a_study_says_becomes_markup():
    wild, tame = Page(calibration_html(study(HOSTILE))), Page(calibration_html(study()))
    assert [tag for tag, _ in wild.elements] == [tag for tag, _ in tame.elements]
    assert [set(attributes) for _, attributes in wild.elements] == [set(attributes) for _, attributes in tame.elements]
    text = calibration_html(study(HOSTILE)) + calibration_markdown(study(HOSTILE))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>document" not in text.replace(r"\<", "")


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_the_document():
    text = calibration_markdown(study())
    for line in (
        "| fit.small\\_gap | ≤ 0.1 | 0.1, planted | 0.08, long\\_trained "
        "| 950 of 992, planted | 1 of 1,000, wrong\\_scale | 4 % |",
        "| fit.large\\_share | ≥ 0.9 | inf, planted |  | 1,000 of 1,000, planted | 0 of 1,000, wrong\\_scale | 0 % |",
        "| steps.near\\_one | 0.9 … 1.1 |  |  |  |  |  |",
        "| wrong\\_scale | scaled: plain words | formula | 1,000 | 0 | 2 |",
        "| long\\_trained | plain words | training | 300 | 0 | 1 |",
        "| fit.eta | planted | plain words | none | 1,900 of 2,000 | 95 % (94 % to 95.9 %) |",
        "| fit.eta | planted | prompts | 8,192 | 131,072 | 0.02 → 0.005 | 0.001 → 0.001 |",
        "| fit.mu | wrong\\_scale | size | 0.5 | 0.5 | 0.1 | 0.1 |",
        "- plain words: plain words",
        "Made by `python benchmarks/calibration.py`.",
    ):
        assert line in text.splitlines()
    assert "0.05 / (40 · 4)" in text
    assert "stretched by 1.84" in text


@pytest.mark.parametrize("make", [lean, empty])
def test_what_a_study_lacks_has_no_heading(make):
    text = calibration_markdown(make())
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Several claims at once", "Claims", "Families"]


# --- Plots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis("", 0.03, 0.11), [0.04, 0.06, 0.08, 0.1]),
        (Axis("", 0.005, 20, True), [0.01, 0.1, 1, 10]),
        (Axis("", 1e-9, 10, True), [1e-9, 1e-6, 1e-3, 1]),
        (Axis("", 1.5, 30, True), [2, 5, 10, 20]),
    ],
)
def test_ticks_are_round(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks, rel=1e-9, abs=1e-12)
    assert ((axis.at(axis.ticks()) >= -1e-9) & (axis.at(axis.ticks()) <= 1 + 1e-9)).all()


@pytest.mark.parametrize("values", [[], [np.nan], [0.0], [3.0, 3.0], [-1, 5], [1e-5, 1.0], [np.inf, 2.0], [-2.0, -1.0]])
@pytest.mark.parametrize("log", [None, True])
def test_an_axis_holds_what_it_can_show(values, log):
    axis = axis_around("x", values, log=log)
    shown = [value for value in values if np.isfinite(value) and (value > 0 or not axis.log)]
    assert axis.low < axis.high
    assert ((axis.at(shown) > 0) & (axis.at(shown) < 1)).all()


def test_a_curve_breaks_where_it_cannot_be_shown():
    picture = plot_svg(
        "told",
        Axis("x", 1, 100, True),
        Axis("y", 0, 1),
        curves=[Curve([1, 0, 10, 100], [0, 0, 1, 0.5], "c0", "a & b"), Curve([10], [0.5], "c1", "one")],
        dots=[Dot(10, 0.5, "c0", "dot", 0.4, 0.6), Dot(-1, 0.5, "c0", "nowhere")],
        upright=(10, 1_000, np.inf),
    )
    assert 'd="M46.0 159.0M160.5 10.0L275.0 84.5"><title>a &amp; b</title>' in picture
    assert 'd="M160.5 84.5h0"' in picture
    assert picture.count("<circle") == 1
    assert picture.count('class="threshold"') == 1


# --- Beside the verdicts ----------------------------------------------------------------------------------------------


@cache
def base():
    return analyze(plant(LinearRegression(3, 8), roles=("positive", "negative")).run, probes=[])


def judged(**looks):
    """An analysis with a verdict of each status, decided on prompts, and one of a claim that no study knows."""
    number, threshold = Estimate(1.0, 0.9, 1.1, "fresh prompts"), Threshold("r", high=2.0)
    verdicts = [
        Verdict(claim, "here", status, f"It {status}.", number, threshold)
        for claim, status in (("small_gap", "holds"), ("large_share", "inconclusive"), ("other", "fails"))
    ]
    fit = Outcome("fit", "Is it?", "done", verdicts=tuple(verdicts), **looks)
    return Analysis(base().provenance, base().circuits, (fit,))


PASSES, OPEN = (
    "1 of 1,000 models that violate it pass (wrong_scale)",
    "none of 1,000 models of which it is true stay open",
)


@pytest.fixture
def shipped(monkeypatch):
    monkeypatch.setattr("icl_interp.calibration.shipped.study", study)


def written(analysis):
    """Every face of a report, without markup."""
    faces = (to_html(analysis), analysis._repr_html_(), to_text(analysis), to_markdown(analysis).replace("\\", ""))
    return [re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", face, flags=re.DOTALL)) for face in faces]


@pytest.mark.usefixtures("shipped")
def test_every_face_says_how_often_verdicts_are_right():
    for text in written(judged()):
        for phrase in (PASSES, OPEN, "not calibrated", "scaled: plain words"):
            assert phrase in text, text[:2_000]
    page = to_html(judged())
    assert page.count(f'<span class="reliability" title="wrong_scale: scaled: plain words">{PASSES}</span>') == 2
    assert re.search(r"small_gap .* It holds. \| 1 of 1,000 models", to_markdown(judged()).replace("\\", ""))
    assert f"It holds.\n{' ' * 17}{PASSES}\n" in to_text(judged())
    assert "Models of known truth that are named above\n  wrong_scale: scaled: plain words\n" in to_text(judged())


def test_without_a_study_nothing_is_calibrated(monkeypatch):
    monkeypatch.setattr("icl_interp.calibration.shipped.study", lambda: None)
    html, _, text, markdown = written(judged())
    assert text.count("not calibrated") == markdown.count("not calibrated") == 3
    assert html.count("not calibrated") == 6  # on the first screen and in the card
    for face in written(judged()):
        assert "models that violate" not in face
        assert "Models of known truth" not in face


@pytest.mark.parametrize(
    ("looks", "budget", "said"),
    [
        ((), 131_072, ""),
        ((32_768, 131_072), 131_072, "131,072 prompts, the end of the budget, leave large_share open"),
        ((32_768,), 131_072, "32,768 prompts leave large_share open"),
        ((32_768,), None, "32,768 prompts leave large_share open"),
    ],
)
def test_how_sampling_ended(looks, budget, said):
    (outcome,) = judged(looks=looks)
    assert sampled(outcome, budget) == said
    decided = replace(outcome, verdicts=outcome.verdicts[::2])
    assert sampled(decided, budget) == (f"decided on {looks[-1]:,} prompts" if looks else "")


def test_what_does_not_rest_on_prompts_was_not_decided_on_them():
    (outcome,) = judged(looks=(32_768,))
    exactly = replace(outcome.verdicts[0], estimate=exact(1.0))
    late = replace(outcome.verdicts[1], estimate=Estimate(1.0, 0.9, 1.1, "training time"))
    assert sampled(replace(outcome, verdicts=(exactly, late))) == ""
    assert sampled(replace(outcome, verdicts=(exactly, late, outcome.verdicts[2]))) == "decided on 32,768 prompts"
    assert sampled(replace(outcome, verdicts=())) == ""
    unknown = Verdict("small_gap", "here", "inconclusive", "Nothing was found.")
    assert sampled(replace(outcome, verdicts=(unknown,))) == "32,768 prompts leave small_gap open"


def test_every_face_says_how_sampling_ended_and_what_failed_at_last():
    analysis = judged(looks=(32_768, 131_072), reason="a further look failed: ValueError: luck")
    for text in written(analysis):
        assert "131,072 prompts, the end of the budget, leave large_share open" in text
        assert "a further look failed: ValueError: luck" in text


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_for_everyone(browser, tmp_path, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "study.html").write_text(calibration_html(study(HOSTILE)), encoding="utf-8")
    (tmp_path / "report.html").write_text(to_html(judged(looks=(32_768,))), encoding="utf-8")
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800})
    for name in ("study.html", "report.html"):
        page, said = context.new_page(), []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert found == [], [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found]
        assert said == []
    context.close()
