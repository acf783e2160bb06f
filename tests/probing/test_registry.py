"""How probes come in: by decorator, by file, by entry point; and what a bad one does (nothing to the others)."""

import sys
import textwrap

import pytest

from icl_interp import analyze
from icl_interp.errors import ConfigError
from icl_interp.probing import Need, Probe, discover, load_file, probe, registry
from icl_interp.testing import plant

BUILT_IN = [
    "circuit_pattern",
    "head_roles",
    "kernel_fit",
    "task_allocation",
    "superposition",
    "faithfulness",
    "risk",
    "length_generalization",
    "optimality",
    "approximate_loss",
    "preconditioner",
    "activation",
    "dynamics",
]
OF_ONE = [name for name in BUILT_IN if name not in ("task_allocation", "superposition")]  # responses
FILE = """
from dataclasses import dataclass
from icl_interp.probes import Need, Text, probe

@dataclass(frozen=True)
class Found:
    n_heads: int

@probe(name="{name}", title="How many heads?", needs=Need.NONE)
class {kind}:
    def run(self, context):
        return Found(context.config.n_heads)

    def blocks(self, result):
        return [Text(f"{{result.n_heads}} heads")]

    def judge(self, result):
        return []
"""


class Good:
    def run(self, context): ...

    def blocks(self, result): ...

    def judge(self, result): ...


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten with it."""
    discover()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture(scope="module")
def planted():
    return plant(roles=("positive", "negative")).run


def write(path, text=None, *, name="count", kind="Count"):
    path.write_text(textwrap.dedent(FILE.format(name=name, kind=kind) if text is None else text))
    return path


def install(folder, monkeypatch, dist, module, text):
    """A distribution with one entry point, as pip would leave it."""
    write(folder / f"{module}.py", text)
    info = folder / f"{dist}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[icl_interp.probes]\n{dist} = {module}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)


# --- The decorator ----------------------------------------------------------------------------------------------------


def test_a_class_becomes_a_probe():
    kind = probe(name="good", title="Good?", needs=Need.TASK, uses=Need.DYNAMICS, cost="nothing")(Good)
    assert kind is Good
    found = discover()[0]["good"]
    assert isinstance(found, Good)
    assert isinstance(found, Probe)
    assert (found.title, found.needs, found.uses, found.cost) == ("Good?", Need.TASK, Need.DYNAMICS, "nothing")


@pytest.mark.parametrize("name", ["", "Caps", "with space", "1st", "a-b", "_a", "a\n", "é", "a.b"])
def test_a_name_that_is_not_snake_case(name):
    with pytest.raises(ConfigError, match="a probe's name must be snake_case, got"):
        probe(name=name, title="t", needs=Need.NONE)(Good)


@pytest.mark.parametrize("method", ["run", "blocks", "judge"])
def test_a_class_that_lacks_a_method(method):
    members = {name: value for name, value in vars(Good).items() if name in ("run", "blocks", "judge")}
    for lacking in ({**members, method: None}, {k: v for k, v in members.items() if k != method}):
        with pytest.raises(ConfigError, match=rf"the probe 'lacking' lacks {method}\(\)"):
            probe(name="lacking", title="t", needs=Need.NONE)(type("Lacking", (), lacking))
    assert "lacking" not in discover()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": " "}, "the probe 'odd' needs a title: its question, for people"),
        ({"needs": "weights"}, "needs and uses of 'odd' must be made of Need, got 'weights' and "),
        ({"uses": 3}, "needs and uses of 'odd' must be made of Need, got .* and 3"),
    ],
)
def test_a_declaration_that_says_nothing(options, message):
    with pytest.raises(ConfigError, match=message):
        probe(**{"name": "odd", "title": "Odd?", "needs": Need.NONE} | options)(Good)


def test_a_name_that_is_taken():
    class Other(Good):
        pass

    with pytest.raises(ConfigError, match=r"the name 'risk' is taken by icl_interp_probes\.risk\.RiskProbe"):
        probe(name="risk", title="t", needs=Need.NONE)(Other)
    assert type(discover()[0]["risk"]).__name__ == "RiskProbe"


def test_the_same_class_again_takes_its_own_place():
    """A notebook's cell, run twice."""

    def cell(title):
        @probe(name="cell", title=title, needs=Need.NONE)
        class Cell(Good):
            pass

    cell("first")
    cell("second")
    assert discover()[0]["cell"].title == "second"


def test_the_built_ins_are_found_in_reading_order():
    known, broken = discover()
    assert list(known)[: len(BUILT_IN)] == BUILT_IN
    assert not broken


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_file_and_the_same_file_again(tmp_path):
    path = write(tmp_path / "count.py")
    assert load_file(path) == ["count"]
    assert load_file(str(path)) == ["count"]


