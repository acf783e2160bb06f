"""Sweeps: which cells there are, what their rows hold, and what an interruption or a failure costs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from icl_interp.errors import CheckpointError, ConfigError
from icl_interp.records import Run
from icl_interp.sweeps import Sweep, sweep
from icl_interp.sweeps.dataset import Dataset
from icl_interp.sweeps.grid import cells
from icl_interp.sweeps.places import Place
from icl_interp.sweeps.rows import failed
from icl_interp.sweeps.running import DIED, Work, batches, run_all
from icl_interp.tasks import LinearRegression, SparseRegression

TINY = {"dim": 2, "length": 4, "steps": 30, "batch_size": 8, "n_records": 20}
GRID = {**TINY, "n_heads": [1, 2], "noise_var": [0.1, 0.3]}
HOW = {"probes": ["circuit_pattern", "kernel_fit"], "budget": 64}


def frames_equal(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.sort_index(axis=1), other.sort_index(axis=1), check_dtype=False)


# --- Cells -----------------------------------------------------------------------------------------------------------


def test_cells_are_all_combinations():
    found = cells({"n_heads": [1, 2], "noise_var": [0.1, 0.3], "steps": 5}, seeds=3)
    assert len(found) == 12
    assert {(c.config.model.n_heads, c.config.task.noise_var, c.config.seed) for c in found} == {
        (heads, noise, seed) for heads in (1, 2) for noise in (0.1, 0.3) for seed in range(3)
    }
    assert len({c.key for c in found}) == 12
    assert found[0].parameters["steps"] == 5
    assert found[0].parameters["task"] == "LinearRegression"


def test_tasks_can_be_swept_over_and_sizes_follow_them():
    tasks = [LinearRegression(3, 6, 0.1), SparseRegression(4, 2, 8)]
    found = cells({"task": tasks, "n_layers": 2, "d_head": 3}, seeds=[7])
    assert [c.config.model.dim for c in found] == [3, 4]
    assert [c.parameters["task"] for c in found] == ["LinearRegression", "SparseRegression"]
    assert [c.config.seed for c in found] == [7, 7]


def test_the_same_combination_twice_is_one_cell():
    assert len(cells({"n_heads": [2, 2]}, seeds=[0, 0])) == 1


@pytest.mark.parametrize(
    ("grid", "seeds", "complaint"),
    [
        ({"heads": [1]}, 1, "nothing called heads can be swept over; there are activation,"),
        ({"n_heads": []}, 1, "n_heads has no values"),
        ({"n_heads": [0]}, 1, "n_heads must be a whole number ≥ 1, got 0"),
        ({}, 0, "a sweep needs a seed"),
        ({}, [-1], "seed must be"),
    ],
)
def test_what_is_no_grid(grid, seeds, complaint):
    with pytest.raises(ConfigError, match=complaint):
        cells(grid, seeds)


def test_batches_are_of_one_size_and_of_the_compiled_engine():
    mixed = cells({**TINY, "n_heads": [1, 2], "n_layers": [1, 2]}, seeds=4)
    for batch in batches(mixed, "auto", "cpu", workers=1):
        assert len({(c.config.model, c.config.task) for c in batch}) == 1
        assert len(batch) == 1 or batch[0].config.model.n_layers == 1
    assert sorted(c.key for batch in batches(mixed, "auto", "cpu", 1) for c in batch) == sorted(c.key for c in mixed)


# --- Rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return sweep(GRID, seeds=2, out=tmp_path_factory.mktemp("sweep"), workers=1, keep=True, **HOW)


def test_a_row_a_run(swept):
    rows = swept.to_pandas()
    assert len(rows) == 8
    assert rows["error"].isna().all()
    assert rows["cell"].is_unique
    assert set(rows["n_heads"]) == {1, 2}
    assert set(rows["circuit_pattern.kq_diagonal.status"]) <= {"holds", "fails", "inconclusive"}
    assert rows["circuit_pattern.kq_diagonal.value"].notna().all()
    assert rows["kernel_fit.eta.low"].le(rows["kernel_fit.eta.value"]).all()
    assert not [name for name in rows.columns if "second" in name or "time" in name]
    assert "8 runs" in repr(swept)


def test_the_data_set_is_plain_parquet(swept):
    assert len(pd.read_parquet(swept.folder / "rows.parquet")) == 8
    assert not (swept.folder / "rows").exists()


def test_kept_runs_are_those_of_the_rows(swept):
    row = swept.to_pandas().iloc[0]
    run = swept.run(row["cell"])
    assert isinstance(run, Run)
    assert (run.training.seed, run.training.steps) == (row["seed"], 30)
    with pytest.raises(CheckpointError):
        swept.run("0" * 16)


def test_rows_do_not_depend_on_processes_grouping_or_order(swept, tmp_path):
    backwards = {**GRID, "n_heads": [2, 1], "noise_var": [0.3, 0.1]}
    again = sweep(backwards, seeds=[1, 0], out=tmp_path / "again", workers=2, **HOW)
    frames_equal(swept.to_pandas(), again.to_pandas())


def test_done_cells_are_not_run_again_and_a_sweep_may_grow(tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    sweep(TINY, seeds=1, out=out, workers=1, **HOW)
    asked = []
    real = Work.rows
    monkeypatch.setattr(Work, "rows", lambda self, part: (asked.extend(part), real(self, part))[1])
    grown = sweep(TINY, seeds=3, out=out, workers=1, **HOW)
    assert sorted(cell.config.seed for cell in asked) == [1, 2]
    assert len(grown.to_pandas()) == 3
    assert len(Sweep.load(out).to_pandas()) == 3


def test_what_a_killed_sweep_left_half_written_is_cleared_away(tmp_path):
    sweep(TINY, seeds=1, out=tmp_path, workers=1, **HOW)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / ".part-0.parquet.tmp").write_bytes(b"PAR")
    assert len(sweep(TINY, seeds=2, out=tmp_path, workers=1, **HOW).to_pandas()) == 2
    assert not (tmp_path / "rows").exists()


def test_the_bar_counts_verdicts_and_failures(tmp_path, capsys):
    sweep({**TINY, "lr": [1e-3, 1e6], "optimizer": "sgd"}, out=tmp_path, workers=1, progress=True, **HOW)
    said = capsys.readouterr().err
    assert re.search(r"2/2 \[\d\d:\d\d<\d\d:\d\d", said)  # how long it took, and will take
    assert "fails=" in said
    assert "failed=1" in said


# --- What goes wrong -------------------------------------------------------------------------------------------------


def test_a_cell_that_fails_is_a_row_and_the_rest_goes_on(tmp_path):
    found = sweep({**TINY, "lr": [1e-3, 1e6], "optimizer": "sgd"}, seeds=2, out=tmp_path, workers=1, **HOW)
    rows = found.to_pandas().set_index(["lr", "seed"])
    assert rows.loc[1e-3, "error"].isna().all()
    assert rows.loc[1e6, "error"].str.contains("the loss became nan").all()
    assert "2 of them failed" in repr(found)


def test_a_combination_that_no_engine_can_train_is_a_row(tmp_path):
    found = sweep({**TINY, "n_layers": [1, 2]}, out=tmp_path, workers=1, engine="numba", **HOW).to_pandas()
    wrong = found.set_index("n_layers")["error"]
    assert pd.isna(wrong[1])
    assert "n_layers is 2" in wrong[2]


def test_a_folder_of_another_sweep_is_left_alone(tmp_path):
    sweep(TINY, out=tmp_path, workers=1, **HOW)
    before = (tmp_path / "rows.parquet").read_bytes()
    with pytest.raises(ConfigError, match="begun in another way: budget was 64 and is 100"):
        sweep(TINY, out=tmp_path, workers=1, **{**HOW, "budget": 100})
    with Dataset(tmp_path).alone(), pytest.raises(ConfigError, match="another sweep is writing"):
        sweep(TINY, seeds=2, out=tmp_path, workers=1, **HOW)
    assert (tmp_path / "rows.parquet").read_bytes() == before


def test_an_unknown_probe_and_a_folder_without_a_sweep(tmp_path):
    with pytest.raises(ConfigError, match="no probe 'nope'"):
        sweep(TINY, out=tmp_path, probes="nope")
    with pytest.raises(CheckpointError, match="no sweep in"):
        Sweep.load(tmp_path / "none")


def test_rows_that_cannot_be_read_are_named(tmp_path):
    sweep(TINY, out=tmp_path, workers=1, **HOW)
    file = tmp_path / "rows.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"rows\.parquet cannot be read"):
        Sweep.load(tmp_path).to_pandas()


@dataclasses.dataclass(frozen=True)
class Deadly(Work):
    """Work that kills its process: once, where a file says so; or whenever it meets a seed."""

    once: str = ""
    seed_of_death: int = -1

    def rows(self, cells):
        if self.once:
            with contextlib.suppress(FileNotFoundError):  # another one was first
                os.unlink(self.once)
                os.kill(os.getpid(), signal.SIGKILL)
        if any(cell.config.seed == self.seed_of_death for cell in cells):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(cells)


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing_and_one_that_always_does_a_row(tmp_path):
    asked = cells(TINY, seeds=5)
    plain = Work("auto", "cpu", tuple(HOW["probes"]), HOW["budget"], 0, None)
    expected = [row for cell in asked for row in plain.rows([cell])]
    flag = tmp_path / "once"
    flag.touch()
    found = []
    run_all([[cell] for cell in asked], Deadly(**vars(plain), once=str(flag)), found.extend, Place(workers=2))
    assert not flag.exists()
    assert sorted(row["cell"] for row in found) == sorted(row["cell"] for row in expected)
    assert {row["error"] for row in found} == {None}
    found = []
    run_all([asked], Deadly(**vars(plain), seed_of_death=3), found.extend, Place(workers=2))
    assert {row["seed"]: row["error"] for row in found} == {seed: DIED if seed == 3 else None for seed in range(5)}


SCRIPT = """
import sys
from icl_interp.sweeps import sweep

