"""`check_probe`: for each clause of a probe's contract, a probe that breaks just that one is caught, and told how."""

import itertools
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float

from icl_interp.probing import Context, Estimate, Need, NotApplicable, Table, Text, Verdict, discover, mean_of, registry
from icl_interp.testing import ProbeContractError, check_probe, plant

BUDGET = 60


@dataclass(frozen=True, eq=False)
class Found:
    mean: Estimate
    errors: Float[np.ndarray, "prompts"]


class Good:
    """Keeps the contract; the bad ones below change one thing."""

    name, title, cost = "good", "Is the mean error small?", "nothing"
    needs, uses = Need.FORWARD | Need.TASK, Need.DYNAMICS

    def run(self, context: Context) -> Found:
        prompt = context.sample("good")
        errors = (context.predict(prompt) - prompt.y_q)[:, 0].numpy()
        if context.offers(Need.DYNAMICS):
            errors = errors - context.dynamics.loss.mean()
        return Found(mean_of(errors), errors)

    def blocks(self, result: Found):
        return [Table(("mean error",), ((str(result.mean),),), alt="The mean error."), Text(f"{result.errors.max()}")]

    def judge(self, result: Found):
        return [Verdict("small", "here", "holds", f"It is {result.mean}.", result.mean)]


def breach(bad, *runs):
    with pytest.raises(ProbeContractError) as caught:
        check_probe(bad, *runs, budget=BUDGET)
    return str(caught.value)


def test_a_good_probe_passes_as_class_or_instance():
    check_probe(Good, budget=BUDGET)
    check_probe(Good(), budget=BUDGET)


@pytest.mark.parametrize("name", ["circuit_pattern", "head_roles", "kernel_fit", "risk", "dynamics"])
def test_the_built_ins_pass(name):
    check_probe(discover()[0][name], budget=300)


