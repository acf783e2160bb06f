"""What runs, circuits, analyses and outcomes look like in a notebook and at a terminal's prompt."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import icl_interp as icl
from icl_interp.analysis import Analysis
from icl_interp.circuits import Circuits
from icl_interp.config import ModelConfig
from icl_interp.probing import Estimate, Outcome, Scatter, Table, Text, Threshold, Verdict
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, UnavailableTask
from icl_interp.testing import plant
from icl_interp.weights import initial_weights
from icl_interp_reports.svg import curve_svg

HOSTILE = "<script>alert(1)</script>\x1b[31m\n</style> \"onload='x' {{ 7 * 7 }} \u202e\udcff" + "x" * 10_000
TASK = LinearRegression(3, 8)
VOID = {"meta", "rect", "path", "polyline"}


class Tags(HTMLParser):
    """Every tag, and whether they are balanced."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@cache
def run():
    return icl.train(TASK, n_heads=2, steps=30, n_records=12, progress=False)


@cache
def analysis():
    return icl.analyze(run(), budget=100)


def untrained(**sizes):
    config = ModelConfig(3, **sizes)
    return Run(config, initial_weights(config, torch.Generator().manual_seed(0)))


def hostile(text):
    verdict = Verdict(text, text, "fails", text, Estimate(1.0, 0.0, 2.0, text), Threshold(text, low=0.0))
    blocks = (
        Table((text,), ((text,),), text, text, first_screen=True),
        Text(text),
        Scatter(np.ones(1), np.ones(1), text),
    )
    done = Outcome(text, text, "done", None, blocks, (verdict,), about=text)
    task, versions = UnavailableTask(3, 8, 1, text), {text: text}
    changed = replace(analysis().provenance, origin=text, task=task, task_from=text, versions=versions)
    of_run = Run(run().model_config, run().weights, task, origin=text, versions=versions)
    return of_run, Analysis(changed, analysis().circuits, (done, Outcome(text, text, "failed", reason=text)))


def shown(thing):
    """The fragment, which has to be whole, harmless and by itself."""
    text = thing._repr_html_()
    tags = Tags(text)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    attributes = {attribute for _, found in tags.seen for attribute in found}
    assert not names & {"script", "link", "img", "iframe", "body", "html"}
    assert not attributes & {"id", "src", "href"}
    assert not any(a.startswith("on") for a in attributes)
    text.encode()
    return text


# --- In a notebook ----------------------------------------------------------------------------------------------------


def test_a_run_shows_its_settings_its_loss_and_its_heads():
    text = shown(run())
    assert "one layer, 2 heads, d = 3, N = 1; step 30, seed 0" in text
    assert "LinearRegression(dim=3, length=8" in text
    assert "30 steps of 256 prompts, adam, lr 0.001" in text
    assert text.count("<polyline") == 1
    for omega in run().circuits().omega[0]:
        assert f"{omega:.4g}".replace("-", "−") in text


def test_a_run_of_which_little_is_known():
    text = shown(untrained())
    assert "unknown" in text
    assert "<polyline" not in text


@pytest.mark.parametrize(("sizes", "pictures"), [({}, 2 * 2), ({"n_layers": 2, "n_heads": 3}, 2 * 2 * 3)])
def test_circuits_show_kq_and_ov_of_every_head_of_every_layer(sizes, pictures):
    text = shown(untrained(**sizes).circuits())
    assert len(re.findall(r'aria-label="(?:KQ|OV) (?:layer \d, )?head \d', text)) == pictures
    assert "left out" in text  # what is inert


def test_several_responses_have_a_column_each():
    text = shown(untrained(n_outputs=2).circuits())
    assert "μ_0" in text
    assert "μ_1" in text


def test_an_analysis_shows_the_first_screen_and_every_claim():
    text = shown(analysis())
    for _, row in analysis().verdicts.iterrows():
        assert row.claim.replace("_", " ") in text
    assert "Heads" in text
    assert "Risk at L = 8" in text
    assert 'to_html("report.html")' in text.replace("&#34;", '"')


def test_what_was_not_measured_is_said():
    planted = icl.analyze(plant(TASK, roles=("positive", "negative")).run, probes=["dynamics"], budget=50)
    assert "needs the record of the training" in shown(planted)
    assert "skipped" in shown(planted["dynamics"])


def test_an_outcome_shows_its_claims_and_its_blocks():
    outcome = analysis()["circuit_pattern"]
    text = shown(outcome)
    assert outcome.title in text
    assert "off its diagonal" in text
    assert text.count('role="img"') >= 4
    assert "<details>" in shown(analysis()["dynamics"])  # curves, as numbers


def test_nothing_hostile_gets_through():
    of_run, of_analysis = hostile(HOSTILE)
    for thing in (of_run, of_analysis, *of_analysis):
        text = shown(thing)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "49" not in text
        assert "&lt;script&gt;" in text
        assert len(text) < 200_000


@pytest.mark.parametrize("loss", [[], [1.0], [1.0, np.nan]])
def test_no_curve_without_two_finite_points(loss):
    assert curve_svg(np.array(loss), "loss") == ""


# --- At a prompt ------------------------------------------------------------------------------------------------------


def test_a_line_at_the_prompt():
    assert repr(run()).startswith("<Run of one layer, 2 heads, d = 3, N = 1; step 30, seed 0; loss ")
    assert repr(run().circuits()) == "<Circuits of one layer, 2 heads, d = 3, N = 1>"
    assert repr(analysis()["dynamics"]) == "<Outcome of dynamics: done>"
    assert re.fullmatch(r"<Outcome of risk: 3 [a-z]+>|<Outcome of risk: \d .*, \d .*>", repr(analysis()["risk"]))
    assert repr(Outcome("p", "P?", "skipped", reason="needs the task")) == "<Outcome of p: needs the task>"


def test_printed_they_list_their_heads():
    lines = str(run()).splitlines()
    assert lines[-3].split() == ["layer", "head", "ω", "μ"]
    circuits = run().circuits()
    for head, line in enumerate(lines[-2:]):
        layer, index, omega, mu = map(float, line.split())
        assert (layer, index) == (0, head)
        assert omega == pytest.approx(circuits.omega[0, head], rel=1e-3)
        assert mu == pytest.approx(circuits.mu[0, head, 0], rel=1e-3)
    assert str(circuits).splitlines()[1:] == lines[-3:]
    deep = Circuits.from_weights(untrained(n_layers=2).weights, ModelConfig(3, n_layers=2))
    assert len(str(deep).splitlines()) == 2 + 2 * 2


def test_nothing_steers_the_terminal():
    of_run, of_analysis = hostile(HOSTILE)
    for text in (repr(of_run), str(of_run), repr(of_analysis), *map(repr, of_analysis)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert len(repr(of_run)) < 1_000
