"""How often training ends with all working heads of one sign, at the risk of one head.

    python benchmarks/same_sign.py FOLDER [--seeds 256] [--steps 100000] [--heads 2 3 4 8]

The paper's main setting (d = 5, L = 40, σ² = 0.1, Adam, lr 1e-3, 256 prompts a step).  Seeds are trained in
populations of STREAM runs on the same prompts, which is cheaper; the intervals are by streams, so that they hold all
the same.  What was trained is kept in FOLDER: killed and started again, the study goes on.  At the end it prints a
table and writes benchmarks/results/same_sign.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import icl_interp as icl
from icl_interp.config import ModelConfig
from icl_interp.estimates import share_of
from icl_interp.records import Runs, TrainConfig

TASK = icl.LinearRegression(dim=5, length=40, noise_var=0.1)
EARLY = 20_000  # the other step that is looked at
STREAM = 8  # runs on one stream of prompts
BETWEEN = 0.32  # half-way between the risks of one head (0.397) and of a positive and a negative one (0.242)


def population(heads: int, seeds: int, steps: int, folder: Path) -> Runs:
    configs = [
        TrainConfig(TASK, ModelConfig(5, n_heads=heads), steps=steps, seed=seed, data_seed=seed // STREAM, n_records=12)
        for seed in range(seeds)
    ]
    return icl.train_many(configs, out=folder / f"h{heads}", resume=True)


def stuck(run: icl.Run, step: int) -> tuple[bool, bool]:
    """Whether the loss over the records before `step` is one head's; whether all working heads have one sign."""
    assert run.dynamics is not None
    at = int(np.flatnonzero(run.dynamics.steps == step)[0])
    mu, omega = run.dynamics.mu[at, 0, :, 0], run.dynamics.omega[at, 0]
    working = np.abs(mu * omega) > 0.05 * np.abs(mu * omega).max()
    return bool(run.dynamics.loss[at] > BETWEEN), len(set(np.sign(omega[working]))) == 1


def interval(hits: np.ndarray) -> tuple[float, float, float]:
    """Clopper–Pearson 95 % for the mean of `hits` (streams, runs), at the sample size that streams are worth.

    Also how many times more the mean varies than if runs of one stream were independent (the design effect).
    """
    n, rate = hits.size, hits.mean()
    effect = 1.0
    if 0 < rate < 1:
        effect = max(1.0, hits.mean(1).var(ddof=1) / len(hits) / (rate * (1 - rate) / n))
    share = share_of(hits.sum() / effect, n / effect)
    return share.low, share.high, float(effect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--heads", type=int, nargs="+", default=[2, 3, 4, 8])
    options = parser.parse_args()
    rows = []
    for heads in options.heads:
        runs = population(heads, options.seeds, options.steps, options.folder)
        found = {step: np.array([stuck(run, step) for run in runs]) for step in (EARLY, options.steps)}
        for step, hits in found.items():
            low, high, effect = interval(hits[:, 0].reshape(-1, STREAM))
            row = {"heads": heads, "step": step, "seeds": len(runs), "stuck": int(hits[:, 0].sum())}
            row |= {"rate": hits[:, 0].mean(), "low": low, "high": high, "design_effect": effect}
            row |= {"one_sign": int(hits[:, 1].sum()), "both": int(hits.all(1).sum())}
            rows.append(row)
            print(
                f"{heads} heads, step {step:>7,}: {row['stuck']:>3} of {len(runs)} at one head's risk "
                f"({row['rate']:.1%}, 95 % {low:.1%} to {high:.1%}; design effect {effect:.2f}); "
                f"{row['one_sign']} of one sign, {row['both']} both",
                flush=True,
            )
    out = Path(__file__).parent / "results" / "same_sign.json"
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
