"""What the examples say still holds: their files parse, kept rows come out again, and pages are what rows make."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from icl_interp.sweeps import sweep
from icl_interp.sweeps.grid import cells

ROOT = Path(__file__).parents[1]
TOML = tomllib.loads((ROOT / "examples" / "fate_of_seeds.toml").read_text())


@pytest.fixture(scope="module")
def fate_of_seeds():
    spec = importlib.util.spec_from_file_location("fate_of_seeds", ROOT / "examples" / "fate_of_seeds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kept_rows_are_those_of_the_sweep(fate_of_seeds):
    asked = {(c.config.model.n_heads, c.config.seed) for c in cells(TOML["grid"], TOML["seeds"])}
    kept = pd.read_parquet(fate_of_seeds.KEPT)
    assert set(zip(kept["n_heads"], kept["seed"], strict=True)) == asked
    assert len(kept) == len(asked) == 2_048


@pytest.mark.slow
def test_a_kept_row_comes_out_again(fate_of_seeds, tmp_path):
    grid = {**TOML["grid"], "n_heads": 3}
    (row,) = (
        sweep(grid, seeds=[5], out=tmp_path, probes=TOML["probes"], budget=TOML["budget"])
        .to_pandas()
        .to_dict("records")
    )
    kept = pd.read_parquet(fate_of_seeds.KEPT).query("n_heads == 3 and seed == 5").to_dict("records")[0]
    assert row[fate_of_seeds.ROLES] == kept[fate_of_seeds.ROLES]
    for column in fate_of_seeds.NUMBERS.values():
        assert row[column] == pytest.approx(kept[column], rel=0.02)


@pytest.mark.slow
def test_the_page_is_what_the_rows_make(fate_of_seeds):
    made = fate_of_seeds.page(pd.read_parquet(fate_of_seeds.KEPT))
    assert made == fate_of_seeds.PAGE.read_text(encoding="utf-8"), "stale: run python examples/fate_of_seeds.py"
