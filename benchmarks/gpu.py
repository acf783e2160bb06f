"""The CUDA engine on a GPU: how fast it is, what the machine could do, and whether what it trains is the same.

    python benchmarks/gpu.py [--only speed paper same worth] [--runs 512] [--steps 500000] [--seconds 1] [--rounds 5]

speed   runs × steps a second beside the torch engine under a CUDA graph and the numba engine on all threads, each run
        on prompts of its own; timed in turn, a ratio within each round.
paper   seconds of the paper's runs, from the call of `train_many` to the runs it returns: with the kernel's
        compilation, 300 records of each run, and all else.
same    the same configs trained by the CUDA and by the numba engine: roles, γ, η and risk, run by run and in all.
worth   how many steps of one run are worth a kernel that has to be compiled.

The main setting (d = 5, L = 40, 256 prompts a step, Adam).  Writes benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from train import TASK, Steps, engine, ratio, rounds_of, spread

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.estimates import mean_of, share_of
from icl_interp.records import Run, TrainConfig
from icl_interp.training import engines
from icl_interp.training.gpu.device import SIMULATED, grid
from icl_interp.training.gpu.shapes import THREADS

RESULTS = Path(__file__).parent / "results" / "gpu.json"
# What a thread issues in a step on 40 demonstrations, by number of heads: counted in the machine code for sm_90.
INSTRUCTIONS = {2: 11_900}
ISSUED, WARP = 4, 32  # instructions that a multiprocessor can issue in a cycle, each for a warp
PROBES = ("head_roles", "kernel_fit", "risk")
NUMBERS = {"γ": "gamma", "η": "eta"}
Table = dict[str, object]


def speed(options: argparse.Namespace) -> list[Table]:
    """Table of speeds, ratios to the torch engine with as many runs, and fractions of what the machine could issue."""
    found: list[Table] = []
    for heads in options.heads:
        cases = {f"cuda, {runs} runs": ours("cuda", heads, runs) for runs in options.populations}
        if torch.cuda.is_available():
            cases |= {f"torch, {runs} runs": ours("torch", heads, runs) for runs in options.populations}
        cases["numba, 64 runs, all threads"] = engine("numba", heads, 64, shared=False)
        speeds = rounds_of(cases, options.rounds, options.seconds)
        for name, values in speeds.items():
            row: Table = {"heads": heads, "case": name, "speed": spread(values)}
            if name.startswith("cuda"):
                to = [f"torch{name.removeprefix('cuda')}", "numba, 64 runs, all threads"]
                row["ratios"] = {other: ratio(speeds, name, other) for other in to if other in speeds}
                row["fraction"] = fraction(float(np.median(values)), heads)
            found.append(said(row))
    return found


def ours(name: str, heads: int, runs: int) -> Steps:
    return engine(name, heads, runs, "cuda", shared=False)


def paper(options: argparse.Namespace) -> list[Table]:
    """Table of seconds, of a population and of one run."""
    found: list[Table] = []
    for heads in options.heads:
        for runs in (1, options.runs):
            started = time.perf_counter()
            trained = icl.train_many(configs(heads, options.steps, range(runs)), engine="cuda", progress=False)
            seconds = time.perf_counter() - started
            assert all(run.step == options.steps for run in trained)
            per_second = runs * options.steps / seconds
            row: Table = {"heads": heads, "case": f"{runs} × {options.steps:,} steps", "seconds": seconds}
            found.append(said(row | {"fraction": fraction(per_second, heads)}))
    return found


def same(options: argparse.Namespace) -> list[Table]:
    """Table of what both engines make of the same configs: both means or shares, and differences run by run."""
    found: list[Table] = []
    for heads in options.heads:
        both = [readings(heads, options, name) for name in ("cuda", "numba")]
        agree = [a["roles"] == b["roles"] for a, b in zip(*both, strict=True)]
        found.append(said({"heads": heads, "what": "runs with the same roles", "share": str(share(agree))}))
        for what in ("one sign", "with a dummy"):
            shares = [str(share([bool(row[what]) for row in rows])) for rows in both]
            found.append(said({"heads": heads, "what": f"runs {what}", "cuda": shares[0], "numba": shares[1]}))
        for what in (*NUMBERS, "risk"):
            values = [np.array([row[what] for row in rows], dtype=float) for rows in both]
            known = np.isfinite(values).all(0)  # γ and η are of heads of both signs
            means = [str(mean_of(each[known], "seeds")) for each in values]
            apart = str(mean_of((values[0] - values[1])[known], "seeds"))
            row = {"heads": heads, "what": what, "cuda": means[0], "numba": means[1], "difference": apart}
            found.append(said(row | {"runs": int(known.sum())}))
    return found


def readings(heads: int, options: argparse.Namespace, name: str) -> list[Table]:
    """A row a run, by probes."""
    device = "cuda" if name == "cuda" else "cpu"
    runs = icl.train_many(
        configs(heads, options.compared, range(options.runs)), engine=name, device=device, progress=False
    )
    with multiprocessing.get_context("spawn").Pool() as pool:
        return pool.map(reading, list(runs), chunksize=4)


def reading(run: Run) -> Table:
    torch.set_num_threads(1)
    found = icl.analyze(run, probes=PROBES, budget=4_096, device="cpu")
    fit, roles = found["kernel_fit"].value, found["head_roles"].value.heads.roles
    risk = next(v.estimate for v in found["risk"].verdicts if v.estimate).value
    numbers = {what: getattr(getattr(fit, name), "value", np.nan) for what, name in NUMBERS.items()}
    return {"roles": roles, "one sign": len({*roles} - {"dummy"}) == 1, "with a dummy": "dummy" in roles, **numbers,
            "risk": risk}  # fmt: skip


def worth(options: argparse.Namespace) -> list[Table]:
    """Table of when a kernel's compilation is made good, of one run against the numba engine on one core."""
    found: list[Table] = []
    threads = torch.get_num_threads()
    for heads in options.heads:
        started = time.perf_counter()
        engine("cuda", heads, 1, "cuda", length=TASK.length, dim=TASK.dim + 1)(1)  # a shape that is not compiled yet
        compiling = time.perf_counter() - started
        torch.set_num_threads(1)
        cases = {"cuda": ours("cuda", heads, 1), "numba": engine("numba", heads)}
        speeds = {name: np.median(v) for name, v in rounds_of(cases, options.rounds, options.seconds).items()}
        torch.set_num_threads(threads)
        steps = compiling / (1 / speeds["numba"] - 1 / speeds["cuda"])
        work = steps * engines.work(configs(heads, 1, [0])[0])
        found.append(said({"heads": heads, "compiling": compiling, "steps": steps, "multiply-adds": work}))
    return found


