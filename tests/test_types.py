"""Type checkers see everything: no public signature says Any, none is left out, and users' code passes.

What is public is read from the source: names without a leading underscore, of modules without one.  pyright itself
says more (`pyright --verifytypes icl_interp`), and takes longer.
"""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import icl_interp

ROOT = Path(__file__).parents[1]
CORE = ROOT / "icl_interp"
# Names of the standard library's and typing's that mean "of Any" when nothing is said of what.
BARE = {"dict", "list", "tuple", "set", "frozenset", "type", "Callable", "Sequence", "Iterable", "Iterator", "Mapping"}
OPERATORS = {"__init__", "__call__", "__getitem__", "__iter__", "__len__", "__contains__", "__getattr__"}
# Why a name may say Any.
EXEMPT = {
    "serialization.to_data": "plain data of whatever was given: the caller knows what",
    "formats.native.read_json": "a file of a stranger's, before it is checked",
}
# Engines are chosen by name; of their insides nothing is promised, and numba's compiler has no types to give.
INSIDES = {"training"}


@cache
def modules(folder=CORE):
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[0] not in INSIDES and not any(part.startswith("_") for part in parts if part != "__init__"):
            found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
    return found


def public(name):
    return not name.startswith("_") or name in OPERATORS


def says_any(annotation, tainted=frozenset()):
    """Whether an annotation says Any, or a generic type without saying of what."""
    if annotation is None:
        return True
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):  # a forward reference
        annotation = ast.parse(annotation.value, mode="eval").body
    parameters = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
    for node in ast.walk(annotation):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name == "Any" or name in tainted or (name in BARE and id(node) not in parameters):
            return True
    return False


def aliases(tree):
    """Names at a module's top that stand for a type which says Any."""
    known = set()
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if value is not None else []
        if isinstance(value, ast.Subscript | ast.BinOp) and says_any(value, known):
            known |= {target.id for target in targets if isinstance(target, ast.Name)}
    return known


def offences(tree, where=""):
    """Every public signature, field and attribute of a module that says Any or says nothing."""
    tainted = aliases(tree)

    def of_function(node, name, method):
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
        arguments = [*node.args.posonlyargs, *node.args.args][1 if method and not static else 0 :]
        arguments += [*node.args.kwonlyargs, *filter(None, [node.args.vararg, node.args.kwarg])]
        yield from (f"{name}({a.arg})" for a in arguments if says_any(a.annotation, tainted))
        if node.name != "__init__" and says_any(node.returns, tainted):
            yield f"{name} -> …"

    def of_body(body, prefix, in_class):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and public(node.name):
                yield from of_function(node, prefix + node.name, in_class)
            elif isinstance(node, ast.ClassDef) and public(node.name):
                yield from of_body(node.body, f"{prefix}{node.name}.", True)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and public(node.target.id):
                if says_any(node.annotation, tainted):
                    yield prefix + node.target.id
            elif isinstance(node, ast.Assign) and not in_class:
                named = [target.id for target in node.targets if isinstance(target, ast.Name)]
                yield from (prefix + name for name in named if public(name) and name in tainted)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from of_body(node.body, prefix, in_class)

    yield from of_body(tree.body, f"{where}." if where else "", False)


# --- Nothing public says Any ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", modules())
def test_no_public_signature_says_any(module):
    found = list(offences(modules()[module], module))
    assert [name for name in found if not any(name.startswith(exempt) for exempt in EXEMPT)] == []


def test_what_is_exempt_needs_it():
    found = [name for module, tree in modules().items() for name in offences(tree, module)]
    assert [exempt for exempt in EXEMPT if not any(name.startswith(exempt) for name in found)] == []


@pytest.mark.parametrize("room", ["probes", "reports", "testing", "training"])
def test_what_a_facade_offers_is_looked_at(room):
    for name in importlib.import_module(f"icl_interp.{room}").__all__:
        thing = getattr(importlib.import_module(f"icl_interp.{room}"), name)
        home = getattr(thing, "__module__", "icl_interp")
        if home.partition(".")[0] in ("icl_interp", "icl_interp_reports") and hasattr(thing, "__qualname__"):
            tree = ast.parse(Path(sys.modules[home].__file__).read_text())
            assert [found for found in offences(tree) if found.partition("(")[0].split(".")[0].split()[0] == name] == []


def test_every_name_of_the_package_is_looked_at():
    looked_at = set(modules())
    for name in icl_interp.__all__:
        home = getattr(icl_interp, name).__module__.removeprefix("icl_interp.")
        assert home in looked_at or home.startswith("training."), home


