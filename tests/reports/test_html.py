"""The page: everything is said, it opens with the network off, and nothing that a file says becomes markup."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from importlib.resources import files
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

import icl_interp as icl
from icl_interp.analysis import Analysis
from icl_interp.errors import SaveError
from icl_interp.probing import (
    Bars,
    Block,
    Equation,
    Estimate,
    Frames,
    Heatmap,
    Lines,
    Need,
    Outcome,
    Scatter,
    Status,
    Surface,
    Table,
    Text,
    Threshold,
    Verdict,
    exact,
    load_file,
    registry,
)
from icl_interp.serialization import to_data
from icl_interp.tasks import LinearRegression, MultiTaskRegression, UnavailableTask, kms
from icl_interp.testing import plant, plant_tasks
from icl_interp_reports import to_html
from icl_interp_reports.figures import figure
from icl_interp_reports.plotlyjs import packed
from icl_interp_reports.templating import in_brief

LIMIT = 2_200_000
MATHML = "math mfrac mi mn mo mover mrow mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover"
HOSTILE = (
    "<b>bold</b> <img src=x onerror=alert(1)> <a href='javascript:alert(1)'>x</a>",
    '"quoted" \'quoted\' ` " onmouseover="alert(1)" x=\'',
    "</script></style></title></textarea><script>alert(1)</script>",
    "<!--<script>",
    "--><script>alert(1)</script><![CDATA[<script>alert(1)</script>]]>",
    "</style><style>@import url(http://example.org)</style>",
    "{{ 7 * 7 }}{% raw %}{# gone #}${7*7}",
    "&lt;script&gt;&#60;script&#62;&amp;&quot;",
    "javascript:alert(1)",
    "\udcff\ud800 half a pair",
    "\x00\x07\x1b[31m\x7f\x85\u2028\u2029\ufeff",
    "\u202eesrever\u2066\u2069\u200f",
    "<b>" * 3_300,
    "x" * 10_000,
)
NASTY = (
    st.text(st.characters())
    | st.text("<>&\"'/!-=`{}%#$\\ \n\x1b\u202e\udcffab", max_size=40)
    | st.lists(st.sampled_from(HOSTILE[:-2]), max_size=4).map("".join)
).filter(str.strip)


# --- Analyses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    text: str
    numbers: np.ndarray


@cache
def empty():
    return icl.analyze(plant(LinearRegression(3, 8), roles=("positive", "negative")).run, probes=[])


def make(*outcomes, **provenance):
    return Analysis(replace(empty().provenance, **provenance), empty().circuits, outcomes)


def done(*blocks, name="mine", **parts):
    return Outcome(name, "Is it?", "done", blocks=blocks, **parts)


def shown(text):
    """One block of every kind, `text` wherever there is text."""
    x, two, band = np.arange(1.0, 5), (text,) * 2, np.ones((2, 4))
    matrices = np.arange(16.0).reshape(2, 2, 2, 2)
    return {
        Text: Text(text),
        Equation: Equation(text, text),
        Table: Table(two, ((text, 1.5), (None, True), (-3, Estimate(1.0, 0.0, 2.5, text))), text, text, True),
        Heatmap: Heatmap(matrices[0], two, text, text, two, two),
        Frames: Frames(matrices, np.array([0, 1000]), two, text, text, text, two, two),
        Lines: Lines(x, band, two, text, text, text, text, True, band - 1, band + 1),
        Scatter: Scatter(x, x, text, (text,) * 4, text, text, text),
        Bars: Bars(two, x[:2], text, text, text, x[:2] - 1, x[:2] + 1),
        Surface: Surface(x, x[:2], band, text, text, text, text),
    }


def everywhere(text):
    """An analysis with `text` wherever a checkpoint or a plugin may put some."""
    verdict = Verdict(text, text, "fails", text, Estimate(1.0, 0.0, 2.0, text), Threshold(text, low=3))
    finding = Found(text, np.zeros(2))
    told = {"about": text, "source": text, "looked_at": Need.TASK}
    outcomes = (
        Outcome(text, text, "done", finding, tuple(shown(text).values()), (verdict,), **told),
        Outcome(f"{text} (m)", text, "failed", reason=text, details=f"{text}\n  {text}", **told),
    )
    task = UnavailableTask(3, 8, 1, text)
    versions = {text: text, "icl-interp": text}
    opened = {"origin": text, "format": text, "assumed": (text,) * 3}
    return make(*outcomes, **opened, task=task, task_from=text, versions=versions)


# --- Pages ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Element:
    tag: str
    attributes: dict[str, str]
    within: list["Element"]
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self):
        return "".join(self.pieces)

    def __getitem__(self, name):
        return self.attributes.get(name) or ""


class Page(HTMLParser):
    """The page's elements, in order; every one that is opened is closed, in turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.elements.append(Element(tag, attributes, list(self.open)))
        if tag not in ("meta", "input"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.pieces.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    def all(self, *tags, **attributes):
        """Elements of these tags with these attributes."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        fits = [e for e in self.elements if e.tag in tags or not tags]
        return [e for e in fits if all(e[name] == value for name, value in wanted.items())]

    def one(self, *tags, **attributes):
        (element,) = self.all(*tags, **attributes)
        return element

    def json(self, id_):
        return json.loads(self.one("script", id=id_, type="application/json").text)


def read(*outcomes, **provenance):
    return Page(to_html(make(*outcomes, **provenance)))


@cache
def full():
    return Page(to_html(everywhere("tame text")))


@cache
def tame():
    """The tags of a harmless page, whose order is that of every page, and their kinds."""
    return structure(full()), kinds(full())


def structure(page):
    """Tags, attributes and what is not text of those; what is in a picture or a formula depends on its words."""
    fixed = ("class", "type", "role", "scope", "name", "http-equiv", "charset", "lang", "hidden")
    return [
        (e.tag, *((name, value if name in fixed else None) for name, value in e.attributes.items()))
        for e in page.elements
        if all(parent["role"] != "img" for parent in e.within)
    ]


def kinds(page):
    """Every tag with the names of its attributes."""
    return {(tag, *(name for name, _ in attributes)) for tag, *attributes in structure(page)}


# --- The network is off -----------------------------------------------------------------------------------------------


def policy(page):
    """The Content-Security-Policy, by directive."""
    (meta,) = (e for e in page.all("meta") if e["http-equiv"])
    assert meta["http-equiv"] == "Content-Security-Policy"
    return {name: set(sources) for name, *sources in map(str.split, meta["content"].split(";"))}


def digest(script):
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def executable(page):
    return [e for e in page.all("script") if e["type"] not in ("application/json", "text/plain")]


def stays_here(page):
    """Nothing in the page acts, loads or leads elsewhere."""
    for element in page.elements:
        assert element.tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "image", "use")
        for name, value in element.attributes.items():
            assert not name.startswith(("on", "xlink"))
            assert name not in ("src", "srcset", "action", "formaction", "poster", "background", "style", "ping")
            assert name != "href" or value.startswith("#")
    style = page.one("style").text
    assert not re.search(r"url\(|@import|image-set|http|</", style)
    return True


def test_a_page_is_well_formed():
    for page in (full(), read(), read(done())):
        assert [e.tag for e in page.elements if len(e.within) < 2] == ["html", "head", "body"]
        assert page.one("html")["lang"] == "en"
        assert page.all("meta")[0]["charset"] == "utf-8"
    assert to_html(make()).lstrip().startswith("<!doctype html>")


def test_nothing_reaches_for_the_network():
    assert stays_here(full())
    assert stays_here(read())


def test_the_policy_forbids_all_but_the_pages_own_scripts():
    said = policy(full())
    assert said["default-src"] == said["base-uri"] == said["form-action"] == {"'none'"}
    assert said["style-src"] == {"'unsafe-inline'"}
    assert set().union(*said.values()) <= {"'none'", "'unsafe-inline'", "data:"} | said["script-src"]
    (script,) = executable(full())
    assert script.text == (files("icl_interp_reports") / "templates" / "report.js").read_text(encoding="utf-8")
    assert said["script-src"] == {digest(script.text), digest(get_plotlyjs())}
    tags = [e.tag + e["http-equiv"] for e in full().elements]
    assert tags.index("metaContent-Security-Policy") < min(tags.index("script"), tags.index("style"))


def test_a_page_without_pictures_carries_no_plotly():
    text = to_html(make(done(Text("words"), Equation("x", "x"), Table(("a",), ((1,),), "one"))))
    page = Page(text)
    assert len(text.encode()) < 100_000
    assert policy(page)["script-src"] == {digest(executable(page)[0].text)}
    assert not page.all(id="plotly")
    assert page.json("figures") == {}


def test_plotly_is_in_the_page_as_it_was_packed():
    carried = full().one("script", id="plotly", type="text/plain")
    assert (carried.text, int(carried["data-bytes"])) == packed()


# --- What scripts read ------------------------------------------------------------------------------------------------


def same_after_json(data):
    return json.loads(json.dumps(data))


def test_the_results_are_in_the_page():
    assert full().json("results") == same_after_json(everywhere("tame text").to_data())
    outcomes = [done(value=Found("ω", np.array([1.0, np.nan, np.inf]))), Outcome("b", "b", "broken", reason="no")]
    results = read(*outcomes).json("results")
    assert results == same_after_json(make(*outcomes).to_data())
    assert results["probes"]["mine"]["result"] == {"text": "ω", "numbers": [1.0, "NaN", "Infinity"]}


def test_the_figures_are_in_the_page_by_the_ids_of_their_places():
    figures = full().json("figures")
    drawn = {f"f0-{i}": figure(block) for i, block in enumerate(shown("tame text").values())}
    assert figures == same_after_json({place: spec for place, spec in drawn.items() if spec})
    assert list(figures) == [e["id"] for e in full().all("div", class_="drawn")]
    (slider,) = full().all("input")
    assert slider["data-figure"] in figures
    assert "frames" in figures[slider["data-figure"]]


# --- The same bytes ---------------------------------------------------------------------------------------------------

ANEW = """
import sys
import icl_interp_reports
print(*({"plotly", "jinja2", "latex2mathml"} & set(sys.modules)))
from hashlib import sha256
from icl_interp import analyze
from icl_interp.tasks import LinearRegression
from icl_interp.testing import plant, plant_tasks
run = plant(LinearRegression(3, 8), roles=("positive", "negative")).run
print(sha256(analyze(run, probes=["circuit_pattern", "kernel_fit"], budget=50).to_html().encode()).hexdigest())
"""


def test_the_same_analysis_gives_the_same_text():
    assert to_html(everywhere("tame text")) == to_html(everywhere("tame text"))


def test_so_it_does_in_another_process_and_importing_reports_is_cheap():
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # sets are in another order there
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", ANEW], capture_output=True, text=True, env=environment)
    run = plant(LinearRegression(3, 8), roles=("positive", "negative")).run
    here = icl.analyze(run, probes=["circuit_pattern", "kernel_fit"], budget=50).to_html()
    brought_along, digest_there = there.stdout.splitlines()
    assert brought_along == ""
    assert digest_there == hashlib.sha256(here.encode()).hexdigest()


# --- Hostile files ----------------------------------------------------------------------------------------------------


def unharmed(text):
    """A page with `text` everywhere differs from a tame one in its words only."""
    html = to_html(everywhere(text))
    page = Page(html)
    assert kinds(page) <= tame()[1]
    assert stays_here(page)
    assert all(places(e) for e in page.elements)
    assert [e.text for e in executable(page)] == [e.text for e in executable(full())]
    assert page.one("style").text == full().one("style").text
    steering = {c for c in set(html) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert steering <= set("\n\u200b\u2061\u2062\u2063\u2064")  # the last ones from TeX
    assert len(html.encode()) <= LIMIT
    if len(text) < 5_000:  # else much is left out
        assert structure(page) == tame()[0]
        assert policy(page) == policy(full())
        assert page.json("results") == same_after_json(everywhere(text).to_data())
    return page


def places(element):
    """In a picture or a formula there is only what draws."""
    if any(parent["role"] == "img" for parent in element.within):
        assert element.tag in ("g", "rect", "path", "text", "code") or element.tag in MATHML.split()
    return True


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_a_file_says_becomes_markup(text):
    page = unharmed(text)
    start = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text[:70].split()))
    for said in (page.one("h1").text, page.one("title").text, page.one("main").text):
        assert start in said  # but it is there to read


@settings(max_examples=12)
@given(NASTY)
def test_no_text_at_all_becomes_markup(text):
    unharmed(text)


# --- Size -------------------------------------------------------------------------------------------------------------


def left_out(page):
    """The bytes of the pictures and tables that are not in the page, as it says."""
    notes = re.findall(r"Left out: this (?:picture|table)'s ([\d,]+) bytes", page.one("main").text)
    return [int(note.replace(",", "")) for note in notes]


def test_of_the_enormous_the_largest_is_left_out():
    rng = np.random.default_rng(0)
    x, names = np.arange(3e5), tuple("abcdefgh")
    small = Heatmap(rng.normal(size=(2, 5, 5)), ("KQ", "OV"), "small")
    rows = tuple((str(i), float(i), None) for i in range(100_000))
    analysis = make(
        done(Lines(x, rng.normal(size=(8, len(x))), names, "long curves"), small, name="curves"),
        done(small, Heatmap(rng.normal(size=(8, 400, 400)), names, "large matrices"), name="matrices"),
        done(Frames(rng.normal(size=(80, 8, 60, 60)), np.arange(80), names, "many matrices"), small, name="frames"),
        done(Table(("a", "b", "c"), rows, "a long table"), name="table", value=Found("text", x)),
        done(small, name="circuits", value=Found("text", x)),
    )
    start = time.process_time()
    html = to_html(analysis)
    assert time.process_time() - start < 10
    assert len(html.encode()) <= LIMIT
    page = Page(html)
    kept = page.json("figures")
    assert {"f0-0", "f0-1", "f1-0", "f2-1", "f4-0"} <= set(kept)
    assert not {"f1-1", "f2-0"} & set(kept)
    assert min(left_out(page)) > max(len(json.dumps(spec, separators=(",", ":"))) for spec in kept.values())
    assert "300 of 100,000 rows" in page.one("main").text
    results = page.json("results")
    for name in ("table", "circuits"):
        assert re.fullmatch(r"[\d,]+ bytes: .*to_json.*", results["probes"][name]["result"]["left_out"])
    assert results["probes"]["curves"] == same_after_json(analysis.to_data())["probes"]["curves"]
    assert results["circuits"] == same_after_json(analysis.to_data())["circuits"]


def test_of_many_figures_as_many_as_find_room_are_kept():
    surface = Surface(np.arange(70.0), np.arange(70.0), np.random.default_rng(0).normal(size=(70, 70)), "one of many")
    html = to_html(make(done(*[surface] * 60)))
    page = Page(html)
    assert LIMIT - 50_000 < len(html.encode()) <= LIMIT
    assert 2 < len(page.json("figures")) < 60
    assert len(left_out(page)) == 60 - len(page.json("figures"))


def test_a_static_picture_gives_way_to_a_figure_that_takes_less_room():
    matrices = np.random.default_rng(0).normal(size=(4, 20, 20))
    page = read(done(*[Heatmap(matrices, tuple("abcd"), "one of sixteen")] * 16))
    assert len(page.json("figures")) == 16
    assert 0 < len(page.all("div", class_="still")) < 16


WIDE = Table(tuple(f"c{i}" for i in range(40)), (("x" * 500,) * 40,) * 300, "a wide table", "wide", first_screen=True)


@pytest.mark.parametrize(
    "analysis",
    [
        lambda: make(done(WIDE)),
        lambda: make(done(value=Found("x" * 3_000_000, np.zeros(1)))),
        lambda: make(Outcome("mine", "mine", "failed", reason="x" * 3_000_000, details="y\n" * 3_000_000)),
        lambda: make(origin="x" * 3_000_000),
        lambda: make(task=UnavailableTask(3, 8, 1, "x" * 3_000_000)),
        lambda: make(format="x" * 3_000_000, assumed=("x" * 3_000_000,)),
        lambda: make(assumed=("x" * 300,) * 20_000),
        lambda: make(done(Text("x" * 3_000_000), Equation("x" * 3_000_000, "y" * 3_000_000))),
        lambda: make(done(Bars(("x" * 100,) * 20_000, np.zeros(20_000), "many bars"))),
    ],
    ids=["table", "result", "failure", "origin", "task", "format", "assumptions", "words", "bars"],
)
def test_the_limit_holds_whatever_is_large(analysis):
    html = to_html(analysis())
    assert len(html.encode()) <= LIMIT
    page = Page(html)
    assert page.one("h1").text
    if analysis().outcomes:
        assert page.json("results")["probes"]["mine"]["status"] == analysis()["mine"].status


def test_a_table_that_is_left_out_is_left_out_of_the_first_screen_too():
    page = read(done(WIDE))
    assert len(left_out(page)) == 1
    assert "wide" not in page.one(class_="first").text
    assert "a wide table" in page.one("article").text


# --- Everything is said -----------------------------------------------------------------------------------------------


def verdicts():
    unknown = Estimate(np.nan, -np.inf, np.inf, "runs")
    estimates = (Estimate(1.5, 1.0, 2.0, "fresh prompts"), exact(0.25), unknown, None)
    thresholds = (Threshold("as published", low=0.5), Threshold("a tenth", high=0.1), Threshold("by eye", -1, 1), None)
    statuses = get_args(Status)
    return tuple(
        Verdict(f"claim_{i}", f"equation ({i}.1)", status, f"It {status} so.", estimate, threshold)
        for i, (status, estimate, threshold) in enumerate(zip(statuses, estimates, thresholds, strict=True))
    )


@cache
def telling():
    table = Table(("head", "ω"), ((0, Estimate(0.5, 0.4, 0.6)), (1, -1234.5)), "Each head's ω.", "ω by head", True)
    told = {"about": "It looks at heads.", "source": "bias.py", "looked_at": Need.TASK | Need.DYNAMICS}
    return read(
        done(table, Text("A paragraph."), verdicts=verdicts(), **told),
        Outcome("was_trained", "Was it trained?", "skipped", reason="needs the record", looked_at=Need.DYNAMICS),
        Outcome("deep", "Is it deep?", "not_applicable", reason="there is one layer"),
        Outcome("crash", "Does it crash?", "failed", reason="ValueError: luck", details="Traceback\n  in <f>\nError"),
        Outcome("other (m)", "other (m)", "broken", reason="ImportError: no module", details="Traceback\n  import"),
        origin="runs/h4",
        analysis_seed=17,
        budget=12_345,
    )


def test_claims_are_told_in_full_in_their_card_and_in_brief_on_the_first_screen():
    card, first = telling().one("article", id="probe-mine"), telling().one("section", id="claims")
    for verdict in verdicts():
        for words in (verdict.source, verdict.sentence):
            assert words in card.text
        for place in (card, first):
            assert verdict.claim.replace("_", " ") in place.text
            assert verdict.status.replace("_", " ") in place.text
            assert verdict.threshold is None or str(verdict.threshold) in place.text
        if verdict.threshold:
            assert verdict.threshold.reason in card.text
    for place in (card, first):
        assert "1.50 ± 0.50" in place.text
        assert "0.25 exact" in place.text
        assert "[−∞, ∞]" in place.text
    assert "The interval covers fresh prompts." in card.text
    assert "No sampling error." in card.text
    tally = telling().one("p", class_="tally").text
    assert all(f"1 {status.replace('_', ' ')}" in tally for status in get_args(Status))


def test_every_outcome_is_visible_on_the_first_screen_and_in_its_card():
    first = telling().one("section", id="claims").text
    for id_, status, reason in (
        ("probe-was_trained", "skipped", "needs the record"),
        ("probe-deep", "not applicable", "there is one layer"),
        ("probe-crash", "failed", "ValueError: luck"),
        ("probe-4", "broken", "ImportError: no module"),
    ):
        card = telling().one("article", id=id_).text
        for place in (first, card):
            assert status in place
            assert reason in place
    assert "Traceback\n  in <f>\nError\n" in telling().one("article", id="probe-crash").text
    assert "Does it crash?" in telling().one("article", id="probe-crash").text


def test_what_was_looked_at_and_how():
    card = telling().one("article", id="probe-mine").text
    assert "It looks at heads." in card
    assert "Looked at prompts of the task, the record of the training." in " ".join(card.split())
    assert "12,345 a measurement, drawn with seed 17" in card
    assert "Probe from bias.py" in " ".join(card.split())
    assert "Looks at the record of the training." in telling().one("article", id="probe-was_trained").text
    assert "seed 17" not in telling().one("article", id="probe-was_trained").text


def test_where_the_checkpoint_came_from():
    said = panel(telling()).text
    for words in ("runs/h4", "2 heads, d = 3, N = 1", "LinearRegression(dim=3, length=8", "12,345 prompts", "seed 17"):
        assert words in said
    for name, version in empty().provenance.versions.items():
        assert f"{name} {version}" in said


def test_tables_for_the_first_screen_are_there_and_in_their_card():
    for place in (telling().one(class_="first"), telling().one("article", id="probe-mine")):
        for words in ("ω by head", "0.50 ± 0.10", "−1234"):
            assert words in place.text


@pytest.mark.parametrize(
    ("task_from", "words"),
    [
        ("the run's own", "From the distribution that the model was trained on, as the run recorded it."),
        ("given", "From the distribution that was given, whatever the model was trained on."),
        ("unknown", "None: what needs prompts was skipped."),
        ("unavailable: a user's own", "pass it again as task=."),
    ],
)
def test_where_prompts_come_from(task_from, words):
    (said,) = entries(read(task_from=task_from))["prompts"]
    assert said.endswith(words)


def panel(page):
    return page.one("section", aria_labelledby="provenance-title")


def entries(page):
    """The panel's terms, each with all that is said of it."""
    said = {}
    for element in page.elements:
        if panel(page) in element.within and element.tag == "dt":
            said[name := element.text] = []
        if panel(page) in element.within and element.tag == "dd":
            said[name].append(element.text)
    return said


ASSUMED = ("The scores are divided by √6.", "d is 5: <o_proj> has one row.", "The mask is the published one.")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_was_assumed_is_on_the_first_screen(count):
    page = read(format="a file of <somebody's>", assumed=ASSUMED[:count])
    assert entries(page)["recognised as"] == ["a file of <somebody's>"]
    assert entries(page)["assumed"] == list(ASSUMED[:count] or ["nothing"])
    assert page.one(class_="first") in panel(page).within
    links = [e.text for e in page.all("a", href="#provenance")]
    assert links == {0: [], 1: ["1 thing assumed"], 3: ["3 things assumed"]}[count]
    assert [e.text for e in page.all("dt", class_="assumed")] == ["assumed"] * bool(count)


def test_of_a_checkpoint_in_memory_there_is_nothing_to_recognise():
    assert "recognised as" not in entries(read())


@pytest.mark.parametrize(
    ("outputs", "options"), [(1, "or --length and --noise-var on"), (2, "or --length, --noise-var and --supports on")]
)
def test_an_unknown_task_says_what_is_missing_and_how_to_give_it(outputs, options):
    model = replace(empty().provenance.model, n_outputs=outputs)
    (said,) = entries(read(task=None, task_from="unknown", model=model))["task"]
    assert said.startswith("not known: L and σ² did not come with the checkpoint; pass task= to analyze(), ")
    assert options in said


def test_every_kind_of_block_has_its_place():
    assert set(get_args(Block)) == set(shown("x"))


@pytest.mark.parametrize("kind", shown("x"))
def test_a_block_is_shown_with_its_words(kind):
    page = read(done(shown("the words")[kind]))
    if kind in (Text, Table):
        assert "the words" in page.one("article").text
    elif kind is Equation:
        assert page.one("math")
        assert page.one("div", role="img")["aria-label"] == "the words"
    else:
        assert page.one("figcaption").text == "the words. the words"  # title and alt
        assert page.one("div", id="f0-0", role="img")["aria-labelledby"] == page.one("figcaption")["id"]
        assert "f0-0" in page.json("figures")
        assert page.all("details")[0].text.startswith("Numbers")
        assert page.all("table", class_="numbers")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (-5, "−5"),
        (-0.00012345, "−0.0001234"),
        (np.inf, "∞"),
        (np.float64(0.5), "0.5"),
        ("a_b", "a_b"),
        ("positive", "positive"),
        (Estimate(1.0, 0.9, 1.1), "1.00 ± 0.10"),
        (Estimate(-1.0, -1.5, 3.0), "−1.0 [−1.5, 3.0]"),
        (exact(2.0), "2 exact"),
        (Estimate(0.0, -np.inf, np.inf), "0 [−∞, ∞]"),
    ],
)
def test_cells(cell, text):
    row = read(done(Table(("one",), ((cell,),), "one cell"))).all("td")[-1]
    assert row.text == text


