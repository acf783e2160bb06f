"""`analyze()`: what it opens, what it refuses, and that the same question gets the same answer."""

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from limits import room_for

import icl_interp as icl
from icl_interp import analyze
from icl_interp.analysis import SCHEMA_VERSION, Analysis
from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError, ConfigError, SaveError
from icl_interp.probing import Estimate, Need, Outcome, Text, Threshold, Verdict, discover
from icl_interp.probing.verdicts import CLAIMS
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, UnavailableTask
from icl_interp.testing import plant
from icl_interp.weights import initial_weights

TASK = LinearRegression(dim=3, length=8)
BUILT_IN = [
    "circuit_pattern",
    "head_roles",
    "kernel_fit",
    "faithfulness",
    "risk",
    "length_generalization",
    "optimality",
    "approximate_loss",
    "preconditioner",
    "activation",
    "dynamics",
]
INSTALLED = [*BUILT_IN[:3], "task_allocation", "superposition", *BUILT_IN[3:]]  # with those about several responses
COLUMNS = [
    "probe",
    "claim",
    "source",
    "status",
    "value",
    "low",
    "high",
    "threshold",
    "sentence",
    "prompts",
    "reliability",
]
BUDGET = 200
QUICK = {"probes": ["head_roles"], "budget": 50}


@dataclass(frozen=True)
class OwnTask:
    """A user's own task, which a file can only describe."""

    dim: int = 3
    length: int = 8
    n_outputs: int = 1

    def sample(self, batch, *, length=None, generator=None, device=None):
        return TASK.sample(batch, length=length, generator=generator, device=device)


@dataclass(frozen=True)
class Count:
    heads: int


class Counting:
    name, title, cost, needs, uses = "counting", "How many heads?", "nothing", Need.NONE, Need.NONE

    def run(self, context):
        return Count(context.config.n_heads)

    def blocks(self, result):
        return [Text(f"{result.heads} heads")]

    def judge(self, result):
        return []


@pytest.fixture(scope="module")
def planted():
    return plant(TASK, roles=("positive", "negative", "dummy")).run


@pytest.fixture(scope="module")
def analysis(planted):
    return analyze(planted, budget=BUDGET)


@pytest.fixture(scope="module")
def saved(planted, tmp_path_factory):
    return planted.save(tmp_path_factory.mktemp("runs") / "planted")


def outcomes(result):
    return {o.probe: o.status for o in result}


# --- What it opens ----------------------------------------------------------------------------------------------------


def test_a_run_a_path_and_a_model_give_the_same_findings(planted, saved):
    run, path, text = (analyze(thing, **QUICK) for thing in (planted, saved, str(saved)))
    model = analyze(planted.model(), TASK, **QUICK)
    findings = [result.to_data()["probes"] for result in (run, path, text, model)]
    assert findings[0] == findings[1] == findings[2] == findings[3]
    assert [r.provenance.origin for r in (run, path, model)] == ["planted with seed 0", str(saved), "a model in memory"]


def test_a_model_in_another_precision_is_read_alike(planted):
    half, double = (analyze(planted.model().to(dtype=t), TASK, **QUICK) for t in (torch.float32, torch.float64))
    assert half.to_data()["probes"] == double.to_data()["probes"]


@pytest.mark.parametrize(("thing", "said"), [(None, "NoneType"), (3, "int"), (b"runs", "bytes"), ([], "list")])
def test_what_is_no_checkpoint(thing, said):
    with pytest.raises(ConfigError, match=f"a folder, a file, a Run, a module or a dict of tensors, got {said}"):
        analyze(thing)


def test_what_holds_no_checkpoint():
    for thing, said in (({}, "a dict of tensors"), (torch.nn.Linear(2, 2), "a Linear")):
        with pytest.raises(CheckpointError, match=f"the checkpoint in memory: {said} that no format recognises"):
            analyze(thing)


