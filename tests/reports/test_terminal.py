"""The analysis on a terminal: everything is said, and nothing that a file says steers the terminal."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp import analyze
from icl_interp.analysis import Analysis
from icl_interp.probing import Estimate, Outcome, Table, Threshold, Verdict, exact, mean_of
from icl_interp.tasks import LinearRegression, UnavailableTask
from icl_interp.testing import plant
from icl_interp_reports import to_text
from icl_interp_reports.words import LONGEST, brief, clean, number, settings

HOSTILE = "\x1b[31mred\x1b[0m\x07\r\n\t\x00\u202eesrever\u2028\udcff|`*_<b>"


@cache
def empty():
    return analyze(plant(LinearRegression(3, 8), roles=("positive", "negative")).run, probes=[])


def make(*outcomes, **provenance):
    return Analysis(replace(empty().provenance, **provenance), empty().circuits, outcomes)


def printable(text):
    return all(line.isprintable() for line in text.split("\n"))


def hostile(text):
    verdict = Verdict(text, text, "fails", text, Estimate(1.0, 0.0, 2.0, text), Threshold(text, low=0.0))
    table = Table((text,), ((text,),), alt=text, title=text)
    task = UnavailableTask(3, 8, 1, text)
    done = Outcome(text, text, "done", None, (table,), (verdict,))
    opened = {"origin": text, "format": text, "assumed": (text, text)}
    return make(done, Outcome(text, text, "failed", reason=text), **opened, task=task, task_from=text)


def test_nothing_steers_the_terminal():
    text = to_text(hostile(HOSTILE))
    assert printable(text)
    assert "[31mred" in text


@given(st.text(st.characters()).filter(str.strip))
def test_no_text_at_all_steers_the_terminal(text):
    assert printable(to_text(hostile(text)))


def test_ten_thousand_characters_are_cut_where_a_name_is_wanted():
    text = to_text(hostile("x" * 10_000))
    assert printable(text)
    assert max(map(len, text.split("\n"))) < 3 * LONGEST
    assert "… (9,500 more characters)" in text
    assert sum(line.strip() == "x" * len(line.strip()) for line in text.split("\n")) > 50  # prose is wrapped, not cut


def test_every_outcome_is_visible():
    verdict = Verdict("signs_match", "here", "inconclusive", "Too few prompts.", mean_of(empty().circuits.mu[0, :1, 0]))
    text = to_text(
        make(
            Outcome("a", "Does it work?", "done", verdicts=(verdict,)),
            Outcome("b", "Was it trained?", "skipped", reason="needs the record of the training"),
            Outcome("c", "Is it deep?", "not_applicable", reason="one layer"),
            Outcome("d", "Does it crash?", "failed", reason="ValueError: bad luck", details="Traceback: secret"),
            Outcome("mine (m)", "mine (m)", "broken", reason="could not be loaded: ImportError: no"),
        )
    )
    for words in (
        "Does it work?\n  inconclusive   signs_match ",
        "Too few prompts.",
        "Was it trained?\n  skipped: needs the record of the training",
        "Is it deep?\n  not applicable: one layer",
        "Does it crash?\n  failed: ValueError: bad luck",
        "mine (m)\n  broken: could not be loaded: ImportError: no",
    ):
        assert words in text
    assert "secret" not in text


def test_a_long_claim_stays_apart_from_its_number():
    verdict = Verdict("c" * 40, "here", "holds", "Yes.", exact(0.5))
    assert f"{'c' * 40} 0.5 exact" in to_text(make(Outcome("a", "A?", "done", verdicts=(verdict,))))


@pytest.mark.parametrize(
    ("estimate", "threshold", "said"),
    [
        (None, None, ""),
        (exact(0.25), None, "0.25 exact"),
        (exact(0.25), Threshold("r", high=0.5), "0.25 exact, wanted ≤ 0.5"),
        (Estimate(1.23456, 1.1, 1.3, "prompts"), Threshold("r", 0.9, 1.1), "1.23 [1.10, 1.30], wanted 0.9 … 1.1"),
        (Estimate(0.0, 0.0, 0.0, "prompts"), None, "0 [0, 0]"),  # measured, not exact, though all samples agreed
        (Estimate(float("nan"), float("-inf"), float("inf")), None, "nan [-inf, inf]"),
    ],
)
def test_a_number_with_its_interval_and_threshold(estimate, threshold, said):
    assert number(Verdict("c", "s", "holds", "Yes.", estimate, threshold)) == said


def test_the_settings_say_what_was_read_and_how():
    model, task, sampling = settings(make(step=20_000, training_seed=7, budget=12_345, analysis_seed=3))
    assert model == "model: one layer, 2 heads, d = 3, N = 1; step 20,000, seed 7"
    assert task.startswith("task (the run's own): LinearRegression(dim=3, length=8")
    assert sampling == "sampling: up to 12,345 prompts a measurement, seed 3"
    config = replace(empty().provenance.model, n_heads=1, n_layers=3)
    assert settings(make(model=config))[0] == "model: 3 layers, one head, d = 3, N = 1"


def test_the_settings_say_what_a_checkpoint_was_taken_for_and_what_was_assumed():
    said = settings(make(format="plain arrays", assumed=("d is 3.", "N is\n1."), task=None, task_from="unknown"))
    assert said[0] == "recognised as: plain arrays"
    assert said[2] == (
        "task: not known: L and σ² did not come with the checkpoint; pass task= to analyze(), or --length and "
        "--noise-var on the command line"
    )
    assert said[-2:] == ["assumed: d is 3.", "assumed: N is 1."]
    assert settings(make(assumed=("a",) * 1_000))[-2:] == ["assumed: a", "assumed: and 980 things more"]


def test_so_does_a_run():
    run = plant(LinearRegression(3, 8), roles=("positive", "negative")).run
    lines = str(replace(run, task=None, format="plain\x1b arrays", assumed=("d is 3.",))).split("\n")
    assert lines[0] == "recognised as: plain\N{REPLACEMENT CHARACTER} arrays"
    assert lines[2].startswith("task: not known: L and σ² did not come with the checkpoint; pass task=")
    assert lines[lines.index("") - 1] == "assumed: d is 3."


@given(st.text(st.characters()))
def test_cleaning_keeps_what_can_be_printed(text):
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)
    if text.isprintable():
        assert clean(text).split() == text.split()
    assert len(brief(text)) <= LONGEST + 40


def test_the_same_analysis_reads_the_same():
    assert to_text(hostile(HOSTILE)) == to_text(hostile(HOSTILE)) == str(hostile(HOSTILE))
