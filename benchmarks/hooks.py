"""What hooks cost: a full pass of the hooked model against the same module without any hook points, in one run.

    python benchmarks/hooks.py [--rounds 200]

Both are timed in turn, in an order that changes from round to round, and the ratio is taken within a round; printed are
its median over rounds with a 95 % interval (by order statistics).  Two heads, d = 5, L = 40, one thread.  Writes
benchmarks/results/hooks.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformer_lens.hook_points import HookPoint

import icl_interp as icl
from icl_interp.attention import predict

RESULTS = Path(__file__).parent / "results" / "hooks.json"
TASK = icl.LinearRegression(dim=5, length=40)


def unhooked(model: icl.ICLTransformer) -> icl.ICLTransformer:
    """The same module with nothing at all where hook points were: not even a module that hands on what it is given."""
    bare = copy.deepcopy(model)
    for module in list(bare.modules()):
        for name in [name for name, part in module.named_children() if isinstance(part, HookPoint)]:
            delattr(module, name)
            setattr(module, name, lambda x: x)
    bare.hook_dict = {}
    return bare


def passes(model: icl.ICLTransformer, z: Tensor, backward: bool) -> Callable[[], object]:
    if backward:
        return lambda: model(z)[:, -1].square().mean().backward()
    return torch.no_grad()(lambda: model(z))


def query_row(model: icl.ICLTransformer, z: Tensor) -> Callable[[], object]:
    circuits = icl.Circuits.from_weights(model.weights(), model.config)
    KQ, OV = (torch.from_numpy(part).float() for part in (circuits.KQ, circuits.OV))
    return torch.no_grad()(lambda: predict(KQ, OV, z, 1))


def ratios(cases: Sequence[Callable[[], object]], rounds: int, seconds: float) -> list[float]:
    """The time of the first over that of the second, in every round."""
    for case in cases:
        case()
    start = time.perf_counter()
    cases[1]()
    repeats = max(1, round(seconds / (time.perf_counter() - start)))
    found = []
    for i in range(rounds):
        times = {}
        for at in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(repeats):
                cases[at]()
            times[at] = time.perf_counter() - start
        found.append(times[0] / times[1])
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median and a 95 % interval of it."""
    rank = max(int(stats.binom.ppf(0.025, len(values), 0.5)) - 1, 0)
    ordered = sorted(values)
    return {"median": float(np.median(ordered)), "low": ordered[rank], "high": ordered[-1 - rank]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.02, help="of one case in one round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = icl.ICLTransformer(icl.ModelConfig(dim=5, n_heads=2), seed=0)
    bare = unhooked(model)
    results = {}
    for batch in (256, 1):
        z = TASK.sample(batch).z
        assert torch.equal(model(z), bare(z))
        for backward in (True, False):
            name = f"hooked / unhooked, {'forward and backward' if backward else 'forward'}, {batch} prompts"
            cases = [passes(each, z, backward) for each in (model, bare)]
            results[name] = summary(ratios(cases, options.rounds, options.seconds))
        name = f"full pass / query row, forward, {batch} prompts"
        cases = [passes(model, z, False), query_row(model, z)]
        results[name] = summary(ratios(cases, options.rounds, options.seconds))
    for name, found in results.items():
        print(f"{name:<60}{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    versions = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    RESULTS.write_text(json.dumps({"rounds": options.rounds, **versions, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
