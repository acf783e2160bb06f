"""Whatever a probe does, an outcome comes back and says what happened."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from icl_interp.probing import (
    Context,
    Need,
    NotApplicable,
    Text,
    Verdict,
    broken,
    discover,
    load_file,
    registry,
    run_probe,
)
from icl_interp.testing import plant

OWN_FILE = '''
from dataclasses import dataclass
from icl_interp.probes import Need, Text, probe

@dataclass(frozen=True)
class Found:
    number: float = 1.0

@probe(name="mine", title="Mine?", needs=Need.NONE)
class Mine:
    """Mine."""

    def run(self, context):
        return Found()

    def blocks(self, result):
        return [Text("one")]

    def judge(self, result):
        return []
'''


@dataclass(frozen=True)
class Found:
    number: float = 1.0


@dataclass
class Thawed:
    number: float = 1.0


@dataclass(frozen=True)
class Opaque:
    thing: object = field(default_factory=object)


@dataclass(frozen=True)
class Tensors:
    weights: object = field(default_factory=lambda: torch.zeros(2))


class Plain:
    """A probe as a plain object: every part of it can be replaced."""

    name, title, needs, uses, cost = "plain", "Plain?", Need.NONE, Need.NONE, "nothing"

    def __init__(self, **parts):
        for name, part in parts.items():
            setattr(self, name, part)

    def run(self, context):
        return Found()

    def blocks(self, result):
        return [Text("one")]

    def judge(self, result):
        return [Verdict("c", "s", "holds", "It holds.")]


@pytest.fixture(scope="module")
def seen():
    return Context(plant(roles=("positive", "negative")).run, budget=20)


def raising(error):
    def method(*_):
        raise error

    return method


def test_a_good_probe_is_done(seen):
    outcome = run_probe(Plain(), seen)
    assert (outcome.probe, outcome.title, outcome.status, outcome.value) == ("plain", "Plain?", "done", Found())
    assert outcome.blocks == (Text("one"),)
    assert [v.claim for v in outcome.verdicts] == ["c"]
    assert outcome.reason == outcome.details == ""


def test_blocks_and_verdicts_may_be_generated(seen):
    outcome = run_probe(Plain(blocks=lambda _: (Text(word) for word in "ab"), judge=lambda _: iter(())), seen)
    assert outcome.status == "done"
    assert [block.text for block in outcome.blocks] == ["a", "b"]


@pytest.mark.parametrize("where", ["run", "blocks", "judge"])
@pytest.mark.parametrize(
    "error", [ValueError("bad luck"), AssertionError("no"), RecursionError("deep"), MemoryError("big"), SystemExit(3)]
)
def test_a_probe_that_raises_has_failed(seen, where, error):
    outcome = run_probe(Plain(**{where: raising(error)}), seen)
    assert outcome.status == "failed"
    assert outcome.reason == f"{type(error).__name__}: {error}"
    assert "Traceback" in outcome.details
    assert "in method" in outcome.details
    assert (outcome.value, outcome.blocks, outcome.verdicts) == (None, (), ())


@pytest.mark.parametrize("where", ["run", "blocks", "judge"])
def test_ctrl_c_passes_through(seen, where):
    with pytest.raises(KeyboardInterrupt):
        run_probe(Plain(**{where: raising(KeyboardInterrupt())}), seen)


@pytest.mark.parametrize("where", ["run", "blocks", "judge"])
def test_not_applicable_is_no_failure(seen, where):
    outcome = run_probe(Plain(**{where: raising(NotApplicable("only for odd d"))}), seen)
    assert (outcome.status, outcome.reason, outcome.details) == ("not_applicable", "only for odd d", "")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "NoneType"),
        ({"a": 1}, "dict"),
        (Found, "type"),
        (Thawed(), "Thawed"),
        (np.zeros(2), "ndarray"),
        ((Found(),), "tuple"),
    ],
)
def test_a_result_must_be_a_frozen_dataclass(seen, value, said):
    outcome = run_probe(Plain(run=lambda _: value), seen)
    assert (outcome.status, outcome.reason) == (
        "failed",
        f"TypeError: run() must return a frozen dataclass, got {said}",
    )


@pytest.mark.parametrize("value", [Opaque(), Tensors(), Opaque({1, 2}), Opaque(np.array([object()]))])
def test_a_result_that_does_not_go_to_json_fails_here_and_not_the_whole_report(seen, value):
    outcome = run_probe(Plain(run=lambda _: value), seen)
    assert outcome.status == "failed"
    assert f"{type(value).__name__}, what run() returned, does not go to JSON" in outcome.reason


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"blocks": lambda _: None}, "blocks() must return Blocks, got NoneType"),
        ({"blocks": lambda _: 3}, "blocks() must return Blocks, got int"),
        ({"blocks": lambda _: "text"}, "blocks() must return Blocks, got a str among them"),
        ({"blocks": lambda _: [Text("x"), {}]}, "blocks() must return Blocks, got a dict among them"),
        ({"judge": lambda _: None}, "judge() must return Verdicts, got NoneType"),
        ({"judge": lambda _: ["holds"]}, "judge() must return Verdicts, got a str among them"),
        ({"judge": lambda _: [Text("x")]}, "judge() must return Verdicts, got a Text among them"),
    ],
)
def test_blocks_and_verdicts_must_be_such(seen, parts, reason):
    outcome = run_probe(Plain(**parts), seen)
    assert (outcome.status, outcome.reason) == ("failed", f"TypeError: {reason}")


def test_a_need_that_is_not_met_skips_and_names_it():
    bare = plant(roles=("positive", "negative")).run
    outcome = run_probe(Plain(needs=Need.TASK | Need.DYNAMICS, run=raising(AssertionError("ran"))), Context(bare))
    assert (outcome.status, outcome.reason) == ("skipped", "needs the record of the training")
    nothing = Context(type(bare)(bare.model_config, bare.weights))
    outcome = run_probe(Plain(needs=Need.TASK | Need.DYNAMICS), nothing)
    task = "the task (pass task=, or --length and --noise-var on the command line)"
    assert outcome.reason == f"needs {task} and the record of the training"


def test_a_use_that_is_not_met_does_not_skip(seen):
    assert run_probe(Plain(uses=Need.DYNAMICS), seen).status == "done"


def test_an_undeclared_look_has_failed(seen):
    outcome = run_probe(Plain(run=lambda context: context.task), seen)
    assert outcome.status == "failed"
    assert outcome.reason.startswith("UndeclaredNeed: the probe looked at task without declaring Need.TASK")


def test_the_probe_sees_what_it_needs_and_what_it_uses(seen):
    def run(context):
        assert context.circuits.n_heads == 2
        assert context.sample("label", 3)
        return Found()

    assert run_probe(Plain(needs=Need.WEIGHTS, uses=Need.TASK, run=run), seen).status == "done"


@pytest.mark.parametrize(
    ("docstring", "about"),
    [
        ("One line.", "One line."),
        ("Two\n    lines,  and spaces.\n\n    Another paragraph.\n    ", "Two lines, and spaces."),
        ("\n    After a blank line.\n    ", "After a blank line."),
        ("", ""),
        (None, ""),
    ],
)
def test_what_a_probe_is_about_is_its_docstrings_first_paragraph(seen, docstring, about):
    kind = type("Told", (Plain,), {"__doc__": docstring})
    assert run_probe(kind(), seen).about == about


ENDINGS = {
    "done": {},
    "skipped": {"needs": Need.DYNAMICS},
    "not_applicable": {"run": raising(NotApplicable("no"))},
    "failed": {"blocks": raising(ValueError("bad luck"))},
}


@pytest.mark.parametrize("status", ENDINGS)
def test_however_it_ends_it_says_what_it_is_and_where_from(seen, status):
    parts = {"needs": Need.WEIGHTS, "uses": Need.TASK} | ENDINGS[status]
    outcome = run_probe(Plain(**parts), seen)
    assert outcome.status == status
    assert outcome.about == "A probe as a plain object: every part of it can be replaced."
    assert outcome.source == __name__
    assert outcome.looked_at == parts["needs"] | Need.TASK


def test_the_source_of_an_installed_probe_is_its_module(seen):
    assert run_probe(discover()[0]["head_roles"], seen).source == "icl_interp_probes.head_roles"


def test_the_source_of_a_file_is_its_name(seen, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    (tmp_path / "mine.py").write_text(OWN_FILE)
    load_file(tmp_path / "mine.py")
    outcome = run_probe(discover()[0]["mine"], seen)
    assert (outcome.status, outcome.source, outcome.about) == ("done", "mine.py", "Mine.")


def test_a_plugin_that_could_not_be_loaded():
    outcome = broken("mine (mine.probes)", ImportError("no module named scipyx"))
    assert (outcome.probe, outcome.title, outcome.status) == ("mine (mine.probes)", "mine (mine.probes)", "broken")
    assert outcome.reason == "could not be loaded: ImportError: no module named scipyx"
    assert (outcome.about, outcome.source, outcome.looked_at) == ("", "", Need.NONE)
