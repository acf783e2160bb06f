"""Do heads serve several tasks at once, and what does it cost?  (arXiv 2503.12734, section 5.4 and (A.3)–(A.4).)

Read to first order, task n is solved by debiased GD with a step of its own on each feature, E_ni = Σ_h μ_n^h ω_i^h.
Whether 2N heads are dedicated to one task each or fewer heads share the work, theory has Σ_h μ_n^h = 0, and E_n = η_n
on the features of the task and 0 off them (`task_steps`).  Heads are in superposition where one of them serves tasks
that are told apart (`icl_interp.sharing`).

Tasks can get in each other's way twice: a response may change with the labels of another one, which is measured by
exchanging them; and steps on features that only other tasks use add noise, which is priced to first order.  What
sharing costs in all is the risk beside that of dedicated heads, ω = ±γ with γ the model's own, on the same prompts
(`task_costs`).

Steps are those of the mean iterate of the last fifth of training where that was recorded, else the checkpoint's own.
Cost: N + 4 predictors on 16,384 prompts, a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Estimate,
    Heatmap,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    judge,
    not_applicable,
    probe,
    rounded,
)
from icl_interp.roles import NEGLIGIBLE
from icl_interp.sharing import MATTERS, SHARED, Sharing, same_supports, uses_of
from icl_interp_probes.kernel_fit import LINEAR_GAIN, ZERO_SUM
from icl_interp_probes.shown import KEPT, coordinates, extreme
from icl_interp_probes.task_costs import DEBIASED, MODEL, Costs
from icl_interp_probes.task_steps import Steps, iterates_of, positive, swapped_of

SOURCE = "arXiv 2503.12734, section 5.4"
STEPS_SOURCE = "arXiv 2503.12734, (A.3)–(A.4)"
# Changes of predictions are heavy-tailed: a 95 % interval from eight prompts covers the truth 70 % of the time, from
# 250 some 90 %.
FEWEST = 250
NOTHING = "—"

SUPERPOSED = Threshold(
    "the most shared of three heads on two tasks does 0.7 to 1 as much for its second task as for its first, any "
    "of four heads 0.23 at most, and nothing is told apart where all tasks are solved alike; read between the "
    "curves of planted_tasks_superposed and planted_tasks_dedicated",
    low=SHARED,
)
ON_SUPPORT = Threshold(
    "0.2 to 0.5 % off in trained models that tell tasks apart, 4 % where opposite heads solve both alike; read "
    "between the curves of planted_tasks_superposed and tasks_wrong_scale",
    high=0.03,
)
OFF_SUPPORT = Threshold(
    "0.01 with dedicated heads and 0.03 in superposition after 30,000 steps, 0.9 where tasks are solved alike; "
    "read between the curves of planted_tasks_superposed and planted_tasks_alike",
    high=0.05,
)
FREE = Threshold(
    "trained models are 0.5 % above with two heads a task and 1.1 % in superposition, 18 % where opposite heads "
    "solve both tasks alike, and a single head 150 %; read between the curves of planted_tasks_dedicated and "
    "planted_tasks_alike",
    high=1.05,
)
INTERFERENCE = Threshold(
    "trained models show 0.01; predictions that change by less than this count as unchanged in the roles of heads"
    " too; read between the curves of planted_tasks_superposed and tasks_interfering",
    high=NEGLIGIBLE,
)


@dataclass(frozen=True, eq=False)
class Superposition:
    """Who serves whom, the steps that come of it, and what that costs.

    Args:
        activation: how the model's scores become weights.
        structured, stable: whether ω and μ describe the model, and quarters of the prompts agree about its heads.
        omega: KQ_11's diagonals, times the activation's slope.
        mu: OV_22's diagonals.
        work: how much of each task's work a head does (`sharing.Sharing`, as the next three).
        solvers: tasks by the predictor that solves them.
        shared: what the most shared head does for a second task, relative to its first.
        score: of superposition.
        alike: whether the supports of all tasks are known to be one.
        steps, costs: see there.
    """

    activation: str
    structured: bool
    stable: bool
    omega: Float[np.ndarray, "heads features"]
    mu: Float[np.ndarray, "heads tasks"]
    work: Float[np.ndarray, "heads tasks"]
    solvers: tuple[tuple[int, ...], ...]
    shared: Estimate
    score: Estimate
    alike: bool
    steps: Steps
    costs: Costs


@probe(
    name="superposition",
    title="Do heads serve several tasks at once, with other signs or supports, and what does it cost?",
    needs=Need.WEIGHTS | Need.FORWARD | Need.TASK | Need.SEVERAL_RESPONSES | Need.ONE_LAYER,
    uses=Need.DYNAMICS,
    cost="a few seconds",
)
class SuperpositionProbe:
    """Reads off the weights which head serves which task and what step each task takes on each feature, and compares
    those steps with theory.  Then measures what sharing heads costs: the risk beside that of two dedicated heads a task
    on the same prompts, and how much each prediction changes when another task's labels are exchanged.
    """

    def run(self, context: Context) -> Superposition:
        """Read the steps off the mean iterate or the checkpoint, then measure on prompts."""
        heads, same = context.heads, same_supports(uses_of(context.task))
        iterates = iterates_of(context, heads)
        omega, mu = iterates.mean
        swapped = swapped_of(context)
        sharing = Sharing.of_weights(omega, mu, same, swapped)
        # Where ω and μ do not describe the heads, or attention is another, nobody knows what dedicated heads would be.
        comparable = heads.structured and context.config.activation == "softmax"
        return Superposition(
            activation=context.config.activation,
            structured=heads.structured,
            stable=heads.stable,
            omega=rounded(omega, KEPT),
            mu=rounded(mu, KEPT),
            work=rounded(sharing.work),
            solvers=sharing.solvers,
            shared=positive(iterates, lambda w, m: Sharing.of_weights(w, m, same, swapped).shared, most=1.0),
            score=positive(iterates, lambda w, m: Sharing.of_weights(w, m, same, swapped).score, most=1.0),
            alike=same is not None and bool(same.all()),
            steps=Steps.of(iterates, context.task),
            costs=Costs.of(context, omega if comparable else None),
        )

    def blocks(self, result: Superposition) -> list[Block]:
        """Who serves whom; the steps beside theory's; what they cost; and what was looked at."""
        wanted, names = result.steps.wanted, _tasks(result)
        steps = Heatmap(
            np.stack([result.steps.found] if wanted is None else [result.steps.found, wanted]),
            ("measured",) if wanted is None else ("measured", "in theory"),
            alt="Step of each task on each feature: a row a task, a column a feature.",
            title="Steps Σ μ ω of each task",
            row_labels=names,
            column_labels=coordinates(result.omega.shape[1], 0),
        )
        interference = Table(
            ("prediction", *(f"labels of {name} exchanged" for name in names)),
            tuple((name, *row) for name, row in zip(names, result.costs.interference, strict=True)),
            alt="How much each prediction changes when the labels of one task are those of another prompt.",
            title="Interference: change of a prediction, relative to it",
        )
        return [_who_serves(result), steps, _steps_by_task(result), _risks(result), interference, Text(_told(result))]

    def judge(self, result: Superposition) -> list[Verdict]:
        """Is there superposition, are the steps those of (A.3)–(A.4), and is it free?"""
        return [_judge(result, *claim) for claim in _CLAIMS]


