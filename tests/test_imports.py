"""What importing costs, what the package offers by name, and which room may know which."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import icl_interp

ROOT = Path(__file__).parents[1]
CORE = ROOT / "icl_interp"

# Each room may import, at its top, those above it.  A new module takes its place here.
ROOMS = [
    "errors",
    "activations",
    "config",
    "devices",
    "theory",
    "tasks",
    "compat",
    "weights",
    "attention",
    "passes",
    "estimates",
    "circuits",
    "pruning",
    "manifold",
    "sharing",
    "sharing_effects",
    "flow",
    "roles",
    "estimators",
    "surfaces",
    "task_risks",
    "lens",
    "model",
    "interventions",
    "export",
    "records",
    "serialization",
    "formats",
    "training",
    "probing",
    "probes",
    "calibration",
    "analysis",
    "analysis_files",
    "comparison",
    "sweeps",
    "reproduce",
    "testing",
    "reports",
    "cli",
]
# A probe's author sees these; the rest of the core is not for probes.
FOR_PROBES = ROOMS[: ROOMS.index("probing") + 1]
# What is shown, and the types of its parts.
FOR_REPORTS = {"probing", "calibration", "analysis", "records", "circuits", "config", "tasks", "errors", "reproduce"}
FOR_REPORTS |= {"comparison", "sweeps"}


def python(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- What importing costs ---------------------------------------------------------------------------------------------

COST = """
import sys, time
before = time.perf_counter()
import icl_interp
took = time.perf_counter() - before
dir(icl_interp), icl_interp.__version__, icl_interp.ConfigError
print(took, *({"torch", "transformer_lens", "plotly", "pandas", "numpy", "scipy", "sklearn"} & set(sys.modules)))
"""


def test_the_package_costs_next_to_nothing():
    took, heavy = zip(*((float(first), rest) for first, *rest in (python(COST).split() for _ in range(5))), strict=True)
    assert heavy == ([],) * 5
    assert min(took) < 0.2


def test_help_and_version_load_nothing_heavy():
    code = """
import sys
from icl_interp.cli import main
for command in (["--help"], ["train", "--help"], ["--version"], ["train", "--heads", "two"]):
    try:
        main(command)
    except SystemExit:
        pass
print("loaded:", *({"torch", "transformer_lens", "plotly", "pandas", "numpy"} & set(sys.modules)))
"""
    assert python(code).splitlines()[-1] == "loaded:"


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformer_lens", "plotly", "jinja2", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import icl_interp as icl
from icl_interp.testing import plant

task = icl.LinearRegression(3, 8)
run = icl.train(task, steps=20, n_records=12, out=sys.argv[1], progress=False)
result = icl.analyze(sys.argv[1], budget=60)
assert result.to_json() and result.to_markdown() and str(result)
print(*(outcome.status for outcome in result))
try:
    run.model()
except ModuleNotFoundError as error:
    print(error)
"""