if __name__ == "__main__":
    sweep({grid}, seeds=6, out={out!r}, workers=2, **{how})
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_with_the_same_rows(tmp_path):
    whole = sweep(GRID, seeds=6, out=tmp_path / "whole", workers=2, **HOW).to_pandas()
    out = tmp_path / "killed"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(grid=GRID, out=str(out), how=HOW))
    for moment in range(20):
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
        time.sleep(2 + 0.35 * moment)
        finished = process.poll() is not None
        os.killpg(process.pid, signal.SIGKILL) if not finished else None
        process.wait()
        if finished:
            break
    found = sweep(GRID, seeds=6, out=out, workers=2, **HOW).to_pandas()
    frames_equal(whole, found)


# --- Clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_gives_the_same_rows_whoever_dies(swept, tmp_path, backend):
    """Two workers on this machine, one of which is killed in the middle: nothing is lost, nothing twice."""
    flag = tmp_path / "once"
    flag.touch()
    asked = cells(GRID, seeds=2)
    plain = Work("auto", "cpu", tuple(HOW["probes"]), HOW["budget"], 0, None)
    found = []
    run_all([[cell] for cell in asked], Deadly(**vars(plain), once=str(flag)), found.extend, Place(backend, 2))
    assert not flag.exists()
    rows = pd.DataFrame(found)
    assert rows["cell"].is_unique
    frames_equal(swept.to_pandas(), rows.sort_values("cell", ignore_index=True))