# --- Blocks ----------------------------------------------------------------------------------------------------------


def _tasks(result: Superposition) -> tuple[str, ...]:
    return tuple(f"y{n}" for n in range(result.mu.shape[1]))


def _who_serves(result: Superposition) -> Table:
    names = _tasks(result)
    return Table(
        ("head", *(f"work for {name}" for name in names), "asks for"),
        tuple(
            (h, *(_duty(result, h, n) for n in range(len(names))), _asks(result.omega[h]))
            for h in range(len(result.mu))
        ),
        alt="What part of each task's work each head does and with which sign of μ, and the features it asks for.",
        title="Heads by task",
    )


def _duty(result: Superposition, head: int, task: int) -> str:
    part = f"{result.work[head, task]:.0%}"
    return NOTHING if part == "0%" else _sign(result.mu[head, task]) + part


def _asks(omega: Float[np.ndarray, "features"]) -> str:
    """Features by the sign of ω, without those that hardly count."""
    counts = np.abs(omega) > MATTERS * np.abs(omega).max()
    return " ".join(f"{_sign(omega[i])}x{i}" for i in np.flatnonzero(counts))


def _sign(value: float) -> str:
    return "+" if value > 0 else "−"


def _steps_by_task(result: Superposition) -> Table:
    steps = result.steps
    columns: dict[str, Sequence[Cell]] = {"task": _tasks(result), "|Σμ| / Σ|μ|": steps.imbalance}
    if steps.wanted is not None:
        columns |= {
            "η in theory": steps.wanted.max(1).tolist(),
            "mean step on its features / η": steps.on_support,
            "largest step elsewhere / η": steps.off_support,
            "risk that those add": steps.off_cost,
        }
    return Table(
        tuple(columns),
        tuple(zip(*columns.values(), strict=True)),
        alt="By task the balance of μ, and how its steps lie beside those of theory.",
        title="Steps by task",
    )


def _risks(result: Superposition) -> Table:
    costs = result.costs
    rows: list[tuple[Cell, ...]] = [
        (name, *risk, None if name == MODEL else ratio)
        for name, risk, ratio in zip(costs.names, costs.risk, costs.ratio, strict=True)
    ]
    if costs.exact:
        rows.append((f"{DEBIASED}, in closed form", *costs.exact, None))
    return Table(
        ("predictor", *(f"risk of {name}" for name in _tasks(result)), "model's risk / its risk"),
        tuple(rows),
        alt="Risk of each task for the model and for predictors that know the supports.",
        title="Risk by task",
    )