def configs(heads: int, steps: int, seeds: Sequence[int]) -> list[TrainConfig]:
    return [TrainConfig(TASK, ModelConfig(TASK.dim, n_heads=heads), steps=steps, seed=seed) for seed in seeds]


def share(hits: Sequence[bool]) -> object:
    return share_of(sum(hits), len(hits), "seeds")


def fraction(per_second: float, heads: int) -> float | None:
    """Of the steps whose instructions the GPU could issue, if every multiprocessor did so in every cycle."""
    if SIMULATED or heads not in INSTRUCTIONS:
        return None
    device = grid.get_current_device()
    issued = device.MULTIPROCESSOR_COUNT * ISSUED * device.CLOCK_RATE * 1e3
    return per_second / (issued / (INSTRUCTIONS[heads] * THREADS / WARP))


def said(row: Table) -> Table:
    print("  ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"speed": speed, "paper": paper, "same": same, "worth": worth}
    parser.add_argument("--only", nargs="+", choices=parts, default=tuple(parts))
    parser.add_argument("--heads", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--populations", type=int, nargs="+", default=[1, 64, 512, 2048], help="runs that are timed")
    parser.add_argument("--runs", type=int, default=512)
    parser.add_argument("--steps", type=int, default=500_000, help="of the paper's runs")
    parser.add_argument("--compared", type=int, default=20_000, help="steps of the runs that both engines train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="that each case takes in each round")
    options = parser.parse_args()
    if not engines.gpus():
        raise SystemExit("no GPU, or no numba-cuda (pip install icl-interp[cuda]): there is nothing to measure")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found["device"] = "simulated" if SIMULATED else str(grid.get_current_device().name)
    for name in options.only:
        found[name] = parts[name](options)
    if not SIMULATED:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