def test_weights_that_are_not_finite(planted):
    model = planted.model()
    with torch.no_grad():
        model.blocks[0].attn.W_Q[0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="W_Q must be finite, got NaN or infinity in 1 of"):
        analyze(model, TASK)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("budget", [1, 2, 30])
@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_extreme_weights_and_budgets_are_no_reason_to_fail(scale, budget):
    config = ModelConfig(3)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    result = analyze(Run(config, {n: scale * w for n, w in weights.items()}, task=TASK), budget=budget)
    json.loads(result.to_json(), parse_constant=pytest.fail)
    assert result.to_markdown()
    assert str(result)
    if scale < 1:
        assert {o.status for o in result if o.probe != "dynamics"} <= {"done", "not_applicable"}


def test_each_kind_of_model_has_its_own_probes():
    asked = {}
    for layers in (1, 2):
        config = ModelConfig(3, n_layers=layers)
        run = Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=TASK)
        asked[layers] = {outcome.probe: outcome.status for outcome in analyze(run, budget=20)}
    assert set(asked[2]) == {"head_utilization", "layer_algorithm", "algorithm_match"}
    assert set(asked[2].values()) == {"done"}
    assert not set(asked[1]) & set(asked[2])


# --- The task ---------------------------------------------------------------------------------------------------------


def test_the_task_is_the_runs_own_or_given_or_unknown(planted):
    other = LinearRegression(3, 20, noise_var=0.5)
    cases = [
        (planted, None, TASK, "the run's own"),
        (planted, other, other, "given"),
        (replace(planted, task=None), None, None, "unknown"),
        (replace(planted, task=None), other, other, "given"),
        (replace(planted, task=UnavailableTask(3, 8, 1, "mine")), OwnTask(), OwnTask(), "given"),
    ]
    for run, task, read_under, said in cases:
        provenance = analyze(run, task, **QUICK).provenance
        assert (provenance.task, provenance.task_from) == (read_under, said)


def test_a_task_that_is_not_available_counts_as_unknown(planted):
    unavailable = UnavailableTask(3, 8, 1, "mine")
    results = [analyze(replace(planted, task=task), budget=50) for task in (unavailable, None)]
    assert outcomes(results[0]) == outcomes(results[1])
    assert outcomes(results[0])["risk"] == "skipped"
    assert results[0]["risk"].reason == "needs the task (pass task=, or --length and --noise-var on the command line)"
    assert results[0].provenance.task_from == "unavailable: a user's own"


def test_a_task_of_ones_own_is_analyzed_and_described(planted):
    result = analyze(planted, OwnTask(), budget=50)
    assert outcomes(result)["head_roles"] == "done"
    described = json.loads(result.to_json())["provenance"]["task"]
    assert described["kind"] == "custom"
    assert "OwnTask" in described["description"]
    assert "OwnTask" in str(result)


@pytest.mark.parametrize("task", [LinearRegression(4, 8), OwnTask(n_outputs=2)])
def test_a_task_that_does_not_fit_the_model(planted, task):
    message = (
        f"the task has dim={task.dim} and n_outputs={task.n_outputs}, the model was made for dim=3 and n_outputs=1"
    )
    with pytest.raises(ConfigError, match=message):
        analyze(planted, task)


@pytest.mark.parametrize("task", ["linear", 3, LinearRegression])
def test_what_is_no_task(planted, task):
    with pytest.raises(
        ConfigError, match=r"task must have dim, length, n_outputs and sample\(\), got|the task has dim"
    ):
        analyze(planted, task)


# --- Probes, seed, budget, device -------------------------------------------------------------------------------------


def test_all_probes_by_default_and_some_when_asked(planted, analysis):
    assert [o.probe for o in analysis] == BUILT_IN
    assert [o.probe for o in analyze(planted, probes="head_roles", budget=50)] == ["head_roles"]
    assert [o.probe for o in analyze(planted, probes=["risk", "head_roles"], budget=50)] == ["risk", "head_roles"]
    assert [o.probe for o in analyze(planted, probes=[], budget=50)] == []


