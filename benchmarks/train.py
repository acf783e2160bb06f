"""How fast training is: the engines against a loop written as the published experiment is, in one run.

    python benchmarks/train.py [--rounds 9] [--seconds 0.5] [--only speed scaling]

Everything is timed in turn, round after round, so that whatever else the machine does falls on all alike; a ratio is
taken within a round, and its median, lowest and highest over rounds are printed.  Speeds are runs × steps a second in
the paper's main setting (d = 5, L = 40, 256 prompts a step, Adam).  Writes benchmarks/results/train.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.records import TrainConfig
from icl_interp.training.engines import build, choose

RESULTS = Path(__file__).parent / "results" / "train.json"
TASK = icl.LinearRegression(dim=5, length=40, noise_var=0.1)
ENDLESS = 10**12
Steps = Callable[[int], int]  # take so many steps; how many runs took them


class Reference(nn.Module):
    """Attention as the published experiment has it: one linear map each for q, k, v and o, all heads side by side."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.width = heads, d + 1
        self.q, self.k, self.v = (nn.Linear(self.width, heads * self.width, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * self.width, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self._split(self.q(z[:, -1:])), self._split(self.k(z[:, :-1])), self._split(self.v(z[:, :-1]))
        pattern = torch.softmax(q @ k.mT / self.width**0.5, dim=-1)
        return self.o((pattern @ v).transpose(1, 2).flatten(2))[:, 0, 0]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.width)).transpose(1, 2)