def test_an_edited_file_replaces_what_it_declared(tmp_path):
    path = write(tmp_path / "count.py")
    load_file(path)
    write(path, name="count_again", kind="CountAgain")
    assert load_file(path) == ["count_again"]
    assert "count" not in discover()[0]


def test_files_of_the_same_name_in_two_folders(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert load_file(write(tmp_path / folder / "count.py", name=f"count_{folder}")) == [f"count_{folder}"]
    with pytest.raises(ConfigError, match="the name 'count_a' is taken by"):
        load_file(write(tmp_path / "again.py", name="count_a"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def run(:\n", r"bad\.py could not be loaded: SyntaxError: .*line 1"),
        ("x = 1\n", r"bad\.py declares no probe: decorate a class with @icl_interp\.probes\.probe"),
        ("", r"declares no probe"),
        ("raise RuntimeError('no luck')\n", r"bad\.py could not be loaded: RuntimeError: no luck"),
        ("import no_such_package_anywhere\n", r"ModuleNotFoundError: No module named 'no_such_package_anywhere'"),
        ("import sys\nsys.exit(3)\n", r"could not be loaded: SystemExit: 3"),
        ("\x00\x01", r"could not be loaded"),
        (FILE.format(name="risk", kind="Risk"), r"ConfigError: the name 'risk' is taken by icl_interp_probes\.risk"),
    ],
)
def test_a_bad_file(tmp_path, text, message):
    path = write(tmp_path / "bad.py", text)
    modules = set(sys.modules)
    with pytest.raises(ConfigError, match=message):
        load_file(path)
    assert not [name for name in set(sys.modules) - modules if "probe_file" in name and "declares" not in message]
    assert list(discover()[0])[: len(BUILT_IN)] == BUILT_IN


@pytest.mark.parametrize(("name", "message"), [("gone.py", "no probe file at .*gone.py"), ("", "no probe file at")])
def test_no_such_file(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        load_file(tmp_path / name)


def test_what_is_not_python(tmp_path):
    with pytest.raises(ConfigError, match=r"notes\.txt is not a Python file"):
        load_file(write(tmp_path / "notes.txt", "x = 1"))


def test_a_file_cannot_take_a_built_ins_place_before_that_is_loaded(tmp_path, monkeypatch):
    """Loading a file looks for installed probes first, so the order of calls does not decide who has the name."""
    monkeypatch.setattr(registry, "_REGISTRY", {})
    for name in [name for name in sys.modules if name.startswith("icl_interp_probes")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="the name 'risk' is taken"):
        load_file(write(tmp_path / "mine.py", name="risk"))


# --- Entry points -----------------------------------------------------------------------------------------------------


def test_an_installed_probe_is_found_and_run(tmp_path, monkeypatch, planted):
    install(tmp_path, monkeypatch, "counting", "counting_probe", FILE.format(name="count", kind="Count"))
    result = analyze(planted, budget=50)
    assert [o.probe for o in result] == [*OF_ONE, "count"]
    assert result["count"].value.n_heads == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('needs something old')\n", "ImportError: needs something old"),
        ("def (:\n", "SyntaxError"),
        ("raise SystemExit(2)\n", "SystemExit: 2"),
        (FILE.format(name="Bad Name", kind="Bad"), "ConfigError: a probe's name must be snake_case, got 'Bad Name'"),
    ],
)
def test_a_broken_plugin_is_seen_and_the_others_go_on(tmp_path, monkeypatch, planted, text, reason):
    install(tmp_path, monkeypatch, "brokenplugin", "broken_plugin", text)
    install(tmp_path, monkeypatch, "counting", "counting_probe", FILE.format(name="count", kind="Count"))
    result = analyze(planted, budget=50)
    states = {o.probe: o.status for o in result}
    lost = "brokenplugin (broken_plugin)"
    others = {"dynamics": "skipped", "preconditioner": "not_applicable", lost: "broken"}
    assert states == dict.fromkeys([*OF_ONE, "count"], "done") | others
    assert result[lost].reason.startswith("could not be loaded: ")
    assert reason in result[lost].reason
    assert "Traceback" in result[lost].details
    for text in (str(result), result.to_markdown()):
        assert "brokenplugin" in text
        assert "could not be loaded" in text

    assert [o.probe for o in analyze(planted, probes=["count"], budget=50)] == ["count"]
    with pytest.raises(ConfigError, match=r"no probe 'typo'; there are circuit_pattern, .*; brokenplugin .* could not"):
        analyze(planted, probes=["typo"])


def test_an_entry_point_to_nowhere(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "nowhere", "gone_module", "")
    (tmp_path / "gone_module.py").unlink()
    known, broken = discover()
    assert list(known)[: len(BUILT_IN)] == BUILT_IN
    assert "No module named 'gone_module'" in str(broken["nowhere (gone_module)"])


def test_ctrl_c_while_a_plugin_loads_is_not_its_failure(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "slowplugin", "slow_plugin", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        discover()