@given(st.floats(-1000, 1000), st.floats(1e-3, 1e3), st.floats(0, 1e3))
def test_a_number_is_written_to_a_tenth_of_its_error(value, below, above):
    estimate = Estimate(value, value - below, value + above)
    number, interval = in_brief(estimate)
    near = pytest.approx
    half, error = (below + above) / 2, 0.06 * (below + above) / 2
    assert float(number.replace("−", "-")) == near(value, abs=error)
    if interval.startswith("± "):
        assert float(interval[2:]) == near(half, abs=error)
        assert abs(above - below) <= 0.1 * half * (1 + 1e-6)
    else:
        low, high = interval.replace("−", "-").strip("[]").split(", ")
        assert (float(low), float(high)) == (near(estimate.low, abs=error), near(estimate.high, abs=error))


# --- For everyone -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["one of everything", "every outcome", "nothing", "a real one"])
def some_page(request):
    if request.param == "a real one":
        run = plant(LinearRegression(3, 8), roles=("positive", "negative")).run
        return Page(icl.analyze(run, budget=100).to_html())
    return {"one of everything": full, "every outcome": telling, "nothing": read}[request.param]()


def test_ids_are_unique_and_what_refers_to_them_finds_them(some_page):
    ids = [e["id"] for e in some_page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in some_page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for", "data-figure"):
            assert name not in element.attributes or element[name] in ids
        assert "href" not in element.attributes or element["href"].removeprefix("#") in ids


def test_headings_go_down_one_by_one(some_page):
    levels = [int(e.tag[1]) for e in some_page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(step <= 1 for step in np.diff(levels))
    assert all(e.text.strip() for e in some_page.all("h1", "h2", "h3", "h4", "h5", "h6"))


def test_tables_have_captions_and_heads(some_page):
    for table in some_page.all("table"):
        inside = [e for e in some_page.elements if table in e.within]
        (caption,) = (e for e in inside if e.tag == "caption")
        assert caption.text.strip()
        heads = [e for e in inside if e.tag == "th"]
        assert heads
        assert all(e["scope"] in ("col", "row") and e.text.strip() for e in heads)
        widths = {
            sum(int(cell["colspan"] or 1) for cell in inside if cell.within[-1] is row)
            for row in inside
            if row.tag == "tr"
        }
        assert len(widths) == 1


def test_pictures_and_landmarks_have_names(some_page):
    named = {e["id"]: e.text.strip() for e in some_page.elements if e["id"]}
    for element in some_page.elements:
        if element["role"] in ("img", "group") or element.tag in ("section", "article"):
            assert element["aria-label"].strip() or named[element["aria-labelledby"]]
        if element.tag in ("figcaption", "summary", "button", "label", "a", "title"):
            assert element.text.strip()
    for tag in ("header", "main"):
        some_page.one(tag)


def test_an_unprintable_title_is_no_title():
    page = read(done(Table(("a",), ((1,),), "the alt", " \n"), Bars(("u",), np.ones(1), "the bar", "\t")))
    assert page.all("caption")[1].text == "the alt"
    assert page.one("figcaption").text == "the bar"


# --- The same numbers in Python ---------------------------------------------------------------------------------------

OWN_FILE = '''
from dataclasses import dataclass
from icl_interp.probes import Need, Text, Threshold, exact, judge, probe

@dataclass(frozen=True)
class Found:
    number: float

@probe(name="mine", title="Mine?", needs=Need.TASK)
class Mine:
    """Mine."""

    def run(self, context):
        return Found(float(context.task.noise_var))

    def blocks(self, result):
        return [Text("one")]

    def judge(self, result):
        return [judge("noise", "none", exact(result.number), Threshold("so", high=1), "It is.")]
'''


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a  'run', \\"
    plant(LinearRegression(3, 8), roles=("positive", "negative")).run.save(path)
    return path


@pytest.fixture
def own_registry(monkeypatch):
    """Forget the probes that a test declares, also within the test."""
    known = dict(registry._REGISTRY)

    def forget():
        monkeypatch.setattr(registry, "_REGISTRY", dict(known))

    forget()
    return forget


def snippet(analysis, probe):
    page = Page(to_html(analysis))
    (code,) = (e for e in page.all("code") if e.within[-1].tag == "pre" and f"[{probe!r}].value" in e.text)
    return code.text


def ran(code):
    names = {}
    exec(compile(code, "the snippet", "exec"), names)
    return names["result"]


def agree(again, analysis, probe):
    assert again is not analysis
    assert to_data(again[probe].value) == to_data(analysis[probe].value)
    assert to_data(again[probe].verdicts) == to_data(analysis[probe].verdicts) != ()
    return True


GIVEN = LinearRegression(3, 12, noise_var=0.3, covariance=kms(0.5))


@pytest.mark.parametrize(
    "task",
    [None, GIVEN, replace(GIVEN, noise_var=np.float64(0.3), covariance=np.diag([1.0, 2, 3]), mean=(1, 0, 2))],
    ids=["its own task", "a task", "a task made of arrays"],
)
def test_it_gives_the_same_numbers(saved, task):
    analysis = icl.analyze(saved, task, probes=["head_roles", "kernel_fit"], seed=3, budget=60)
    for probe in ("head_roles", "kernel_fit"):
        assert agree(ran(snippet(analysis, probe)), analysis, probe)


def test_it_loads_a_probe_from_its_file(saved, tmp_path, monkeypatch, own_registry):
    (tmp_path / "it's mine.py").write_text(OWN_FILE)
    monkeypatch.chdir(tmp_path)
    load_file("it's mine.py")
    analysis = icl.analyze(saved, GIVEN, probes=["mine"])
    own_registry()
    assert agree(ran(snippet(analysis, "mine")), analysis, "mine")


def test_it_imports_a_probe_from_its_module(saved, tmp_path, monkeypatch, own_registry):
    (tmp_path / "a_module_of_mine.py").write_text(OWN_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    import_module("a_module_of_mine")
    analysis = icl.analyze(saved, probes=["mine"])
    own_registry()
    monkeypatch.delitem(sys.modules, "a_module_of_mine")
    assert agree(ran(snippet(analysis, "mine")), analysis, "mine")


@pytest.mark.parametrize(
    ("arrays", "sizes", "task"),
    [
        ({"omega": [0.1, -0.1], "mu": [4.0, -4.0]}, {"dim": 3}, GIVEN),
        (
            {"omega": [[0.1, 0.1, 0.0], [-0.1, -0.1, 0.0]], "mu": [[4.0, 1.0], [-4.0, -1.0]]},
            {"n_outputs": 2},
            MultiTaskRegression(3, [(0, 1), (1, 2)], 12, shared_signal=True),
        ),
    ],
    ids=["sizes that its file does not say", "several responses"],
)
def test_it_opens_a_file_of_another_make(tmp_path, arrays, sizes, task):
    np.savez(tmp_path / "it's four.npz", **arrays)
    opened = icl.Run.load(tmp_path / "it's four.npz", **sizes)
    analysis = icl.analyze(opened, task, probes=["head_roles"], seed=3, budget=60)
    assert agree(ran(snippet(analysis, "head_roles")), analysis, "head_roles")


def test_what_cannot_be_written_down_is_left_to_the_reader():
    class Own(LinearRegression):
        def __repr__(self):
            return "my own\ntask"

    run = plant(LinearRegression(3, 8), roles=("positive", "negative")).run
    code = snippet(icl.analyze(run, Own(3, 8), probes=["head_roles"], budget=20), "head_roles")
    assert "checkpoint = ...  # planted with seed 0\n" in code
    assert "task = ...  # my own task\n" in code
    compile(code, "the snippet", "exec")


def test_a_plugin_that_could_not_be_loaded_has_no_snippet():
    assert not read(Outcome("other (m)", "other (m)", "broken", reason="no")).all("pre")


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_page_on_disk_is_the_text(tmp_path):
    analysis = make(done(Text("ω"), value=Found("ω", np.ones(2))), origin="\udcff")
    text = to_html(analysis)
    assert analysis.to_html() == text
    assert analysis.to_html(tmp_path / "new" / "report.html") is None
    assert (tmp_path / "new" / "report.html").read_bytes() == text.encode()


def test_where_no_page_can_be_written_nothing_is_lost(tmp_path):
    taken, folder = tmp_path / "file", tmp_path / "report.html"
    taken.write_text("here before")
    folder.mkdir()
    (folder / "note").write_text("here before")
    analysis = make(done(Text("words")))
    for path in (taken / "report.html", folder, tmp_path / "\0"):
        with pytest.raises(SaveError, match="could not write"):
            analysis.to_html(path)
    assert taken.read_text() == (folder / "note").read_text() == "here before"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "report.html"}
    assert "words" in analysis.to_html()


# --- Several responses ------------------------------------------------------------------------------------------------


def test_a_page_of_several_tasks_opens_with_who_serves_which():
    """What is about one response is folded away; the page of a model of one response has nothing to fold."""
    probes = ["head_roles", "task_allocation", "kernel_fit"]
    page = to_html(icl.analyze(plant_tasks(mode="III").run, budget=400, probes=probes))
    first = page[page.index('<div class="first">') : page.index('<article class="card"')]
    assert first.count("Who serves which task") == 1
    assert "mean ω" not in first
    shown, folded = first.split("<summary>What does not apply")
    assert "#probe-task_allocation" in shown
    assert "#probe-kernel_fit" not in shown
    assert "#probe-kernel_fit" in folded
    one = to_html(icl.analyze(plant(roles=["positive", "negative"]).run, budget=50, probes=["kernel_fit"]))
    assert "What does not apply" not in one