def test_probes_as_classes_and_instances_and_each_once(planted):
    risk = discover()[0]["head_roles"]
    result = analyze(planted, probes=[Counting, Counting(), risk, "head_roles"], budget=50)
    assert [o.probe for o in result] == ["counting", "head_roles"]
    assert result["counting"].value == result.get(Count) == Count(3)


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        (["typo"], f"no probe 'typo'; there are {', '.join(INSTALLED)}"),
        ("", "no probe ''"),
        ([3], r"a probe is a name or a class declared with @probe\(\.\.\.\), got 3"),
        ([object], r"a probe is a name or a class declared with @probe\(\.\.\.\), got <class 'object'>"),
    ],
)
def test_what_is_no_probe(planted, probes, message):
    with pytest.raises(ConfigError, match=message):
        analyze(planted, probes=probes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be a whole number ≥ 0, got -1"),
        ({"budget": 0}, "budget must be a whole number ≥ 1, got 0"),
        ({"budget": 1.5}, "budget must be a whole number ≥ 1, got 1.5"),
    ],
)
def test_settings_out_of_range(planted, settings, message):
    with pytest.raises(ConfigError, match=message):
        analyze(planted, **settings)


@pytest.mark.parametrize("device", ["gpu", "", "mps", "meta", 3.5, None])
def test_what_is_no_device(planted, device):
    with pytest.raises(ConfigError, match="device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got "):
        analyze(planted, device=device)


@pytest.mark.parametrize(
    "device", ["cuda:99", torch.device("cuda:99"), *([] if torch.cuda.is_available() else ["cuda"])]
)
def test_a_gpu_that_is_not_there(planted, device):
    with pytest.raises(ConfigError, match=r"device 'cuda.*' was asked for, but torch sees \d+ CUDA devices here"):
        analyze(planted, device=device)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(planted):
    cpu, gpu = (analyze(planted, budget=BUDGET, device=device) for device in ("cpu", "cuda"))
    assert outcomes(cpu) == outcomes(gpu)
    pd.testing.assert_frame_equal(
        cpu.verdicts[["probe", "claim", "status"]], gpu.verdicts[["probe", "claim", "status"]]
    )
    np.testing.assert_allclose(cpu.verdicts["value"], gpu.verdicts["value"], rtol=1e-6, atol=1e-6)


def test_the_same_question_gets_the_same_answer(planted, analysis):
    torch.manual_seed(5)
    again = analyze(planted, budget=BUDGET)
    assert again.to_json() == analysis.to_json()
    assert again.to_markdown() == analysis.to_markdown()
    assert str(again) == str(analysis)
    assert analyze(planted, budget=BUDGET, seed=1).to_json() != analysis.to_json()


@pytest.mark.parametrize("probe", BUILT_IN)
def test_a_probe_finds_the_same_whichever_others_run(planted, analysis, probe):
    others = [name for name in BUILT_IN if name != probe]
    alone = analyze(planted, probes=[probe], budget=BUDGET)
    last = analyze(planted, probes=[*others[::-1][:1], probe], budget=BUDGET)
    found = analysis.to_data()["probes"][probe]
    assert alone.to_data()["probes"][probe] == found
    assert last.to_data()["probes"][probe] == found


def test_a_crash_is_seen_and_the_others_go_on(planted):
    class Crash(Counting):
        name = "crash"

        def run(self, context):
            context.circuits
            raise RuntimeError("no luck")

    Crash.needs = Need.WEIGHTS
    result = analyze(planted, probes=[Crash, Counting], budget=50)
    assert outcomes(result) == {"crash": "failed", "counting": "done"}
    assert result["crash"].reason == "RuntimeError: no luck"


# --- What it says -----------------------------------------------------------------------------------------------------


def test_provenance_says_under_what_it_was_read(planted, analysis):
    provenance = analysis.provenance
    assert (provenance.model, provenance.task, provenance.budget) == (planted.model_config, TASK, BUDGET)
    assert (provenance.step, provenance.training_seed, provenance.analysis_seed) == (None, None, 0)
    assert provenance.versions["icl-interp"] == icl.__version__
    np.testing.assert_array_equal(analysis.circuits.KQ, planted.circuits().KQ)