def test_training_and_analysis_do_without_transformer_lens(tmp_path):
    command = [sys.executable, "-c", WITHOUT, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    statuses, missing = done.stdout.splitlines()
    # The checkpoint was trained on isotropic covariates, where all preconditioners are alike.
    assert statuses.split() == [*["done"] * 8, "not_applicable", *["done"] * 2]
    assert missing == "No module named 'transformer_lens'"


# --- What the package offers ------------------------------------------------------------------------------------------


def test_every_public_name_resolves_and_is_the_real_thing():
    assert len(icl_interp.__all__) == len(set(icl_interp.__all__))
    assert list(icl_interp.__all__) == sorted(icl_interp.__all__)
    for name in icl_interp.__all__:
        thing = getattr(icl_interp, name)
        assert thing.__module__.startswith("icl_interp.")
        assert thing.__name__ == name
        assert thing.__doc__


def test_names_for_type_checkers_are_those_for_users():
    tree = ast.parse((CORE / "__init__.py").read_text())
    (checked,) = (n for n in tree.body if isinstance(n, ast.If))
    names = {alias.name for node in checked.body for alias in node.names}
    assert names == set(icl_interp.__all__)


def test_every_room_is_reached_by_name():
    for path in CORE.iterdir():
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").is_file()):
            assert getattr(icl_interp, path.stem) is import_module(f"icl_interp.{path.stem}")


@pytest.mark.parametrize("name", ["trian", "_private", "__wrapped__", "utils", "Train", "no.such"])
def test_an_unknown_name(name):
    with pytest.raises(AttributeError, match=f"module 'icl_interp' has no attribute '{name}'"):
        getattr(icl_interp, name)
    assert not hasattr(icl_interp, name)


def test_dir_shows_what_there_is_and_no_more():
    shown = set(dir(icl_interp))
    rooms = {p.stem for p in CORE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()} - {"__init__"}
    assert shown >= set(icl_interp.__all__) | rooms
    assert {name for name in shown if not name.startswith("__")} == set(icl_interp.__all__) | rooms


def test_no_module_bears_the_name_of_a_public_function():
    modules = {p.stem for p in CORE.iterdir()}
    assert not modules & set(icl_interp.__all__)


@pytest.mark.parametrize("room", ["icl_interp", "icl_interp.probes", "icl_interp.testing", "icl_interp.reports"])
def test_a_star_import_brings_what_all_says(room):
    names: dict[str, object] = {}
    exec(f"from {room} import *", names)
    names.pop("__builtins__")
    assert set(names) == set(import_module(room).__all__)


def test_the_facade_for_probe_authors_is_the_plugin_door():
    from icl_interp import probes, probing

    assert probes.__all__ == probing.__all__
    assert all(getattr(probes, name) is getattr(probing, name) for name in probing.__all__)


# --- Who may know whom ------------------------------------------------------------------------------------------------


def top_imports(path, lazy=False):
    """Modules imported when `path` is, in full; imports in functions and under TYPE_CHECKING are exempt."""

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not lazy:
                yield from walk(node.orelse)
            elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(ast.iter_child_nodes(node))

    return list(walk(ast.parse(path.read_text()).body))


def files(folder):
    found = sorted(folder.rglob("*.py"))
    assert found
    return [pytest.param(p, id=str(p.relative_to(ROOT))) for p in found]


def room_of(module):
    """icl_interp.probing.context.Context → probing; icl_interp.train → the room that really holds it."""
    _, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return icl_interp._HOME.get(name, name)


@pytest.mark.parametrize("path", [p for p in files(CORE) if p.values[0] != CORE / "__init__.py"])
def test_a_room_imports_only_rooms_above_it(path):
    own = path.relative_to(CORE).parts[0].removesuffix(".py")
    assert own in ROOMS, f"{own} is a new room: say in ROOMS where it lies"
    for module in top_imports(path):
        if module.partition(".")[0] == "icl_interp" and room_of(module) != own:
            assert room_of(module) in ROOMS[: ROOMS.index(own)], f"{own} imports {module}, which does not lie above it"


def test_the_rule_can_fail(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "try:\n    from c import d\nexcept ImportError:\n    pass\n"
        "class K:\n    import e\n    def f(self):\n        import g\n"
    )
    assert top_imports(path) == ["b", "c.d", "e"]
    assert top_imports(path, lazy=True) == ["a", "b", "c.d", "e", "g"]


@pytest.mark.parametrize("path", files(CORE))
def test_the_core_names_no_probe_and_draws_nothing(path):
    lazy = {module.partition(".")[0] for module in top_imports(path, lazy=True)}
    assert not lazy & {"icl_interp_probes", "plotly", "jinja2", "matplotlib"}
    if path.stem != "reports":  # the façade
        assert "icl_interp_reports" not in {module.partition(".")[0] for module in top_imports(path)}


@pytest.mark.parametrize("path", [p for p in files(CORE) if p.values[0].stem not in ("model", "lens")])
def test_transformer_lens_is_imported_late(path):
    modules = top_imports(path)
    assert not [m for m in modules if m.startswith(("transformer_lens", "icl_interp.model", "icl_interp.lens"))]


@pytest.mark.parametrize("path", files(ROOT / "probes"))
def test_probes_see_the_cores_public_names_only(path):
    for module in top_imports(path, lazy=True):
        assert not any(part.startswith("_") for part in module.split(".") if part != "__future__"), module
        top = module.partition(".")[0]
        assert not top.startswith("icl_interp_reports")
        assert top not in ("plotly", "jinja2", "matplotlib"), f"{path.name} draws"
        if top == "icl_interp":
            assert room_of(module) in FOR_PROBES, module


@pytest.mark.parametrize("path", files(ROOT / "reports"))
def test_reports_see_data_types_only_and_compute_nothing(path):
    for module in top_imports(path, lazy=True):
        top = module.partition(".")[0]
        assert top not in ("torch", "scipy", "sklearn", "icl_interp_probes"), f"{path.name} computes"
        if top == "icl_interp":
            assert room_of(module) in FOR_REPORTS, module
            assert room_of(module) != "reproduce" or module.startswith("icl_interp.reproduce.results."), module


@pytest.mark.parametrize("path", [*files(CORE), *files(ROOT / "probes"), *files(ROOT / "reports")])
def test_no_star_imports_but_in_a_facade(path):
    stars = [module for module in top_imports(path, lazy=True) if module.endswith(".*")]
    assert not stars or path == CORE / "probes.py"
