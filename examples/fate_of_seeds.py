"""What becomes of heads, seed by seed: the rows of a sweep read, and docs/fate_of_seeds.md written.

    icl-interp sweep examples/fate_of_seeds.toml
    python examples/fate_of_seeds.py runs/fate_of_seeds

What the page rests on is kept in docs/fate_of_seeds.parquet; without a folder the page is made of that again.

Heads without circuits do nothing, and nothing moves them.  Near there the approximate loss (arXiv 2503.12734, (4.1)) is
1 + σ² − 2·Σ ωμ + c·(Σμ)²: a saddle, where descent in the entries of KQ_11 = ω·I and in μ makes g = √d·ω + μ grow and
√d·ω − μ shrink.  So g at initialisation, its sign and its size, is what the fate of heads is held against.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from icl_interp import Circuits, ModelConfig, TrainConfig
from icl_interp.estimates import Estimate, mean_of, share_of
from icl_interp.sweeps import Sweep
from icl_interp.sweeps.grid import MAIN
from icl_interp.training.engine import starting_weights

DOCS = Path(__file__).parents[1] / "docs"
KEPT, PAGE = DOCS / "fate_of_seeds.parquet", DOCS / "fate_of_seeds.md"
ROLES, KIND = "head_roles.heads.roles", "kernel_fit.kind"
NUMBERS = {
    "γ": "kernel_fit.gamma.value",
    "η": "kernel_fit.eta.value",
    "risk": "optimality.risk.value",
    "distance to the valley": "kernel_fit.manifold.value",
}
DRAWS = 300  # of the bootstrap over runs
FEW = 10  # dummies, below which nothing is said about what predicts them


def main() -> None:
    """Read the rows, keep what the page needs, write the page."""
    if len(sys.argv) > 1:
        rows = Sweep.load(sys.argv[1]).to_pandas()
        DOCS.mkdir(exist_ok=True)
        rows[["n_heads", "seed", ROLES, KIND, *NUMBERS.values()]].sort_values(["n_heads", "seed"]).to_parquet(
            KEPT, index=False
        )
    PAGE.write_text(page(pd.read_parquet(KEPT)), encoding="utf-8")


def page(rows: pd.DataFrame) -> str:
    """The page's text."""
    heads = with_starts(rows)
    return TEXT.format(
        runs=len(rows),
        seeds=rows["seed"].nunique(),
        roles=table(fates(rows, heads)),
        numbers=table(numbers(rows)),
        sides=table(sides(rows, heads)),
        predictors=table(predictors(heads)),
        alt=ALT,
    )


# --- Heads -----------------------------------------------------------------------------------------------------------