def test_the_verdicts_are_a_table_of_exactly_these_columns(analysis):
    table = analysis.verdicts
    assert list(table) == COLUMNS
    assert len(table) == sum(len(o.verdicts) for o in analysis) > 0
    assert set(table["status"]) <= {"holds", "fails", "inconclusive", "not_applicable"}
    for column in ("value", "low", "high", "prompts"):
        assert table[column].dtype == np.float64
    judged = table[table["status"] != "not_applicable"]
    assert judged["sentence"].str.len().gt(0).all()
    first = analysis["circuit_pattern"].verdicts[0]
    row = table.iloc[0]
    assert (row["probe"], row["claim"], row["status"]) == ("circuit_pattern", first.claim, first.status)
    assert row["threshold"] == str(first.threshold)


@cache
def empty():
    return analyze(plant(TASK, roles=("positive",)).run, probes=[])


def make(*found, **parts):
    return Analysis(replace(empty().provenance, **parts), empty().circuits, found)


def test_a_verdict_without_a_number_leaves_gaps():
    verdict = Verdict("c", "s", "not_applicable", "Not here.")
    row = make(Outcome("p", "t", "done", verdicts=(verdict,))).verdicts.iloc[0]
    assert row[["value", "low", "high"]].isna().all()
    assert row["threshold"] is None
    assert np.isnan(row["prompts"])


def test_verdicts_say_of_how_many_prompts_they_are(analysis):
    verdict = Verdict("c", "s", "holds", "It does.")
    table = make(Outcome("p", "t", "done", verdicts=(verdict,), looks=(100, 400))).verdicts
    assert table["prompts"].tolist() == [400]
    assert analysis["risk"].looks == (BUDGET,)
    assert set(analysis.verdicts["prompts"]) == {BUDGET}
    assert analysis.to_data()["probes"]["risk"]["looks"] == [BUDGET]


def test_no_more_claims_are_decided_by_sampling_than_are_allowed_for():
    """What a default analysis decides of a model of several heads with a record: exact numbers are never in doubt."""
    run = icl.train(TASK, n_heads=3, steps=400, progress=False)
    numbers = [v.estimate for o in analyze(run, budget=BUDGET) for v in o.verdicts]
    assert len(numbers) - sum(number is not None and number.covers == "exact" for number in numbers) <= CLAIMS


def test_looking_up_by_name_and_by_type(analysis):
    from icl_interp_probes.risk import Risk

    assert analysis["risk"].value is analysis.get(Risk)
    with pytest.raises(KeyError, match=f"no probe 'rsik' was run; there are {', '.join(BUILT_IN)}"):
        analysis["rsik"]
    with pytest.raises(KeyError, match=r"no Count was found \(circuit_pattern: done, .*dynamics: skipped\)"):
        analysis.get(Count)


def test_what_was_skipped_is_not_found(planted):
    from icl_interp_probes.risk import Risk

    result = analyze(replace(planted, task=None), budget=50)
    with pytest.raises(KeyError, match=r"no Risk was found \(.*risk: skipped, .*dynamics: skipped\)"):
        result.get(Risk)


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_is_strict_and_complete(analysis, tmp_path):
    text = analysis.to_json()
    assert analysis.to_json(tmp_path / "deep" / "report.json") is None  # nothing long for a notebook to print
    assert (tmp_path / "deep" / "report.json").read_text() == text
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["schema_version"] == SCHEMA_VERSION
    assert list(data) == ["schema_version", "provenance", "circuits", "probes"]
    assert list(data["probes"]) == BUILT_IN
    assert list(data["probes"]["risk"]) == ["title", "status", "source", "reason", "looks", "verdicts", "result"]
    assert data["provenance"]["task"]["kind"] == "LinearRegression"


