"""How did the heads come about?  (arXiv 2503.12734, Observation 4 and Figures 1, 5, 13.)

The record of a training, as curves of ω, μ and the loss and as the circuits at its snapshots; and the steps from which
on what Observations 2 and 4 speak of is there: signs match, Σμ = 0, |ω| overshoots and declines while |μ| goes on
rising.  ω is the mean of KQ_11's diagonal and μ is OV_22, as recorded.

Phases: heads grow until η = Σ ωμ is half of what it ends with; γ, the mean |ω|, peaks; then it declines along the
valley, at an η that hardly changes.  Some runs first sit where all heads have one sign, as if they were one head, and
leave late: of them Observation 4 is not true.  Beside the training runs the gradient flow on the approximate loss from
the training's own early (ω, μ).  Adam keeps no time with it, so paths are compared at equal Σ|μ|, which grows in both.

A result is a part of every report, so it is small: curves are thinned to eighty points at most and circuits to 24
moments, fewer of a large model, evenly in log(1 + step); and numbers that are only drawn keep so many significant
digits as can be seen.  All else rests on the full record.  Cost: folding 24 snapshots; two
flows of a tenth of a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from icl_interp.circuits import Circuits
from icl_interp.flow import Beside, Course, Moment, course_of, flow_beside, peaked, settled
from icl_interp.manifold import Groups
from icl_interp.probing import (
    Block,
    Cell,
    Context,
    Estimate,
    Frames,
    Lines,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    exact,
    judge,
    levelled,
    not_applicable,
    probe,
    rounded,
    thinned,
)
from icl_interp.records import Dynamics
from icl_interp.tasks import LinearRegression
from icl_interp_probes.kernel_fit import PAPER, ZERO_SUM
from icl_interp_probes.shown import UNKNOWN, coordinates, head_names, roles_of

POINTS, FRAMES = 80, 24
NUMBERS = 4_000  # that a picture may hold, unless two moments take more: a report has room for little more

LIKE_SOFTMAX = ("softmax", "tanh")  # of other activations the paper shows that the course is another (Figure 10)
PROMPTS = 256  # fewer are no ground for roles: an effect, a root mean square, is then uncertain by more than a tenth
# How far a record goes on after growth, as a multiple of the step at which η was half of what it ends with.  Eight
# heads take ten times as long to lose a tenth of their |ω|; what is then not there can still be to come.
LONG = 20
RECORDS = 20  # after growth; fewer leave the phases to guesswork

EARLY = Threshold(
    "0 to 0.03 in runs that grow heads of both signs, 0.8 to 1 in runs that first had one; read between the "
    "curves of planted_course and course_one_sign_first",
    high=0.5,
)
BALANCED = Threshold(
    "means of 0.005 to 0.03 in runs that grow heads of both signs, 0.1 to 0.3 in the others; read between the "
    "curves of planted_course and course_unbalanced",
    high=0.05,
)
EQUAL = Threshold(
    "0.01 to 0.09 where heads grow alike or for long, 0.12 to 0.26 where 20,000 steps are too few; read between "
    "the curves of planted_course and course_unequal",
    high=0.1,
)
OVERSHOOT = Threshold(
    "runs with both signs come down by 1.3 to 3.2, those with one sign by less than 1.05; read between the curves"
    " of planted_course and course_no_overshoot",
    low=1.1,
)
RISE = Threshold(
    "1.4 to 4.2 in runs with heads of both signs, 1.0 in those with one sign; read between the curves of "
    "planted_course and course_no_overshoot",
    low=1.1,
)
FALL = Threshold(
    "0.005 to 0.03, which is noise, in most runs; up to 0.2 in those that first had one sign; read between the "
    "curves of planted_course and course_mu_falls",
    high=0.07,
)
AS_IN_FLOW = Threshold(
    "every attending head has the sign that the flow gives it; the curves of planted_course and "
    "course_heads_trade_places lie on either side",
    low=1.0,
)


@dataclass(frozen=True, eq=False)
class HeadDynamics:
    """The course of a training; see the module for what is thinned and rounded.

    Args:
        activation: how the model's scores become weights.
        roles: of each head in the end ("?" where the task is not known).
        structured: whether heads with these roles explain the model (`roles.Heads`).
        sure: whether roles rest on enough prompts, and quarters of them agree.
        records: how many points the full record has.
        steps, loss, omega, mu: the thinned record.
        signs_match: from when on sign(ω)·μ > 0 in every attending head, and the smallest of them; None where no head
            attends, or there are several responses.
        zero_sum: from when on |Σμ| / Σ|μ| (of several responses the worst) stays within kernel_fit's threshold; None
            where no head attends, or there is one head.
        omega_peak: when |ω| of an attending head is largest; None where no head attends.
        mu_peak: the same for |μ|.
        snapshot_steps: of the circuits.
        KQ, OV: the parts of the circuits that reach the prediction.
        course: None unless heads of both signs attend, in a record of finite numbers that ends with η > 0.
        beside: None without a course, and unless attention is softmax on isotropic, centred linear regression.
    """

    activation: str
    roles: tuple[str, ...]
    structured: bool
    sure: bool
    records: int
    steps: Int[np.ndarray, "points"]
    loss: Float[np.ndarray, "points"]
    omega: Float[np.ndarray, "points heads"]
    mu: Float[np.ndarray, "points heads outputs"]
    signs_match: Moment | None
    zero_sum: Moment | None
    omega_peak: Moment | None
    mu_peak: Moment | None
    snapshot_steps: Int[np.ndarray, "snapshots"]
    KQ: Float[np.ndarray, "snapshots heads d_model dim"]
    OV: Float[np.ndarray, "snapshots heads outputs d_model"]
    course: Course | None
    beside: Beside | None


@probe(
    name="dynamics",
    title="How did the heads come about?",
    needs=Need.WEIGHTS | Need.DYNAMICS | Need.ONE_LAYER,
    uses=Need.FORWARD | Need.TASK,
    cost="under a second",
)
class DynamicsProbe:
    """Follows the loss, each head's ω (the mean of KQ_11's diagonal) and μ (OV_22), and the circuits over the recorded
    steps of the training, and reads off when the signs of ω and μ came to match, when Σμ came to vanish, and when |ω|
    and |μ| were largest.  Where heads of both signs attend, their course is held against Observation 4 and set beside
    the flow on the approximate loss.
    """

    def run(self, context: Context) -> HeadDynamics:
        """Thin the record, and look for the moments in all of it."""
        record, config = context.dynamics, context.config
        assert record is not None
        roles = roles_of(context)
        known = UNKNOWN not in roles
        groups = Groups(*(np.array([role == sign for role in roles]) for sign in ("positive", "negative")))
        moments = _moments(record, _attending(roles))
        both = groups.positive.any() and groups.negative.any() and config.n_outputs == 1
        matched = moments["signs_match"]
        steps, omega, mu = record.steps.astype(float), record.omega[:, 0], record.mu[:, 0, :, 0]
        course = course_of(steps, omega, mu, groups, matched.step if matched else None) if both else None
        shown = thinned(record.steps, _room(POINTS, config.n_heads * (1 + config.n_outputs)))
        kept = record.snapshot_steps[thinned(record.snapshot_steps, _room(FRAMES, config.n_heads * config.d_model**2))]
        circuits = [Circuits.from_weights(record.weights(step), config) for step in kept]
        return HeadDynamics(
            activation=config.activation,
            roles=roles,
            structured=known and context.heads.structured,
            sure=known and context.heads.stable and context.budget >= PROMPTS,
            records=len(record.steps),
            steps=record.steps[shown],
            loss=rounded(record.loss[shown]),
            omega=rounded(record.omega[shown, 0]),
            mu=rounded(record.mu[shown, 0]),
            **moments,
            snapshot_steps=kept,
            KQ=levelled(np.array([c.KQ[0, :, :, : c.dim] for c in circuits])),
            OV=levelled(np.array([c.OV[0, :, c.dim :] for c in circuits])),
            course=course,
            beside=_beside(context, groups) if course else None,
        )

    def blocks(self, result: HeadDynamics) -> list[Block]:
        """ω, μ and the loss over steps; moments and phases; the flow beside them; the circuits at snapshots."""
        dim, outputs = result.KQ.shape[-1], result.OV.shape[-2]
        heads = head_names(result.roles)
        mu_names = heads if outputs == 1 else tuple(f"{head}, y{n}" for head in heads for n in range(outputs))
        labels = coordinates(dim, outputs)
        moments = _moments_table(result)
        return [
            _curves(result, result.omega, heads, "ω", "ω of every head over the training."),
            _curves(result, result.mu.reshape(len(result.mu), -1), mu_names, "μ", "μ of every head over the training."),
            _curves(result, result.loss[:, None], ("loss",), "loss", "Loss on fresh prompts over the training."),
            *([moments] if moments.rows else []),
            *([_phases_table(result.course, result.beside)] if result.course else []),
            *(_flow_blocks(result, result.beside) if result.beside else []),
            Frames(
                result.KQ,
                result.snapshot_steps,
                heads,
                alt="KQ of every head over the training, keys down and queries across: what reaches the prediction.",
                title="KQ",
                row_labels=labels,
                column_labels=labels[:dim],
            ),
            Frames(
                result.OV,
                result.snapshot_steps,
                heads,
                alt="OV of every head over the training, outputs down and inputs across: what reaches the prediction.",
                title="OV",
                row_labels=labels[dim:],
                column_labels=labels,
            ),
            Text(
                f"{result.records:,} points of the training were recorded, up to step {result.steps[-1]:,}; a moment "
                "is the first of them that shows it. Heads are named by their roles in the end."
            ),
        ]

    def judge(self, result: HeadDynamics) -> list[Verdict]:
        """What Observation 4 says, and Figure 21; nothing of it where heads do not attend with both signs."""
        sources = {**dict.fromkeys(_CLAIMS, f"{PAPER}, Observation 4"), IN_FLOW: f"{PAPER}, Figure 21"}
        if reason := _unfit(result):
            return [not_applicable(claim, source, reason) for claim, source in sources.items()]
        course, doubt = result.course, _doubt(result)
        if course is None or doubt:
            # What the record lacks, more prompts do not bring.
            unknown = Estimate(math.nan, -math.inf, math.inf, "training time") if result.sure else None
            return [Verdict(claim, source, "inconclusive", doubt, unknown) for claim, source in sources.items()]
        verdicts: list[Verdict] = []
        for claim, (name, threshold, sentence) in _CLAIMS.items():
            number: Estimate = getattr(course, name)
            said = sentence.format(value=number.value, peak=course.peak)
            verdicts.append(judge(claim, sources[claim], number, threshold, said))
        return [*verdicts, _as_in_flow(result, sources[IN_FLOW])]


def _unfit(result: HeadDynamics) -> str:
    """Why the claims say nothing about this checkpoint, if so."""
    outputs, attending = result.mu.shape[-1], {"positive", "negative"} & set(result.roles)
    if outputs > 1:
        return f"the claim is about one response; this model has {outputs}"
    if len(result.roles) == 1:
        return "the claim is about several heads; this model has one"
    if result.activation not in LIKE_SOFTMAX:
        return f"the claim is about {' and '.join(LIKE_SOFTMAX)}; other activations take other courses (Figure 10)"
    if UNKNOWN in result.roles:
        return "which heads attend is not known without the task"
    if not (attending and result.structured):
        return "ω and μ do not describe this model: its heads are unstructured"
    if len(attending) == 1:
        return f"all heads that attend are {attending.pop()}: the same-sign basin, which behaves like one head"
    return ""


def _doubt(result: HeadDynamics) -> str:
    """Why nothing can be told, if so."""
    course = result.course
    if not result.sure:
        return "Too few prompts to be sure of the heads' roles."
    if course is None:
        return "The record holds numbers that are not finite, or ends with an η that is not above 0."
    if course.length < LONG:
        return (
            f"The record ends too soon: η was half of its last value at step {course.grown:,}, and phases can be told "
            f"from {LONG} times as many steps."
        )
    if course.records < RECORDS:
        return f"Only {course.records} points were recorded after growth; {RECORDS} are needed."
    return ""


# What is claimed: the number of the course, where it has to lie, and what it says.
_CLAIMS = {
    "signs_match_early": ("signs", EARLY, "η had {value:.1%} of its final value when signs came to match for good."),
    "zero_sum_throughout": ("imbalance", BALANCED, "Since |ω| peaked, |Σμ| is {value:.1%} of Σ|μ| on average."),
    "homogeneous_throughout": (
        "spread",
        EQUAL,
        "Since |ω| peaked, it differs by {value:.1%} on average between heads.",
    ),
    "omega_overshoots": ("overshoot", OVERSHOOT, "At its peak, at step {peak:,}, |ω| was {value:.2f} times its end."),
    "mu_rises": ("rise", RISE, "Since |ω| peaked at step {peak:,}, Σ|μ| has become {value:.2f} times as large."),
    "mu_never_falls": ("fall", FALL, "After growth Σ|μ| never fell by more than {value:.1%}."),
}
IN_FLOW = "signs_of_the_flow"


def _as_in_flow(result: HeadDynamics, source: str) -> Verdict:
    beside, signs = result.beside, {"positive": 1, "negative": -1}
    if beside is None:
        return not_applicable(
            IN_FLOW, source, "no flow: L̃ is that of small ω, softmax, and isotropic, centred regression"
        )
    same = [np.sign(w) == signs[role] for role, w in zip(result.roles, beside.omega, strict=True) if role in signs]
    sentence = (
        f"Gradient flow on the approximate loss, from step {beside.step:,} on, gives {sum(same)} of the {len(same)} "
        "attending heads the sign that training gave them."
    )
    return judge(IN_FLOW, source, exact(float(np.mean(same))), AS_IN_FLOW, sentence)


def _curves(result: HeadDynamics, values: np.ndarray, names: tuple[str, ...], title: str, alt: str) -> Lines:
    positive = result.steps > 0  # the axis is logarithmic
    return Lines(
        result.steps[positive].astype(float),
        values[positive].T,
        names,
        alt=alt,
        title=title,
        x_label="step",
        y_label=title,
        log_x=True,
    )


def _moments_table(result: HeadDynamics) -> Table:
    heads = "all heads" if UNKNOWN in result.roles else "attending heads"
    named = (
        (f"signs match from here on: smallest sign(ω)·μ of {heads}", result.signs_match),
        (f"|Σμ| / Σ|μ| is at most {ZERO_SUM.high} from here on", result.zero_sum),
        (f"largest |ω| of {heads}", result.omega_peak),
        (f"largest |μ| of {heads}", result.mu_peak),
    )
    rows = tuple(
        (name, "not within this record" if m.step is None else m.step, m.then, m.last) for name, m in named if m
    )
    return Table(("moment", "step", "then", "at the end"), rows, alt="When what came about.", title="Moments")


def _phases_table(course: Course, beside: Beside | None) -> Table:
    tops = beside.top if beside else (None, None)
    rows: tuple[tuple[Cell, ...], ...] = (
        ("growth: step at which η was half of its end", course.grown, None, None),
        ("peak: step at which γ, the mean |ω|, was largest", course.peak, None, None),
        ("valley: step at which γ was half down", course.valley, None, None),
        ("η when signs came to match, of its end", course.signs, None, None),
        ("|Σμ| / Σ|μ|, mean since the peak", course.imbalance, None, None),
        ("spread of |ω|, mean since the peak", course.spread, None, None),
        ("γ at its peak", course.top, *tops),
        ("γ at its peak, over its end", course.overshoot, None, None),
        ("Σ|μ| at the end, over that at γ's peak", course.rise, None, None),
        ("largest fall of Σ|μ| after growth", course.fall, None, None),
        ("exponent of late γ ~ stepᵃ", course.decay, None, "−1/6, or −1/2 by the paper's elimination of μ"),
    )
    return Table(
        ("quantity", "training", "flow of all heads", "two-head flow (B.4)"),
        rows,
        alt="The phases of the training: when they began, and what Observation 4 says of them.",
        title="Phases",
    )


def _flow_blocks(result: HeadDynamics, beside: Beside) -> list[Block]:
    heads = head_names(result.roles)
    ends = zip(heads, result.omega[-1], beside.omega, result.mu[-1, :, 0], beside.mu, strict=True)
    named = (
        ("γ at equal Σ|μ|", beside.gamma, ("training", "flow of all heads", "two-head flow (B.4)"), "γ"),
        (
            "ω at equal Σ|μ|",
            np.concatenate([beside.trained, beside.flow]),
            (*heads, *(f"{head}, flow" for head in heads)),
            "ω of every head",
        ),
    )
    return [
        *(
            Lines(
                beside.mu_sum,
                paths,
                names,
                alt=f"{what} against Σ|μ|/2, in training and in gradient flow on the approximate loss.",
                title=title,
                x_label="Σ|μ|/2",
                y_label=title[0],
                log_x=True,
            )
            for title, paths, names, what in named
        ),
        Table(
            ("head", "ω", "ω, flow", "μ", "μ, flow"),
            tuple((head, *(float(number) for number in numbers)) for head, *numbers in ends),
            alt="ω and μ of every head at the end of training, and at the end of the flow.",
            title="The ends of training and flow",
        ),
        Text(
            f"The flow is gradient flow on the approximate loss (4.1) from ω and μ at step {beside.step:,} to the Σ|μ| "
            "of the last record; it has no noise and is not Adam. The two-head flow starts with heads ±γ of the same "
            "Σ|μ|. Paths are compared at equal Σ|μ|, since their clocks are not the same; a flow that comes to rest "
            "before, as it does with all heads of one sign, has no more points."
        ),
    ]


def _beside(context: Context, groups: Groups) -> Beside | None:
    """The flow beside the training, where L̃ is that of the model and its task."""
    task, record = context.task, context.dynamics
    if record is None or context.config.activation != "softmax" or not isinstance(task, LinearRegression):
        return None
    if not (task.isotropic and task.centred):
        return None
    found = flow_beside(
        record.steps.astype(float),
        record.omega[:, 0],
        record.mu[:, 0, :, 0],
        groups,
        dim=task.dim,
        length=task.length,
        noise_var=task.noise_var,
        signal_var=task.signal_var,
        covariate_var=float(task.sigma[0, 0]),
    )
    drawn = ("mu_sum", "gamma", "trained", "flow", "omega", "mu")
    return found and replace(found, **{name: rounded(getattr(found, name)) for name in drawn})


def _attending(roles: tuple[str, ...]) -> list[int]:
    """The heads that the moments are about; all of them where no role is known."""
    return [h for h, role in enumerate(roles) if role in ("positive", "negative", "mixed", UNKNOWN)]


@np.errstate(all="ignore")  # what is not finite meets no condition
def _moments(record: Dynamics, attending: list[int]) -> dict[str, Moment | None]:
    found: dict[str, Moment | None] = dict.fromkeys(("signs_match", "zero_sum", "omega_peak", "mu_peak"))
    if not attending:
        return found
    omega, mu = record.omega[:, 0, attending], record.mu[:, 0, attending]
    found["omega_peak"] = peaked(record.steps, np.abs(omega).max(1))
    found["mu_peak"] = peaked(record.steps, np.abs(mu).max((1, 2)))
    if mu.shape[-1] == 1:
        smallest = (np.sign(omega) * mu[..., 0]).min(1)
        found["signs_match"] = settled(record.steps, smallest, smallest > 0)
    if record.mu.shape[2] > 1:
        every = record.mu[:, 0]
        imbalance = (np.abs(every.sum(1)) / np.abs(every).sum(1)).max(-1)
        found["zero_sum"] = settled(record.steps, imbalance, imbalance <= ZERO_SUM.high)
    return found


def _room(most: int, numbers: int) -> int:
    """How many moments of so many numbers to show: `most`, or fewer of a large model, but two."""
    return min(most, max(2, NUMBERS // numbers))