def _told(result: Superposition) -> str:
    steps, costs = result.steps, result.costs
    dedicated = f" Dedicated heads: two a task, ω = ±{costs.gamma:.4g}, μ at its best." if costs.gamma else ""
    return (
        f"Heads and steps are those of {steps.iterate}, steps within ±{steps.half.max():.2g}. The sign before a part "
        "of the work is that of μ, the sign before a feature that of ω. Risks and interference: "
        f"{costs.prompts:,} prompts (seed {costs.seed}), the same for all.{dedicated}"
    )


# --- Claims ----------------------------------------------------------------------------------------------------------

# The number, where it has to lie, and what it means; or why the claim does not apply.
_Conclusion = tuple[Estimate, Threshold, str] | str
_NO_SUPPORTS = "the supports of the tasks are not known"


def _judge(result: Superposition, claim: str, source: str, conclude: Callable[[Superposition], _Conclusion]) -> Verdict:
    if not result.structured:
        return not_applicable(claim, source, "ω and μ do not describe this model: its heads are unstructured")
    if result.activation == "linear":
        return not_applicable(claim, source, "linear attention sees nothing of ω and μ but their products")
    conclusion = conclude(result)
    if isinstance(conclusion, str):
        return not_applicable(claim, source, conclusion)
    if not result.stable or result.costs.prompts < FEWEST:
        reason = f"{result.costs.prompts} prompts are too few to tell what heads do."
        return Verdict(claim, source, "inconclusive", reason)
    return judge(claim, source, *conclusion)


def _superposition(result: Superposition) -> _Conclusion:
    if result.alike:
        return "all tasks have the same support: nothing tells them apart"
    if len(result.solvers) == 1:
        return result.shared, SUPERPOSED, "One predictor solves all tasks alike: none of them is told apart."
    names = _tasks(result)
    busy = [h for h, work in enumerate(result.work) if work.max() > MATTERS * result.work.max()]
    duties = ", ".join(f"head {h} {_duties(result, h, names)}" for h in busy)
    sentence = (
        f"{duties}. The most shared head does {result.shared.value:.2f} as much for a second task as for its first; "
        f"superposition scores {result.score.value:.2f} of 1."
    )
    return result.shared, SUPERPOSED, f"{sentence[0].upper()}{sentence[1:]}"


def _duties(result: Superposition, head: int, names: Sequence[str]) -> str:
    """The tasks that it serves, by the sign of its μ there."""
    work = result.work[head]
    serves = np.flatnonzero(work > SHARED * work.max()).tolist()
    return "serves " + " and ".join(f"{names[n]} ({_sign(result.mu[head, n])})" for n in serves)


def _zero_sum(result: Superposition) -> _Conclusion:
    if len(result.mu) == 1:
        return "the claim is about several heads; this model has one"
    worst = result.steps.unbalanced
    return worst, ZERO_SUM, f"|Σμ| is {worst.value:.2%} of Σ|μ| for the worst task."


def _on_support(result: Superposition) -> _Conclusion:
    worst = result.steps.worst_on
    if worst is None:
        return _NO_SUPPORTS
    if result.activation not in LINEAR_GAIN:
        return "η has a closed form for eˣ and 1 + Cx only: other activations gain less where ‖x_q‖ is large"
    found = ", ".join(f"{ratio.value:.3f}" for ratio in result.steps.on_support)
    return worst, ON_SUPPORT, f"On the features of its task the mean step is {found} times η."


def _off_support(result: Superposition) -> _Conclusion:
    if result.steps.wanted is None:
        return _NO_SUPPORTS
    worst = result.steps.worst_off
    if worst is None:
        return "every task uses all features"
    return worst, OFF_SUPPORT, f"The largest step on a feature that its task does not use is {worst.value:.3f} η."


def _free(result: Superposition) -> _Conclusion:
    if result.steps.wanted is None:
        return _NO_SUPPORTS
    ratio = result.costs.of_dedicated_heads
    if ratio is None:
        return "what dedicated heads would be is known for softmax attention only"
    heads = f"{len(result.mu)} heads" if len(result.mu) > 1 else "one head"
    sentence = f"With {heads} the risk is {ratio.value:.4f} times that of {2 * result.mu.shape[1]} dedicated heads."
    return ratio, FREE, sentence


def _interference(result: Superposition) -> _Conclusion:
    rows = result.costs.interference
    worst = extreme(max, [entry for n, row in enumerate(rows) for m, entry in enumerate(row) if m != n])
    return worst, INTERFERENCE, f"Another task's labels change a prediction by {worst.value:.3f} of its rms at most."


_CLAIMS: tuple[tuple[str, str, Callable[[Superposition], _Conclusion]], ...] = (
    ("superposition", SOURCE, _superposition),
    ("zero_sum_ov", STEPS_SOURCE, _zero_sum),
    ("steps_on_support", STEPS_SOURCE, _on_support),
    ("steps_off_support", STEPS_SOURCE, _off_support),
    ("risk_of_dedicated_heads", SOURCE, _free),
    ("no_interference", SOURCE, _interference),
)
