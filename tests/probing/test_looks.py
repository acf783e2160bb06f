"""A probe looks until its prompts decide its claims or the budget ends, and says how often it looked."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp import analyze
from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate, exact, mean_of
from icl_interp.probing import (
    Context,
    Need,
    NotApplicable,
    Text,
    Threshold,
    Verdict,
    context,
    judge,
    outcomes,
    run_probe,
)
from icl_interp.probing.context import DEFAULT_BUDGET
from icl_interp.probing.outcomes import STEP, planned_looks
from icl_interp.probing.verdicts import DECISIVE, LOOKS
from icl_interp.testing import plant

FIRST = 200  # what the tests take for the first look, so that all of them are cheap
AT_MOST = Threshold("nobody knows where it has to lie", high=1.0)
OPEN, CLOSED = Estimate(1.0, 0.9, 1.1, "prompts"), Estimate(0.5, 0.4, 0.6, "prompts")


@dataclass(frozen=True)
class Seen:
    prompts: int


class Looking:
    """A probe whose number is whatever `found` says of so many prompts."""

    name, title, cost, needs, uses = "looking", "Decided?", "nothing", Need.TASK, Need.NONE

    def __init__(self, found, *, needs=Need.TASK, uses=Need.NONE):
        self.found, self.needs, self.uses = found, needs, uses

    def run(self, context):
        return Seen(context.budget)

    def blocks(self, result):
        return [Text(f"{result.prompts} prompts")]

    def judge(self, result):
        return [judge("small", "nowhere", self.found(result.prompts), AT_MOST, "So many.")]


def after(enough):
    """Decided by so many prompts, and not before."""
    return Looking(lambda prompts: CLOSED if prompts >= enough else OPEN)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(outcomes, "FIRST", FIRST)


@pytest.fixture(scope="module")
def run():
    return plant(roles=("positive", "negative")).run


def looked(probe, run, budget=FIRST * STEP):
    return run_probe(probe, Context(run, budget=budget))


# --- How many looks, and of what size ---------------------------------------------------------------------------------


def test_the_default_is_two_looks(run, monkeypatch):
    assert planned_looks(context.FIRST, DEFAULT_BUDGET) == (32_768, 131_072)
    monkeypatch.setattr(outcomes, "FIRST", context.FIRST)
    assert run_probe(after(10**6), Context(run)).looks == (32_768, 131_072)


def test_the_first_look_may_be_another(run):
    assert run_probe(after(10**6), Context(run, budget=100), first=10).looks == (10, 32, 100)
    assert run_probe(after(10**6), Context(run, budget=100), first=101).looks == (100,)
    with pytest.raises(ConfigError, match="first must be a whole number ≥ 1, got 0"):
        run_probe(after(1), Context(run), first=0)


@pytest.mark.parametrize(
    ("budget", "looks"),
    [
        (1, (1,)),
        (199, (199,)),
        (200, (200,)),
        (201, (200, 201)),
        (500, (200, 500)),
        (800, (200, 800)),
        (801, (200, 400, 801)),
        (3_200, (200, 800, 3_200)),
        (12_800, (200, 800, 3_200, 12_800)),
        (200_000, (200, 2_000, 20_000, 200_000)),  # four looks do not get there by steps of four
    ],
)
def test_looks_lie_evenly_between_the_first_and_the_budget(budget, looks):
    assert planned_looks(FIRST, budget) == looks


@given(st.integers(1, 10**9))
def test_looks_grow_to_the_budget_and_are_no_more_than_counted_on(budget):
    looks = planned_looks(FIRST, budget)
    assert looks[-1] == budget
    assert looks[0] == min(FIRST, budget)
    assert len(looks) <= LOOKS
    assert all(less < more for less, more in pairwise(looks))
    if budget <= FIRST * STEP ** (LOOKS - 1):
        assert all(more <= STEP * (less + 1) for less, more in pairwise(looks))


# --- When there is another --------------------------------------------------------------------------------------------


def test_what_the_first_look_decides_is_not_looked_at_again(run):
    outcome = looked(after(FIRST), run)
    assert (outcome.looks, outcome.undecided, outcome.value) == ((FIRST,), (), Seen(FIRST))


def test_what_it_leaves_open_is_looked_at_with_more(run):
    outcome = looked(after(800), run, 12_800)
    assert (outcome.looks, outcome.undecided) == ((200, 800), ())
    assert (outcome.value, outcome.blocks) == (Seen(800), (Text("800 prompts"),))
    assert outcome.verdicts[0].status == "holds"


def test_the_budget_ends_and_it_says_so(run):
    outcome = looked(after(801), run, 800)
    assert (outcome.status, outcome.looks, outcome.undecided) == ("done", (200, 800), ("small",))
    assert outcome.value == Seen(800)


@pytest.mark.parametrize("budget", [1, 50, FIRST])
def test_a_smaller_budget_is_one_look(run, budget):
    assert looked(after(10**6), run, budget).looks == (budget,)


def test_one_open_claim_is_enough(run):
    probe = after(800)
    decided = judge("other", "nowhere", CLOSED, AT_MOST, "So few.")
    probe.judge = lambda result: [decided, *Looking.judge(probe, result)]
    assert looked(probe, run).looks == (200, 800)


@pytest.mark.parametrize(
    "number",
    [
        *(Estimate(1.0, 0.9, 1.1, covers) for covers in ("training time", "time between records", "noise of iterates")),
        Estimate(1.0, -np.inf, np.inf, "training time"),
        exact(np.nan),
    ],
)
def test_more_prompts_are_not_drawn_for_what_they_cannot_decide(run, number):
    outcome = looked(Looking(lambda _: number), run)
    assert (outcome.looks, outcome.undecided) == ((FIRST,), ("small",))


@pytest.mark.parametrize("covers", ["prompts", "batch means", "measurement", ""])
def test_more_are_drawn_for_whatever_else_is_open(run, covers):
    assert looked(Looking(lambda _: Estimate(1.0, 0.9, 1.1, covers)), run).looks == (200, 800)


def test_more_are_drawn_for_what_has_no_number_yet(run):
    probe = after(1)
    probe.judge = lambda result: [
        Verdict("c", "s", "holds" if result.prompts > FIRST else "inconclusive", "Too few prompts, or not.")
    ]
    assert (looked(probe, run).looks, looked(probe, run).undecided) == ((200, 800), ())


def test_no_claim_is_a_claim_that_is_decided(run):
    probe = after(1)
    probe.judge = lambda _: []
    assert looked(probe, run).looks == (FIRST,)


def test_where_nothing_is_drawn_there_is_no_look(run):
    bare = type(run)(run.model_config, run.weights)
    assert looked(Looking(lambda _: OPEN, needs=Need.WEIGHTS), run).looks == ()
    assert looked(Looking(lambda _: OPEN, needs=Need.WEIGHTS, uses=Need.TASK), bare).looks == ()
    assert looked(Looking(lambda _: OPEN, needs=Need.WEIGHTS, uses=Need.TASK), run).looks == (200, 800)
    skipped = looked(Looking(lambda _: OPEN), bare)
    assert (skipped.status, skipped.looks, skipped.undecided) == ("skipped", (), ())


# --- What goes wrong --------------------------------------------------------------------------------------------------


def ending(error, *, at):
    """Open, until the look at so many prompts ends in `error`."""

    def found(prompts):
        if prompts >= at:
            raise error
        return OPEN

    return Looking(found)


@pytest.mark.parametrize("error", [MemoryError("big"), RuntimeError("bad luck"), SystemExit(3)])
def test_a_crash_in_a_further_look_leaves_what_was_found_and_is_seen(run, error):
    outcome, first = looked(ending(error, at=800), run), looked(ending(error, at=800), run, FIRST)
    assert (outcome.status, outcome.looks, outcome.undecided) == ("done", (FIRST,), ("small",))
    assert (outcome.value, outcome.blocks, outcome.verdicts) == (first.value, first.blocks, first.verdicts)
    assert outcome.reason == f"a further look, with 800 prompts, failed: {type(error).__name__}: {error}"
    assert "Traceback" in outcome.details
    assert (first.reason, first.details) == ("", "")


def test_a_crash_in_the_first_look_is_a_failure(run):
    outcome = looked(ending(ValueError("bad luck"), at=1), run)
    assert (outcome.status, outcome.reason, outcome.looks) == ("failed", "ValueError: bad luck", (FIRST,))


def test_a_further_look_may_find_that_the_claim_does_not_apply(run):
    outcome = looked(ending(NotApplicable("a denominator is zero"), at=800), run)
    assert (outcome.status, outcome.reason) == ("not_applicable", "a denominator is zero")
    assert (outcome.looks, outcome.verdicts, outcome.value) == ((200, 800), (), None)


@pytest.mark.parametrize("at", [1, 800])
def test_ctrl_c_passes_through_in_any_look(run, at):
    with pytest.raises(KeyboardInterrupt):
        looked(ending(KeyboardInterrupt(), at=at), run)


# --- Sampled numbers --------------------------------------------------------------------------------------------------


class Sampling(Looking):
    """The mean of standard normal numbers, one a prompt; `shift` standard errors of the first look below its limit."""

    def __init__(self, shift):
        super().__init__(None)
        self.shift = shift

    def run(self, context):
        numbers = context.rng("numbers").standard_normal(context.budget)
        estimate = mean_of(numbers - self.shift / np.sqrt(FIRST) + 1)
        return Mean(context.budget, estimate)

    def judge(self, result):
        return [judge("small", "nowhere", result.mean, AT_MOST, "So large.")]


@dataclass(frozen=True)
class Mean:
    prompts: int
    mean: Estimate


@pytest.mark.parametrize(("shift", "looks"), [(5.2, 1), (2.6, 2), (1.3, 3), (0.0, 4)])
def test_nearer_to_its_limit_a_number_takes_more_looks(run, shift, looks):
    """It takes 3.6 standard errors, and they halve from look to look.  Of sixteen draws, since one may be lucky."""
    budget = FIRST * STEP**3
    found = [run_probe(Sampling(shift), Context(run, budget=budget, seed=seed)) for seed in range(16)]
    assert np.median([len(outcome.looks) for outcome in found]) == looks
    for outcome in found:
        last = outcome.verdicts[0].estimate
        assert outcome.value.prompts == outcome.looks[-1]
        assert (not outcome.undecided) == (last.stretched(DECISIVE).high <= 1.0 or last.stretched(DECISIVE).low > 1.0)
        assert outcome.undecided == () or outcome.looks[-1] == budget


def test_a_look_is_what_an_analysis_with_that_budget_finds(run):
    """All that the looks share is what is not sampled: the second is as if there had been no first."""
    names = ["head_roles", "kernel_fit", "risk", "length_generalization"]
    found = analyze(run, probes=names, budget=FIRST * STEP)
    twice = [outcome.probe for outcome in found if len(outcome.looks) > 1]
    assert 0 < len(twice) < len(names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes, "FIRST", FIRST * STEP)
        at_once = analyze(run, probes=twice, budget=FIRST * STEP)
    for name in twice:
        assert found[name].looks == (200, 800)
        assert found.to_data()["probes"][name] == at_once.to_data()["probes"][name] | {"looks": [200, 800]}


def test_the_same_seed_looks_the_same_way_whichever_others_run(run):
    both = analyze(run, probes=["risk", "head_roles"], budget=FIRST * STEP)
    for name in ("risk", "head_roles"):
        alone = analyze(run, probes=[name], budget=FIRST * STEP)
        assert alone.to_data()["probes"][name] == both.to_data()["probes"][name]


def test_heads_are_classified_once_a_look_for_all_probes(run, monkeypatch):
    calls = []
    real = context.classify
    monkeypatch.setattr(context, "classify", lambda *parts: calls.append(1) or real(*parts))

    class Heads(Looking):
        def run(self, context):
            return Seen(len(context.heads.roles) and context.budget)

    seen = Context(run, budget=FIRST * STEP)
    needs = Need.FORWARD | Need.TASK
    for _ in range(3):
        assert run_probe(Heads(lambda _: OPEN, needs=needs), seen).looks == (200, 800)
    assert len(calls) == 2