def test_the_readmes_probe_passes(monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from dataclasses .*?)```", readme, flags=re.DOTALL)
    discover()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    module = ModuleType("readme_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(example, vars(module))
    check_probe(module.BiasProbe, budget=BUDGET)


@pytest.mark.parametrize("thing", [object(), type("Bare", (), {"run": print})])
def test_what_is_not_a_probe(thing):
    assert "is not a probe: declare it with @probe(...)" in breach(thing)


def test_one_that_fails():
    class Bad(Good):
        def run(self, context):
            if context.config.n_heads == 1:
                raise ZeroDivisionError("one head")
            return super().run(context)

    message = breach(Bad)
    assert "good failed on planted with seed 0: ZeroDivisionError: one head" in message
    assert "Traceback" in message


def test_one_that_fails_on_a_deep_model():
    class Bad(Good):
        def run(self, context):
            assert context.config.n_layers == 1
            return super().run(context)

    assert "good failed on 2 untrained layers: AssertionError" in breach(Bad)

    class Fine(Bad):
        needs = Bad.needs | Need.ONE_LAYER

    check_probe(Fine, budget=BUDGET)


def test_one_that_fails_on_a_run_of_ones_own():
    class Bad(Good):
        def run(self, context):
            assert context.config.n_heads < 7
            return super().run(context)

    check_probe(Bad, budget=BUDGET)
    mine = plant(roles=("positive", "negative") * 4).run
    assert "good failed on my run: AssertionError" in breach(Bad, replace(mine, origin="my run"))


def test_one_that_never_reaches_a_result():
    class Bad(Good):
        def run(self, context):
            raise NotApplicable("never")

    assert "good reached a result on none of 6 models" in breach(Bad)


def test_one_that_returns_what_is_not_a_frozen_dataclass():
    class Bad(Good):
        def run(self, context):
            return {"mean": 0}

    assert "run() must return a frozen dataclass, got dict" in breach(Bad)


def test_one_that_is_not_deterministic():
    class Bad(Good):
        def run(self, context):
            return Found(mean_of(np.random.default_rng().normal(size=5)), np.zeros(2))

    assert "good is not deterministic under a seed" in breach(Bad)


def test_one_whose_second_run_remembers_the_first():
    class Bad(Good):
        count = itertools.count()

        def run(self, context):
            return Found(mean_of(np.arange(3.0) + next(self.count)), np.zeros(2))

    assert "good is not deterministic under a seed" in breach(Bad)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1),
        lambda: np.random.rand(),
        lambda: (torch.manual_seed(0), np.random.seed(0)),
    ],
    ids=["torch", "numpy", "seeding"],
)
def test_one_that_touches_a_global_generator(draw):
    class Bad(Good):
        def run(self, context):
            draw()
            return super().run(context)

    torch.manual_seed(1)
    np.random.seed(1)
    assert "good drew from a global random generator; draw from the context" in breach(Bad)


def test_one_that_changes_the_weights():
    class Bad(Good):
        def run(self, context):
            context._run.weights["W_O"].mul_(2)
            return super().run(context)

    assert "good changed the run: its weights or its dynamics" in breach(Bad)


@pytest.mark.parametrize("part", ["loss", "omega", "snapshots"])
def test_one_that_changes_the_dynamics(part):
    class Bad(Good):
        def run(self, context):
            if context.offers(Need.DYNAMICS):
                kept = getattr(context.dynamics, part)
                (kept["W_Q"] if part == "snapshots" else kept)[0] += 1
            return super().run(context)

    assert "good changed the run: its weights or its dynamics" in breach(Bad)


# --- JSON -------------------------------------------------------------------------------------------------------------


def returning(kind, value):
    class Bad(Good):
        needs = Need.NONE

        def run(self, context):
            return kind(value)

        def blocks(self, result):
            return [Text(f"{result.part}")]

        def judge(self, result):
            return []

    return Bad


def test_a_result_that_does_not_go_to_json():
    @dataclass(frozen=True)
    class Odd:
        part: object

    assert "Odd, what run() returned, does not go to JSON" in breach(returning(Odd, {1, 2}))


def test_a_result_that_does_not_come_back_from_json():
    @dataclass(frozen=True)
    class Odd:
        part: str

    message = breach(returning(Odd, None))
    assert "good: Odd does not come back from JSON: " in message
    assert "expected str, got " in message


def test_a_result_that_comes_back_as_something_else():
    @dataclass(frozen=True)
    class Odd:
        part: Float[np.ndarray, "numbers"]

    assert "good: Odd comes back from JSON as something else" in breach(returning(Odd, np.array([1, 2])))


def test_a_result_whose_types_do_not_say_what_is_in_it():
    """An array in a field of any type comes back as lists; then the words about it differ."""

    @dataclass(frozen=True)
    class Odd:
        part: Any

    message = breach(returning(Odd, np.array([0.5, 1.0])))
    assert "good: blocks() or judge() depend on more than what the result's fields and their types say" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0, 1e-320, np.float64(0.1), np.float32(0.1)])
def test_any_float_survives(value):
    @dataclass(frozen=True)
    class Fine:
        part: float

    check_probe(returning(Fine, value), budget=BUDGET)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (1, 1), (3, 2)])
def test_any_array_survives(shape):
    @dataclass(frozen=True, eq=False)
    class Fine:
        part: Float[np.ndarray, "*shape"]

    check_probe(returning(Fine, np.full(shape, np.nan)), budget=BUDGET)


@pytest.mark.parametrize("method", ["blocks", "judge"])
def test_one_whose_words_rest_on_what_run_left_behind(method):
    class Bad(Good):
        left = None

        def run(self, context):
            self.left = "a secret"
            return super().run(context)

        def blocks(self, result):
            return [Text(f"{self.left}")] if method == "blocks" else []

        def judge(self, result):
            return [Verdict("c", "s", "holds", f"{self.left}")] if method == "judge" else []

    assert "blocks() or judge() depend on more than what the result's fields" in breach(Bad)


def test_one_whose_words_break_without_what_run_left_behind():
    class Bad(Good):
        def run(self, context):
            self.left = "a secret"
            return super().run(context)

        def judge(self, result):
            return [Verdict("c", "s", "holds", self.left)]

    message = breach(Bad)
    assert "depend on more than what the result's fields" in message
    assert "AttributeError" in message


# --- Blocks and verdicts ----------------------------------------------------------------------------------------------


def test_a_block_without_an_alt_text():
    class Bad(Good):
        def blocks(self, result):
            return [Table(("a",), ((1,),), alt=" ")]

    assert "a Table needs an alt text that says what it shows" in breach(Bad)


@pytest.mark.parametrize(
    ("words", "lacks"), [(("", "s", "x."), "claim"), (("c", " ", "x."), "source"), (("c", "s", ""), "sentence")]
)
def test_a_verdict_without_words(words, lacks):
    class Bad(Good):
        def judge(self, result):
            claim, source, sentence = words
            return [Verdict(claim, source, "holds", sentence)]

    assert f"a verdict needs a {lacks}" in breach(Bad)


def test_a_claim_named_twice():
    class Bad(Good):
        def judge(self, result):
            return [Verdict("same", "s", "holds", sentence) for sentence in ("One.", "Two.")]

    assert "good names a claim twice: ['same', 'same']" in breach(Bad)


# --- Needs ------------------------------------------------------------------------------------------------------------


def test_one_that_looks_at_more_than_it_declares():
    class Bad(Good):
        needs = Need.FORWARD

    assert "UndeclaredNeed: the probe looked at task without declaring Need.TASK in its needs or uses" in breach(Bad)


def test_one_that_cannot_do_without_what_it_merely_uses():
    class Bad(Good):
        needs, uses = Need.FORWARD, Need.TASK | Need.DYNAMICS

        def run(self, context):
            if not context.offers(Need.TASK):
                raise KeyError("task")
            return super().run(context)

    message = breach(Bad)
    assert "good fails on planted with seed 0 with nothing but what it needs: KeyError: 'task'" in message


def test_one_that_needs_the_dynamics_and_merely_uses_the_task():
    class Bad(Good):
        needs, uses = Need.FORWARD | Need.DYNAMICS, Need.TASK

        def run(self, context):
            if not context.offers(Need.TASK):
                raise KeyError("task")
            return super().run(context)

    assert "with nothing but what it needs: KeyError: 'task'" in breach(Bad)


def test_one_that_does_without():
    class Fine(Good):
        needs, uses = Need.NONE, Need.FORWARD | Need.TASK | Need.DYNAMICS

        def run(self, context):
            if not context.offers(Need.FORWARD | Need.TASK):
                raise NotApplicable("nothing to predict")
            return super().run(context)

    check_probe(Fine, budget=BUDGET)