def reference(heads: int) -> Steps:
    """Fresh prompts by torch.randn, autograd, torch's Adam."""
    model = Reference(TASK.dim, heads)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def steps(count: int) -> int:
        for _ in range(count):
            x = torch.randn(256, TASK.length + 1, TASK.dim)
            beta = torch.randn(256, TASK.dim, 1) / TASK.dim**0.5
            y = x @ beta + TASK.noise_var**0.5 * torch.randn(256, TASK.length + 1, 1)
            z, target = torch.cat([x, y], dim=-1), y[:, -1, 0].clone()
            z[:, -1, -1] = 0
            loss = (model(z) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return 1

    return steps


def engine(name: str, heads: int, runs: int = 1, device: str = "cpu", shared: bool = True, **task: int) -> Steps:
    """`runs` runs of one of ours, on shared prompts or each on its own."""
    setting = dataclasses.replace(TASK, **task)
    stream = 0 if shared and runs > 1 else None
    model = ModelConfig(setting.dim, n_heads=heads)
    configs = [TrainConfig(setting, model, steps=ENDLESS, seed=s, data_seed=stream) for s in range(runs)]
    trained = build(configs, [choose(config, name, device) for config in configs])

    def steps(count: int) -> int:
        trained.advance(count)
        trained.total_losses()  # a GPU may still be at it
        return runs

    return steps


def rounds_of(cases: dict[str, Steps], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Runs × steps a second of every case in every round."""
    counts = {}
    for name, steps in cases.items():  # find how many steps take so long
        steps(1)  # compiles
        count, took = 1, 0.0
        while took < seconds / 4:
            start = time.perf_counter()
            steps(count)
            took = time.perf_counter() - start
            if took < seconds / 4:
                count *= 2
        counts[name] = max(1, round(count * seconds / took))
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, steps in cases.items():
            start = time.perf_counter()
            runs = steps(counts[name])
            speeds[name].append(runs * counts[name] / (time.perf_counter() - start))
    return speeds


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": min(values), "high": max(values)}


def ratio(speeds: dict[str, list[float]], name: str, to: str) -> dict[str, float]:
    return spread([a / b for a, b in zip(speeds[name], speeds[to], strict=True)])


def speed(rounds: int, seconds: float) -> list[dict[str, object]]:
    """Table of speeds and of ratios to the reference with as many heads."""
    rows: list[dict[str, object]] = []
    most = torch.get_num_threads()
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        cases = {f"reference, {h} heads": reference(h) for h in (2, 4)}
        for name in ("torch", "numba"):
            cases |= {f"{name}, {h} heads": engine(name, h) for h in (2, 4)}
            cases[f"{name}, 64 runs of 2 heads"] = engine(name, 2, 64)
            cases[f"{name}, 64 runs of 2 heads, own prompts"] = engine(name, 2, 64, shared=False)
        speeds = rounds_of(cases, rounds, seconds)
        for name in cases:
            to = f"reference, {name.split(' heads')[0][-1]} heads"
            row = {"threads": threads, "case": name, "speed": spread(speeds[name]), "ratio": ratio(speeds, name, to)}
            rows.append(row)
            show(row)
    torch.set_num_threads(most)
    if most > 1:
        rows += gain(rounds, seconds, most)
    return rows


def gain(rounds: int, seconds: float, most: int) -> list[dict[str, object]]:
    """What all threads gain for a population, both timed in each round."""

    def on(threads: int) -> Steps:
        torch.set_num_threads(threads)
        steps = engine("numba", 2, 64)
        torch.set_num_threads(most)
        return steps

    speeds = rounds_of({"one": on(1), "all": on(most)}, rounds, seconds)
    row: dict[str, object] = {"threads": most, "case": "numba, 64 runs of 2 heads, to one thread"}
    row |= {"speed": spread(speeds["all"]), "ratio": ratio(speeds, "all", "one")}
    show(row)
    return [row]


SCALES = {
    "length": ((40, 100, 400, 1000, 4000), lambda name, x: engine(name, 2, length=x), 400),
    "dim": ((5, 10, 20, 50, 100), lambda name, x: engine(name, 2, dim=x), 20),
    "heads": ((2, 4, 8, 16, 32, 64), lambda name, x: engine(name, x), 8),
    "runs": ((1, 4, 16, 64, 256), lambda name, x: engine(name, 2, x), 16),
}


def scaling(rounds: int, seconds: float) -> list[dict[str, object]]:
    """Time a step against one size, and the exponent of its upper end."""
    rows: list[dict[str, object]] = []
    torch.set_num_threads(1)
    for size, (values, make, upper) in SCALES.items():
        for name in ("numba", "torch"):
            cases = {str(x): make(name, x) for x in values}
            speeds = rounds_of(cases, rounds, seconds)
            runs = [x if size == "runs" else 1 for x in values]
            times = {x: [r / v for v in speeds[str(x)]] for x, r in zip(values, runs, strict=True)}
            high = [x for x in values if x >= upper]
            exponents = [np.polyfit(np.log(high), np.log([times[x][i] for x in high]), 1)[0] for i in range(rounds)]
            row: dict[str, object] = {"size": size, "engine": name, "exponent": spread(exponents), "from": upper}
            row["ms"] = {x: 1e3 * float(np.median(t)) for x, t in times.items()}
            rows.append(row)
            steps = "  ".join(f"{x}: {ms:.3g}" for x, ms in row["ms"].items())  # type: ignore[union-attr]
            e = row["exponent"]
            print(f"{name:<6} ms a step by {size:<7} {steps}   exponent from {upper}: "
                  f"{e['median']:.2f} ({e['low']:.2f} to {e['high']:.2f})", flush=True)  # type: ignore[index]  # fmt: skip
    return rows


def show(row: dict[str, object]) -> None:
    s, r = row["speed"], row["ratio"]
    threads = f"{row['threads']} thread{'s' * (row['threads'] != 1)}"
    print(f"{threads:<10} {row['case']:<42} {s['median']:>9,.0f}/s  × {r['median']:.1f} "
          f"({r['low']:.1f} to {r['high']:.1f})", flush=True)  # type: ignore[index]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="that each case takes in each round")
    parser.add_argument("--only", nargs="+", choices=("speed", "scaling"), default=("speed", "scaling"))
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found["machine"] = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    for name in options.only:
        found[name] = globals()[name](options.rounds, options.seconds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
