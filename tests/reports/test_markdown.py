"""The analysis as Markdown: everything is said, and nothing that a file says becomes markup."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp import analyze
from icl_interp.analysis import Analysis
from icl_interp.probing import Bars, Equation, Estimate, Heatmap, Outcome, Table, Text, Threshold, Verdict, exact
from icl_interp.tasks import LinearRegression, UnavailableTask
from icl_interp.testing import plant
from icl_interp_reports import to_markdown
from icl_interp_reports.markdown import escape
from icl_interp_reports.words import clean

HOSTILE = (
    "\x1b[31m | `code` *bold* _em_ ~~gone~~ $x$ &lt; <script>alert(1)</script> [a](http://b) ![i](j)\n\n# head\n---"
)
MARKUP = re.compile(r"(?<!\\)(?:\\\\)*[`*_\[\]<>|#~&$]")


@cache
def empty():
    return analyze(plant(LinearRegression(3, 8), roles=("positive", "negative")).run, probes=[])


def make(*outcomes, **provenance):
    return Analysis(replace(empty().provenance, **provenance), empty().circuits, outcomes)


def hostile(text):
    verdict = Verdict(text, text, "fails", text, Estimate(1.0, 0.0, 2.0, text), Threshold(text, low=0.0))
    shown = (
        Table((text, text), ((text, 1.0),), alt=text, title=text),
        Text(text),
        Equation(text, text),
        Bars((text,), np.ones(1), text, text),
        Heatmap(np.ones((1, 1, 1)), (text,), text, text, (text,), (text,)),
    )
    done = Outcome(text, text, "done", None, shown, (verdict,))
    failed = Outcome(text, text, "failed", reason=text)
    opened = {"origin": text, "format": text, "assumed": (text, text)}
    return make(done, failed, **opened, task=UnavailableTask(3, 8, 1, text), task_from=text)


def shape_of(document):
    """What kind of line each is: a heading, a row of so many cells, an item, a paragraph."""
    kinds = []
    for line in document.split("\n"):
        if row := re.fullmatch(r"\|.*\|", line):
            kinds.append(len(re.findall(r"(?<!\\)\|", row[0])))
        else:
            kinds.append(re.match(r"#{1,2} |- |\*\*|\*|$|", line)[0])
    return kinds


@given(st.text(st.characters()) | st.text("\\`*_[]<>|#~&$-+=.)1 \n", max_size=12))
def test_escaped_text_holds_no_markup(text):
    line = escape(text)
    assert line.isprintable()
    assert not MARKUP.search(line)
    assert not re.match(r"[-+=]([-+= ]|$)|\d+[.)]( |$)", line)
    assert re.sub(r"\\([^\w\s]|_)", r"\1", line) == clean(text)  # and shows what was there


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- item", r"\- item"),
        ("---", r"\---"),
        ("+ item", r"\+ item"),
        ("1. item", r"1\. item"),
        ("12) item", r"12\) item"),
        ("-0.5", "-0.5"),
        ("1.5 units", "1.5 units"),
        ("3 heads", "3 heads"),
        ("a_b", r"a\_b"),
        ("two\nlines", "two lines"),
        ("&lt;", r"\&lt;"),
        ("\\", r"\\"),
    ],
)
def test_what_a_line_begins_with(text, line):
    assert escape(text) == line


def test_a_hostile_checkpoint_changes_no_structure():
    tame, wild = to_markdown(hostile("tame")), to_markdown(hostile(HOSTILE))
    assert shape_of(wild) == shape_of(tame)
    assert all(line.isprintable() for line in wild.split("\n"))
    assert "<script" not in wild.replace(r"\<", "")
    assert "alert" in wild


@given(st.text(st.characters()).filter(str.strip))
def test_no_text_changes_the_structure(text):
    assert shape_of(to_markdown(hostile(text))) == shape_of(to_markdown(hostile("tame")))


def test_ten_thousand_characters():
    document = to_markdown(hostile("x" * 10_000))
    assert shape_of(document) == shape_of(to_markdown(hostile("tame")))
    headings = [line for line in document.split("\n") if line.startswith("#")]
    assert max(map(len, headings)) < 1000
    assert "x" * 10_000 in document  # a paragraph is not cut


def test_every_outcome_is_visible():
    document = to_markdown(
        make(
            Outcome("a", "Was it trained?", "skipped", reason="needs the record of the training"),
            Outcome("b", "Is it deep?", "not_applicable", reason="one layer"),
            Outcome("c", "Does it crash?", "failed", reason="ValueError: bad luck", details="secret"),
            Outcome("mine (m)", "mine (m)", "broken", reason="could not be loaded: ImportError: no"),
        )
    )
    for words in (
        "## Was it trained?\n\n*skipped*: needs the record of the training\n",
        "## Is it deep?\n\n*not applicable*: one layer\n",
        "## Does it crash?\n\n*failed*: ValueError: bad luck\n",
        "## mine (m)\n\n*broken*: could not be loaded: ImportError: no\n",
    ):
        assert words in document
    assert "secret" not in document


def test_a_document():
    table = Table(("head", "ω", "note"), ((0, 0.123456, None), (1, -2.0, "a|b")), alt="Heads.", title="ω by head")
    verdict = Verdict("kq_diagonal", "(3.1)", "holds", "It is.", exact(0.01), Threshold("r", high=0.2))
    document = to_markdown(
        make(Outcome("p", "Is it?", "done", None, (table, Text("Words."), Equation("x^2", "x squared")), (verdict,)))
    )
    assert document.startswith(
        "# icl-interp: planted with seed 0\n\n- model: one layer, 2 heads, d = 3, N = 1\n- task "
    )
    assert document.endswith(
        "| status | claim | value, 95 % interval | what was found | how reliable | source |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| holds | kq\\_diagonal | 0.01 exact, wanted ≤ 0.2 | It is. | not calibrated | (3.1) |\n"
        "\n"
        "## Is it?\n"
        "\n"
        "**ω by head**\n"
        "\n"
        "| head | ω | note |\n"
        "| --- | --- | --- |\n"
        "| 0 | 0.1235 |  |\n"
        "| 1 | -2 | a\\|b |\n"
        "\n"
        "Words.\n"
        "\n"
        "*Equation: x squared*\n"
    )


def test_what_was_assumed_is_among_the_settings():
    document = to_markdown(make(format="plain arrays", assumed=("`d` is 3.", "N is 1.")))
    assert "\n\n- recognised as: plain arrays\n- model: " in document
    assert "\n- assumed: \\`d\\` is 3.\n- assumed: N is 1.\n\n## Verdicts" in document


def test_the_same_analysis_gives_the_same_bytes(tmp_path):
    for name in ("a.md", "b.md"):
        hostile(HOSTILE).to_markdown(tmp_path / name)
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()
    assert (tmp_path / "a.md").read_text() == to_markdown(hostile(HOSTILE))