BAD = """
from typing import Any
Alias = dict[str, Any]
_Hidden = list[Any]
Fine = dict[str, int]
value: Any = 3
_private: Any = 3

def f(a: int, b, *args: Any, c: Fine, **kwargs: object) -> None: ...
def g(a: int): ...
def h(a: _Hidden, b: "list[Any]", c: dict, d: type, e: type[int], f: typing.Any) -> Callable: ...
def fine(a: Fine, b: Callable[..., int], c: list[object], anything: "int") -> dict[str, list[int]]: ...
def _private(a: Any): ...

class K(Base[Any]):
    field: Any
    other: int = 3
    _private: Any
    def __init__(self, a: Any, b: int): ...
    def __getitem__(self, key) -> int: ...
    @property
    def seen(self) -> Any: ...
    @staticmethod
    def static(a: Any) -> int: ...
    @classmethod
    def made(cls, a: Any) -> "K": ...
    def _private(self, a: Any): ...
    class Inner:
        def method(self) -> list[Any]: ...

class _Private:
    field: Any
"""


def test_the_search_can_fail():
    assert list(offences(ast.parse(BAD), "m")) == [
        "m.Alias",
        "m.value",
        "m.f(b)",
        "m.f(args)",
        "m.g -> …",
        "m.h(a)",
        "m.h(b)",
        "m.h(c)",
        "m.h(d)",
        "m.h(f)",
        "m.h -> …",
        "m.K.field",
        "m.K.__init__(a)",
        "m.K.__getitem__(key)",
        "m.K.seen -> …",
        "m.K.static(a)",
        "m.K.made(a)",
        "m.K.Inner.method -> …",
    ]


# --- What users write passes ------------------------------------------------------------------------------------------

USERS = """
from dataclasses import dataclass

import icl_interp as icl
from icl_interp.probes import Context, Estimate, Heatmap, Need, Table, Verdict, load_file, mean_of, probe, run_probe
from icl_interp.testing import check_probe
from icl_interp_probes.kernel_fit import KernelFit


@dataclass(frozen=True)
class Bias:
    mean: Estimate


@probe(name="bias", title="Does the model predict too much?", needs=Need.FORWARD | Need.TASK)
class BiasProbe:
    def run(self, context: Context) -> Bias:
        prompt = context.sample("bias")
        return Bias(mean_of((context.predict(prompt) - prompt.y_q)[:, 0].numpy()))

    def blocks(self, result: Bias):
        return [Table(("mean error",), ((result.mean,),), alt="The mean error.")]

    def judge(self, found: Bias) -> list[Verdict]:
        return []


run = icl.Run.load("runs/h4")
result = icl.analyze(run, probes=["risk", BiasProbe, BiasProbe()])
icl.analyze("runs/h4", probes="risk")
results = icl.Runs.load("runs").analyze(probes=[BiasProbe], budget=100)
check_probe(BiasProbe)
check_probe(BiasProbe(), run)
value: object = run_probe(BiasProbe(), Context(run)).value
eta: float = result.get(KernelFit).eta.value
mean: float = result.get(Bias).mean.value
status: str = result.to_data()["probes"]["risk"]["status"]
panels: int = max(len(block.panels) for block in result["risk"].blocks if isinstance(block, Heatmap))
prompt = icl.LinearRegression(5, 40).sample(8)
positions: int = prompt.shape[1] + prompt.ndim + prompt.cpu().length
"""

MISTAKES = """
icl.Runs.load("runs").analyze(probe=["risk"])
icl.analyze("runs", probes=[3])
result["risk"].value.eta
result.get(Bias).median
prompt.shape = (3, 4)
result.to_data()["probess"]
probe(name="x", title="y", needs=Need.NONE)(Bias)
"""


def test_users_code_passes_and_their_mistakes_do_not(tmp_path):
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("no pyright")
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}", "{ROOT}/probes", "{ROOT}/reports"]}}')
    (tmp_path / "users.py").write_text(USERS + MISTAKES)
    command = [pyright, "--pythonpath", sys.executable, "--project", str(tmp_path), "--outputjson"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run: {done.stderr or done.stdout}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    first = len(USERS.splitlines()) + 1
    wrong = {problem["range"]["start"]["line"] - first: problem for problem in found if problem["severity"] == "error"}
    assert sorted(wrong) == list(range(len(MISTAKES.split("\n")) - 2)), found
