"""What a run of a sweep costs: its training and its analysis by all probes, in core-seconds, by number of heads.

    python benchmarks/sweeps.py [--heads 1 2 4 8] [--steps 20000] [--runs 8] [--budget 1024 2048 4096]

The main setting, on one thread, as a sweep's processes have it.  Analyses are timed in turn with the training of the
same runs; the ratio is of their sums.
"""

from __future__ import annotations

import argparse
import time

from icl_interp.analysis import analyze
from icl_interp.sweeps.grid import cells
from icl_interp.sweeps.sweep import BUDGET
from icl_interp.sweeps.threads import one_thread
from icl_interp.training.population import Population


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--budget", type=int, nargs="+", default=[BUDGET, 2 * BUDGET])
    options = parser.parse_args()
    with one_thread():
        for heads in options.heads:
            population = Population(
                [cell.config for cell in cells({"n_heads": heads, "steps": options.steps}, options.runs)], "auto", "cpu"
            )
            started = time.process_time()
            population.train(None, progress=False)
            training = (time.process_time() - started) / options.runs
            analyze(population.run(0), budget=16)  # what is loaded once is not a run's
            said = []
            for budget in options.budget:
                started = time.process_time()
                for i in range(options.runs):
                    analyze(population.run(i), budget=budget)
                seconds = (time.process_time() - started) / options.runs
                said.append(f"{seconds:.2f} s of {budget:,} prompts ({seconds / training:.2f} of the training)")
            print(f"{heads} heads: trained in {training:.2f} s; analyzed in {', '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