def with_starts(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a head: its role in the end, and ω, μ and g at initialisation, which the seed alone decides."""
    found = []
    for run, row in rows.reset_index(drop=True).iterrows():
        config = TrainConfig(MAIN, ModelConfig(MAIN.dim, n_heads=int(row["n_heads"])), seed=int(row["seed"]))
        circuits = Circuits.from_weights(starting_weights(config), config.model)
        omega, mu = circuits.omega[0], circuits.mu[0, :, 0]
        part = pd.DataFrame({"role": row[ROLES].split(","), "omega": omega, "mu": mu})
        found.append(part.assign(run=run, n_heads=row["n_heads"], growing=MAIN.dim**0.5 * omega + mu))
    heads = pd.concat(found, ignore_index=True)
    alike = heads.groupby(["run", np.sign(heads["growing"])])["growing"]
    heads["crowd"] = alike.transform("size")
    heads["beside"] = heads["growing"].abs() / heads.groupby("run")["growing"].transform(lambda each: each.abs().max())
    return heads


def fates(rows: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """How runs and heads end, by number of heads."""
    found = []
    for count, members in rows.groupby("n_heads"):
        own = heads[heads["n_heads"] == count]
        dummies = (own["role"] == "dummy").groupby(own["run"]).sum()
        found.append(
            {
                "heads": str(count),
                "runs of one sign": share(members[KIND] == "same_sign") if count > 1 else "",
                "runs with a dummy": share(dummies > 0),
                "dummies a run": with_error(mean_of(dummies.to_numpy(dtype=float), "seeds")),
                **{
                    role: f"{100 * (own['role'] == role).mean():.1f} %"
                    for role in ("positive", "negative", "unstructured")
                },
            }
        )
    return pd.DataFrame(found)


def numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their 95 % intervals, and standard deviations between seeds."""
    found = []
    for (count, kind), members in rows.groupby(["n_heads", KIND]):
        said = {"heads": str(count), "signs": str(kind).replace("_", " "), "runs": str(len(members))}
        for name, column in NUMBERS.items():
            values = members[column].dropna().to_numpy(dtype=float)
            few = len(values) < 3
            said[name] = "" if few else f"{with_error(mean_of(values, 'seeds'))} (sd {values.std(ddof=1):.2g})"
        found.append(said)
    return pd.DataFrame(found)


# --- What tells fates beforehand -------------------------------------------------------------------------------------


def sides(rows: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """Whether heads keep the side on which they start, and whether runs that start on one end on one."""
    found = []
    kinds = rows[KIND].reset_index(drop=True)
    for count, own in heads[heads["n_heads"] > 1].groupby("n_heads"):
        working = own[own["role"].isin(["positive", "negative"])]
        kept = (working["growing"] > 0) == (working["role"] == "positive")
        one = own.groupby("run")["growing"].agg(lambda each: len(set(np.sign(each))) == 1)
        same = kinds[one.index] == "same_sign"
        found.append(
            {
                "heads": str(count),
                "heads that keep their side": share(kept),
                "of one sign, that started on one side": share(same[one]),
                "of one sign, that started on two": share(same[~one]),
            }
        )
    return pd.DataFrame(found)


PREDICTORS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "small \\|ω\\|": lambda heads: -heads["omega"].abs(),
    "small \\|μ\\|": lambda heads: -heads["mu"].abs(),
    "small ωμ": lambda heads: -heads["omega"] * heads["mu"],
    "small \\|g\\|": lambda heads: -heads["growing"].abs(),
    "small \\|g\\| beside the largest": lambda heads: -heads["beside"],
    "many heads on its side": lambda heads: heads["crowd"],
    "all of these": lambda heads: together(heads),
}


def predictors(heads: pd.DataFrame) -> pd.DataFrame:
    """By number of heads: how well each number at initialisation tells dummies from working heads (area under ROC)."""
    found = {name: {"at initialisation": name} for name in PREDICTORS}
    for count, own in heads.groupby("n_heads"):
        dummy = (own["role"] == "dummy").to_numpy()
        if dummy.sum() >= FEW:
            for name, score in PREDICTORS.items():
                found[name][f"{count} heads, {dummy.sum()} dummies"] = area(dummy, score(own).to_numpy(), own["run"])
    return pd.DataFrame(found.values())


def together(heads: pd.DataFrame) -> pd.Series:
    """A logistic regression's chance that a head becomes a dummy, of runs that it was not fitted to."""
    x = np.stack([score(heads) for name, score in PREDICTORS.items() if name != "all of these"], 1)
    x = (x - x.mean(0)) / x.std(0)
    dummy, folds = heads["role"] == "dummy", GroupKFold(8)
    chance = cross_val_predict(LogisticRegression(), x, dummy, groups=heads["run"], cv=folds, method="predict_proba")
    return pd.Series(chance[:, 1], heads.index)


def area(dummy: np.ndarray, score: np.ndarray, run: pd.Series) -> str:
    """The area, with its 95 % interval by a bootstrap over runs."""
    members = [np.flatnonzero(run == each) for each in run.unique()]
    draw, areas = np.random.default_rng(0), []
    for _ in range(DRAWS):
        at = np.concatenate([members[i] for i in draw.integers(len(members), size=len(members))])
        if 0 < dummy[at].sum() < len(at):
            areas.append(roc_auc_score(dummy[at], score[at]))
    low, high = np.quantile(areas, (0.025, 0.975))
    return f"{roc_auc_score(dummy, score):.2f} [{low:.2f}, {high:.2f}]"


# --- Words -----------------------------------------------------------------------------------------------------------


def share(hits: pd.Series) -> str:
    """In percent, with its 95 % interval, and of how many."""
    if not len(hits):
        return ""
    found = share_of(int(hits.sum()), len(hits))
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}] of {len(hits):,}"