@given(st.floats(), st.text(min_size=1).filter(str.strip))
def test_any_number_and_any_text_go_to_json(value, text):
    estimate = Estimate(value, value, value, text)
    verdict = Verdict(text, text, "fails", text, estimate, Threshold(text, low=0.0))
    result = make(Outcome(text, text, "done", Count(1), (Text(text),), (verdict,), text))
    data = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert data["probes"][text]["verdicts"][0]["sentence"] == text


@given(st.text(st.characters()).filter(str.strip))
def test_any_text_goes_into_a_table(text):
    verdict = Verdict(text, text, "fails", text)
    row = make(Outcome(text, text, "done", verdicts=(verdict,))).verdicts.iloc[0]
    assert row.claim == text.encode(errors="replace").decode()


def test_a_path_that_is_no_text_goes_to_json_and_disk(tmp_path):
    """A file name may hold any bytes; Python shows those that are no UTF-8 as lone surrogates."""
    result = make(origin="runs/\udcff")
    result.to_json(tmp_path / "report.json")
    result.to_markdown(tmp_path / "report.md")
    assert json.loads((tmp_path / "report.json").read_text())["provenance"]["origin"] == "runs/\udcff"


@pytest.mark.parametrize("method", ["to_json", "to_markdown"])
def test_a_place_that_cannot_be_written(analysis, tmp_path, method):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match=r"could not write .*report"):
        getattr(analysis, method)(tmp_path / "file" / "report")
    with pytest.raises(SaveError, match="could not write"):
        getattr(analysis, method)(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_report_whole(saved, tmp_path):
    report = tmp_path / "report.json"
    report.write_text("the old one")
    result = analyze(saved, probes=["head_roles"], budget=50)
    with pytest.raises(SaveError, match=f"^could not write {report}: File too large$"), room_for(1000):
        result.to_json(report)
    assert report.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


# --- The README -------------------------------------------------------------------------------------------------------


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    """As it stands there, but for shorter training and fewer prompts."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(import icl_interp as icl.*?)```", readme, flags=re.DOTALL)
    for full, short in (("steps=2_000", "steps=60"), ("analyze(run)", "analyze(run, budget=100)")):
        assert full in example
        example = example.replace(full, short)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example, names)
    assert "Which heads are positive" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text() == names["result"].to_html()
    assert names["prediction"].shape == (8, 41, 1)
    assert names["cache"]["blocks.0.attn.hook_pattern"].shape == (8, 2, 41, 41)
    assert names["run"].circuits().KQ.shape == (1, 2, 6, 6)

    for begin in ("icl.register_activation", "from icl_interp.reproduce import"):
        (more,) = re.findall(rf"```python\n({begin}.*?)```", readme, flags=re.DOTALL)
        exec(more.replace("steps=100", "steps=5").replace("figure-22", "figure-7"), names)  # which needs no training
    assert "Figure 7" in capsys.readouterr().out

    (deeper,) = re.findall(r"```python\n(sparse = .*?)```", readme, flags=re.DOTALL)
    exec(deeper.replace("steps=300", "steps=5"), names)
    assert "later_layers_use_one_head" in capsys.readouterr().out

    (sweeping,) = re.findall(r"```python\n(swept = .*?)```", readme, flags=re.DOTALL)
    exec(sweeping.replace('"steps": 300', '"steps": 5').replace("seeds=4", "seeds=1, workers=1, budget=64"), names)
    assert len(names["rows"]) == 3
    assert (tmp_path / "runs" / "sweep" / "sweep.html").is_file()

    (population,) = re.findall(r"```python\n(configs = .*?)```", readme, flags=re.DOTALL)
    (comparing,) = re.findall(r"```python\n(compared = .*?)```", readme, flags=re.DOTALL)
    exec(population.replace("steps=300", "steps=5") + comparing.replace("2_048", "64"), names)
    assert "two heads" in capsys.readouterr().out

    (tools,) = re.findall(r"```python\n(from transformer_lens .*?)```", readme, flags=re.DOTALL)
    exec(tools.replace("4_096", "64"), names)
    assert not names["model"].hook_dict["blocks.0.attn.hook_result"].has_hooks()
