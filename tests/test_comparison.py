"""Runs side by side: what changed, what is stacked, and reports as sources."""

from __future__ import annotations

import json
import math

import pytest

import icl_interp as icl
from icl_interp.analysis_files import MAX_BYTES, analysis_of, load_analysis
from icl_interp.cli import main
from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.probing import Heatmap, Table
from icl_interp.serialization import dumps

TASK = icl.LinearRegression(3, 8, 0.1)
BUDGET = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one, two and two heads, the last of them with its reports."""
    place = tmp_path_factory.mktemp("runs")
    for name, heads, seed in (("h1", 1, 0), ("h2", 2, 0), ("other", 2, 1)):
        icl.train(TASK, n_heads=heads, seed=seed, steps=60, n_records=20, out=place / name, progress=False)
    analysis = icl.analyze(place / "other", budget=BUDGET)
    analysis.to_json(place / "other" / "report.json")
    analysis.to_html(place / "other" / "report.html")
    return place


@pytest.fixture(scope="module")
def found(folder):
    return icl.compare(folder / "h1", folder / "h2", folder / "other" / "report.json", budget=BUDGET)


def test_claims_are_those_of_every_run_and_changed_ones_come_first(found):
    assert found.names == ("h1", "h2", "other")
    claims = {(o.probe, v.claim) for analysis in found.analyses for o in analysis for v in o.verdicts}
    assert {(c.probe, c.claim) for c in found.claims} == claims
    changed = [claim.changed for claim in found.claims]
    assert changed == sorted(changed, reverse=True)
    assert any(changed)
    for claim in found.claims:
        assert claim.changed == (len({v.status if v else None for v in claim.verdicts}) > 1)
    rows = found.verdicts
    assert len(rows) == sum(v is not None for claim in found.claims for v in claim.verdicts)
    one = rows[(rows["probe"] == "kernel_fit") & (rows["run"] == "h1")]
    assert len(one) == len(found.analyses[0]["kernel_fit"].verdicts)


def test_roles_omega_mu_and_risks_stand_in_one_table_and_circuits_on_one_scale(found):
    blocks = {(probe, type(block).__name__): block for probe, block in found.blocks}
    heads = blocks["head_roles", "Table"]
    assert heads.columns[:5] == ("run", "head", "role", "ω", "μ")
    assert [row[0] for row in heads.rows] == ["h1", "h2", "h2", "other", "other"]
    own = next(block for block in found.analyses[2]["head_roles"].blocks if isinstance(block, Table))
    assert heads.rows[-2:] == tuple(("other", *row) for row in own.rows)
    assert {row[0] for row in blocks["risk", "Table"].rows} == set(found.names)
    circuits = blocks["circuit_pattern", "Heatmap"]
    assert isinstance(circuits, Heatmap)
    assert len(circuits.panels) == 5
    assert circuits.panels[0].startswith("h1: head 0")


def test_what_may_be_the_cause_instead(folder, found):
    assert found.cautions == ()
    alone = icl.analyze(folder / "h1", icl.LinearRegression(3, 12, 0.1), seed=3, budget=32, probes="kernel_fit")
    said = " ".join(icl.compare(alone, folder / "h2", budget=BUDGET, probes="kernel_fit").cautions)
    assert "different tasks" in said
    assert "different seeds" in said
    assert "different budgets" in said


def test_names(folder):
    analysis = icl.analyze(icl.Run.load(folder / "h1"), budget=32, probes="circuit_pattern")
    assert icl.compare(analysis, analysis).names[1].endswith("h1 (2)")
    assert icl.compare(analysis, analysis, names=["a", "b"]).names == ("a", "b")
    with pytest.raises(ConfigError, match="names must be distinct, one for each of 2 runs"):
        icl.compare(analysis, analysis, names=["a", "a"])
    for count in (1, 13):
        with pytest.raises(ConfigError, match=f"2 to 12 runs or reports can be compared, got {count}"):
            icl.compare(*[analysis] * count)


def test_models_of_other_sizes(folder, tmp_path):
    other = icl.train(icl.LinearRegression(2, 8, 0.1), steps=20, n_records=12, progress=False)
    found = icl.compare(folder / "h1", other, budget=BUDGET, probes=["circuit_pattern", "head_roles"])
    maps = [block for _, block in found.blocks if isinstance(block, Heatmap)]
    assert [block.matrices.shape[1:] for block in maps] == [(4, 4), (3, 3)]
    assert "</html>" in found.to_html()


def test_the_page_and_the_terminal_say_the_same(found, tmp_path):
    text = str(found)
    changed = sum(claim.changed for claim in found.claims)
    assert f"{changed} of {len(found.claims)} claims differ" in text
    assert "h1   " in text
    page = tmp_path / "page.html"
    found.to_html(page)
    content = page.read_text()
    assert f"{changed} of {len(found.claims)} claims differ" in content
    assert content == found.to_html()
    assert content.count('class="dot c0"') >= 3
    assert (
        ">1.5</text>" not in content.partition('id="made-head_roles"')[2].partition("</svg>")[0]
    )  # of a run and a half
    assert repr(found) == f"<Comparison of h1, h2, other: {changed} of {len(found.claims)} claims differ>"


# --- Reports as sources -----------------------------------------------------------------------------------------------


def test_a_report_is_the_analysis_it_was_written_from(folder):
    made = icl.analyze(folder / "other", budget=BUDGET)
    for name in ("report.json", "report.html"):
        read = load_analysis(folder / "other" / name)
        assert dumps(read.to_data()) == dumps(made.to_data())
        assert str(read) == str(made)
        assert [len(o.blocks) for o in read] == [len(o.blocks) for o in made]


def test_a_finding_of_another_version_leaves_its_verdicts(folder):
    data = json.loads((folder / "other" / "report.json").read_text())
    data["probes"]["risk"]["result"] = {"left_out": "too large"}
    data["probes"]["kernel_fit"]["result"]["new"] = 1
    data["probes"]["somebody's"] = {**data["probes"]["risk"], "result": {"x": 1}}
    read = analysis_of(data)
    for probe in ("risk", "kernel_fit", "somebody's"):
        assert read[probe].blocks == ()
        assert read[probe].verdicts
    assert read["head_roles"].blocks


def without(data, *path):
    *way, last = path
    for step in way:
        data = data[step]
    del data[last]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: without(data, "probes"), "not an analysis, which has schema_version"),
        (lambda data: without(data, "provenance", "budget"), "not a Provenance"),
        (lambda data: without(data, "probes", "risk", "verdicts"), "'risk' lacks verdicts"),
        (lambda data: data.update(schema_version=99), "version 99 of the format"),
        (lambda data: data["probes"]["risk"].update(status="fine"), "no such status: 'fine'"),
        (lambda data: data["circuits"].update(KQ=[[1, "x"]]), "not a Circuits"),
        (lambda data: data["probes"]["risk"]["verdicts"][0].update(status="sure"), "status"),
    ],
)
def test_a_damaged_report(folder, tmp_path, damage, complaint):
    data = json.loads((folder / "other" / "report.json").read_text())
    damage(data)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=complaint) as error:
        load_analysis(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"<html></html>"])
@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_what_is_no_report(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_analysis(file)


def test_a_report_that_is_not_there_or_far_too_large(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_analysis(tmp_path / "none.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="a report has"):
        load_analysis(tmp_path / "huge.json")


# --- The command line -------------------------------------------------------------------------------------------------


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "compare.html"
    sources = [str(folder / "h2"), str(folder / "other" / "report.html")]
    assert main(["compare", *sources, "--budget", str(BUDGET), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "claims differ" in said
    assert said.rstrip().endswith(out.as_uri())
    assert "2 runs side by side" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["one"], "2 to 12 runs"), (["nowhere", "nor-here"], "nowhere"), (["a.json", "b.json"], "a.json is no report")],
)
def test_what_is_misused(tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_there(found):
    rows = found.verdicts
    assert all(math.isnan(value) for value in rows["value"][rows["status"] == "not_applicable"])