@pytest.mark.slow
def test_a_dask_cluster_of_ones_own(swept, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        found = sweep(
            GRID, seeds=2, out=tmp_path, workers=2, backend="dask", scheduler=cluster.scheduler_address, **HOW
        )
    frames_equal(swept.to_pandas(), found.to_pandas())


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"backend": "threads"}, "backend must be one of 'loky', 'dask', 'ray'"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "scheduler is the address of a Dask or Ray cluster"),
        ({"workers": 0}, "workers must be"),
    ],
)
def test_where_a_sweep_cannot_run(tmp_path, how, complaint):
    with pytest.raises(ConfigError, match=complaint):
        sweep(TINY, out=tmp_path / "out", **{**HOW, **how})
    assert not (tmp_path / "out").exists()


# --- What comes of it ------------------------------------------------------------------------------------------------


def test_rows_are_read_by_other_tools(swept):
    import duckdb
    import polars

    file = str(swept.folder / "rows.parquet")
    eta = swept.to_pandas()["kernel_fit.eta.value"]
    assert polars.read_parquet(file)["kernel_fit.eta.value"].mean() == pytest.approx(eta.mean())
    query = f"SELECT n_heads, avg(\"kernel_fit.eta.value\") FROM '{file}' GROUP BY n_heads ORDER BY n_heads"
    assert [heads for heads, _ in duckdb.sql(query).fetchall()] == [1, 2]


def test_the_summary_page_leads_to_reports(tmp_path):
    from carrying import carried  # not for a cluster's workers, which import this file too

    found = sweep(TINY, seeds=2, out=tmp_path / "sweep", workers=1, keep=True, reports=True, **HOW)
    cells = list(found.to_pandas()["cell"])
    assert all((found.folder / "runs" / cell / "report.html").is_file() for cell in cells)
    page = found.to_html()
    assert page == found.folder / "sweep.html"
    elsewhere = found.to_html(tmp_path / "pages" / "page.html")
    header, _ = carried(page.read_text())
    assert header["reports"] == {cell: f"runs/{cell}/report.html" for cell in cells}
    header, _ = carried(elsewhere.read_text())
    assert (elsewhere.parent / header["reports"][cells[0]]).is_file()


def test_reports_need_runs(tmp_path):
    with pytest.raises(ConfigError, match="reports=True needs keep=True"):
        sweep(TINY, out=tmp_path / "out", reports=True)


def test_failed_runs_are_tried_again_if_asked(tmp_path, monkeypatch):
    how = {"seeds": 3, "out": tmp_path, "workers": 1, **HOW}
    real = Work._row

    def out_of_memory(self, cell, run):
        return failed(cell, "MemoryError: no room") if cell.config.seed == 1 else real(self, cell, run)

    monkeypatch.setattr(Work, "_row", out_of_memory)
    assert sweep(TINY, **how).to_pandas()["error"].notna().sum() == 1
    monkeypatch.undo()
    assert sweep(TINY, **how).to_pandas()["error"].notna().sum() == 1
    again = sweep(TINY, retry=True, **how).to_pandas()
    assert len(again) == 3
    assert again["error"].isna().all()
    frames_equal(again, sweep(TINY, **{**how, "out": tmp_path / "other"}).to_pandas())