def with_error(estimate: Estimate) -> str:
    """A mean and half its interval."""
    return f"{estimate.value:.4f} ± {estimate.half:.4f}"


def table(frame: pd.DataFrame) -> str:
    """Markdown."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.fillna("").to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


ALT = (
    "The sweep's page: which quantity, along which parameter; the mean number of dummies with its interval, and how "
    "it is spread, against the number of heads; below, the runs."
)
TEXT = """# The fate of seeds

Of the seeds of one training, how many end with heads that do nothing, how many with heads of one sign, and what told
so beforehand? {runs:,} runs of the main setting of arXiv 2503.12734 (d = 5, L = 40, σ² = 0.1, Adam, 20,000 steps of
256 prompts), one to eight heads, {seeds} seeds each, every run on prompts of its own:

```sh
icl-interp sweep examples/fate_of_seeds.toml  # half an hour on two cores; runs/fate_of_seeds/sweep.html shows all runs
python examples/fate_of_seeds.py runs/fate_of_seeds  # this page
```

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="pictures/fate_of_seeds-dark.png">
  <img src="pictures/fate_of_seeds-light.png" alt="{alt}">
</picture>

Intervals are 95 % ones over seeds: Clopper and Pearson's for shares, for means those that allow for skewness. Roles
are judged by what heads do to predictions (`head_roles`), signs by the fit of ω and μ (`kernel_fit`), on 4,096
prompts a run.

## How heads end

{roles}

Two heads are stuck with one sign in a fifth of all runs, three hardly ever, more never (of 1,280 runs none, so fewer
than 0.3 %). Further heads are mostly used: a run of eight has one dummy in the mean. Positive and negative heads are
as many.

## Which numbers they end with

{numbers}

Whatever the number of heads, runs with both signs come to the same risk, within 0.0001. (All are measured on the same
prompts, so that differences are sharper than the risk itself, which has an error of 0.0015.) They come to it at
another place: with more heads γ is smaller and η falls below η* = 0.8791, by 2 % at eight heads, and the heads lie
further from the solution manifold. At 20,000 steps they are still on their way. Runs of one sign have the risk of one
head.

## What tells it beforehand

Heads without circuits do nothing, and nothing moves them. Near there the approximate loss is 1 + σ² − 2·Σ ωμ +
c·(Σμ)²: a saddle, where descent in the entries of KQ = ω·I and in μ makes g = √d·ω + μ grow and √d·ω − μ shrink. So a
head's sign should be that of its g at initialisation, two heads of one sign those that start on one side, and dummies
those whose g is small.

{sides}

It is so for nine heads in ten, five heads in six where there are two or three. Runs of two heads that start on two
sides hardly ever end on one; of those that start on one side, four in ten do: the others are parted by (Σμ)², and one
of their heads changes sides.

How well numbers at initialisation tell dummies from the other heads: the area under the ROC curve, 0.5 for nothing
and 1 for everything, with intervals by a bootstrap over runs.

{predictors}

Neither |ω| nor |μ| says much; their sum does, as the saddle has it, as far as it goes. All numbers together (a
logistic regression, of runs that it was not fitted to) add nothing at three heads, and less than 0.1 where there are
more: the rest is decided by KQ's other entries and by the prompts.
"""

if __name__ == "__main__":
    main()
