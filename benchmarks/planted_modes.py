"""How often the two probes of several tasks are right about checkpoints whose truth is known.

    python benchmarks/planted_modes.py [--models 300] [--budget 1000]

Models of two to four tasks in each of the four modes (`icl_interp.testing.plant_tasks`): as few heads as the mode takes
or one more, heads, features and tasks in random order, live parts of the circuits perturbed by 0 to 1 % and inert ones
filled with noise.  Each is analyzed by `task_allocation` and `superposition`.  Prints a table and writes
benchmarks/results/planted_modes.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import icl_interp as icl
from icl_interp.estimates import share_of
from icl_interp.sharing import MODES, Mode
from icl_interp.tasks import MultiTaskRegression
from icl_interp.testing import PlantedTasks, plant_tasks
from icl_interp_probes.task_allocation import TaskAllocation

TASKS = (
    MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1),
    MultiTaskRegression(6, [(0, 1), (2, 3), (4, 5)], length=24, noise_var=0.1),
    MultiTaskRegression(5, [(0, 1), (1, 2), (2, 3), (3, 4)], length=24, noise_var=0.1),
    MultiTaskRegression(4, [(0, 1, 2), (3,)], length=20, noise_var=0.2),
)
NOISE = 0.01


def planted(mode: Mode, seed: int) -> PlantedTasks:
    rng = np.random.default_rng([seed, MODES.index(mode)])
    task = TASKS[seed % len(TASKS)]
    N = task.n_outputs
    fewest = {"I": 1, "II": 2, "III": 2 * N, "IV": N + 1}[mode]
    more = 1 if mode != "IV" or N + 2 < 2 * N else 0
    heads = fewest + int(rng.integers(more + 1))
    return plant_tasks(task, mode, n_heads=heads, noise=float(rng.uniform(0, NOISE)), seed=seed)


def findings(model: PlantedTasks, budget: int) -> list[str]:
    """What is right, and what is reported."""
    result = icl.analyze(model.run, budget=budget, probes=["task_allocation", "superposition"])
    found = result.get(TaskAllocation)
    status = dict(zip(result.verdicts.claim, result.verdicts.status, strict=True))
    facts = {
        "mode right": found.mode == model.mode,
        "mode right, by ablation": found.mode_under_ablation == model.mode,
        "confirmed by ablation": status["mode_under_ablation"] == "holds",
        "groups exact": set(found.groups) == set(model.groups),
        "superposition reported": status["superposition"] == "holds",
        "superposition denied": status["superposition"] == "fails",
    }
    return [name for name, true in facts.items() if true]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300, help="of each mode")
    parser.add_argument("--budget", type=int, default=1000, help="prompts a measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = {}
    for mode in MODES:
        counts = Counter(
            fact for seed in range(arguments.models) for fact in findings(planted(mode, seed), arguments.budget)
        )
        table[mode] = dict(counts)
        print(
            f"mode {mode}", *(f"{name} {said(count, arguments.models)}" for name, count in counts.items()), sep="\n  "
        )
    results = {"models": arguments.models, "budget": arguments.budget, "counts": table}
    path = Path(__file__).parent / "results" / "planted_modes.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


def said(count: int, of: int) -> str:
    """A share with its Clopper–Pearson interval."""
    share = share_of(count, of)
    return f"{count} of {of} (95 % {share.low:.1%} to {share.high:.1%})"


if __name__ == "__main__":
    main()
