"""Which known algorithm does a deep model's predictions come nearest to, prompt by prompt?  (arXiv 2408.04532.)

The distance to an algorithm's predictions a is E(ŷ − a)²/E ŷ²: 0 is the same function, 1 as far as zero is.  Of each
family (`known_algorithms`) the member nearest to the model is chosen on tuning prompts, parameters and all, and then
fixed: judged on fresh prompts, on which nothing was chosen, and as it is on prompts unlike those of the training
(`prompt_kinds`).  Beside that stand excess risks, of the model and of the member of each family that predicts best on
the tuning prompts; queries carry no noise, so that squared errors are the excess itself.

One kind of prompts does not say what a model does: algorithms that agree there part where noise, sparsity or scale are
others.  Linear attention whose scores are divided by the training's L takes steps of 2η on prompts of 2L, which says
nothing of its algorithm: so other lengths are shown and not judged.

Predictions that are larger than any response count as that large (`passes.bounds`), everyone's; distances are
over `ordinary` prompts.

Cost: model and families on 8,192 prompts and half as many of each other kind; families that are dear (Lasso, matching
pursuit, Bayes) on 1,024 and 256.  With d = 16, L = 20, three layers and eight heads it takes twenty seconds.
"""

from __future__ import annotations

import dataclasses

from icl_interp.activations import activation
from icl_interp.errors import NumericsError
from icl_interp.estimators import best_ridge
from icl_interp.passes import bounds
from icl_interp.probing import (
    Block,
    Context,
    Need,
    NotApplicable,
    Threshold,
    Verdict,
    judge,
    not_applicable,
    probe,
    rounded,
)
from icl_interp.tasks import Prompt
from icl_interp_probes.algorithm_answers import Answers
from icl_interp_probes.algorithm_finding import AlgorithmMatch, Sizes, shown
from icl_interp_probes.known_algorithms import (
    PLAIN,
    PREPROCESSED,
    RIDGE,
    Fitted,
    Given,
    Members,
    described,
    fitted,
    left_out,
    ordinary,
    steepness,
)
from icl_interp_probes.prompt_kinds import kinds, noiseless
from icl_interp_probes.shown import Intervals, extreme

_NOWHERE = "the model has no predictions on prompts like the training's: "
SOURCE = "arXiv 2408.04532"
# Misses are heavy-tailed where a few prompts explode.  Of a model that is gradient descent on x̃ but for 2 % on its
# weights, 95 % intervals of the distance cover the truth in half to three quarters of all cases with 1,000 to 8,000
# prompts, and err to the side of too near; of models that do not explode in 92 % and more, from 250 prompts on.
FEWEST = 1_000
NOTHING = 1e-6  # of E(wᵀx_q)²: a predictor of less excess risk is exact, but for rounding in float32

KNOWN = Threshold(
    "constructed models miss 0.00002 to 0.001, with 3 % of noise on their weights 0.002 to 0.01, three layers trained "
    "for 8,000 steps 0.011 to 0.019 of ridge; with 10 % of noise 0.02 to 0.11, untrained models everything",
    high=0.05,
)
PREPROCESSES = Threshold(
    "constructed models have 0.00003 to 0.01, with 3 % of noise on their weights up to 0.06, with 10 % 0.1 to 0.6; "
    "untrained models 1, GD on x 5 and more, three layers trained for 8,000 steps 9 to 15",
    high=0.5,
)
ELSEWHERE = Threshold(
    "where they miss most, constructed models miss 0.00002 to 0.004, with 3 % of noise on weights 0.002 to 0.045, "
    "with 10 % 0.02 to 0.36; three layers trained for 8,000 steps 0.1 to 0.3, untrained models everything",
    high=0.05,
)
BETTER = Threshold("the paired difference of risks has to be negative beyond its error", high=0.0)


@probe(
    name="algorithm_match",
    title="Which known algorithm is the model closest to, prompt by prompt, and is it still elsewhere?",
    needs=Need.FORWARD | Need.TASK | Need.DEEP,
    cost="half a minute",
)
class AlgorithmMatchProbe:
    """Compares the model's predictions, prompt by prompt, with those of gradient descent on the covariates and on
    covariates that were weighed by their correlation with the labels, of Newton's iterations, ridge, Lasso, matching
    pursuit and Bayes, each tuned to come nearest to the model and then fixed; on prompts like the training's and on
    others.  Beside that, what each of them would have as its risk at its best.
    """

    def run(self, context: Context) -> AlgorithmMatch:
        """Tune on prompts of their own, then measure on each kind."""
        context.single_response()
        task, sizes = context.task, Sizes.of(context)
        tuning = context.sample("tuning", sizes.tuning, task=noiseless(task))
        energy = tuning.y.square().mean().item()
        nearest, best = _fitted(context, tuning, energy, sizes.tuning_dear)
        asked = list(kinds(task))
        measured = [
            Answers.collect(context, kind, nearest.members, best, energy=energy, prompts=prompts, few=few)
            for kind in asked
            for prompts, few in [sizes.of_kind(kind is asked[0])]
        ]
        if measured[0].undefined:
            raise NotApplicable(_NOWHERE + measured[0].undefined)
        place = list(nearest.members).index
        there = [nearest.nearest if not i or a.undefined else a.nearest_family() for i, a in enumerate(measured)]
        return AlgorithmMatch(
            kinds=tuple(kind.name for kind in asked),
            what=tuple(kind.what for kind in asked),
            trained_length=tuple(kind.length == task.length for kind in asked),
            undefined=tuple(answers.undefined for answers in measured),
            clipped=rounded([answers.clipped for answers in measured]),
            families=tuple(nearest.members),
            nearest=tuple(map(described, nearest.members.values())),
            best=tuple(map(described, best.values())),
            winner=place(nearest.nearest),
            second=place(measured[0].nearest_family(but=nearest.nearest)),
            rival=place(measured[0].nearest_family(but=PREPROCESSED)),
            nearest_there=tuple(map(place, there)),
            distance=Intervals.of([answers.distance() for answers in measured]),
            ratio=measured[0].ratio(),
            excess=Intervals.of([answers.excess() for answers in measured]),
            difference=Intervals.of([answers.difference() for answers in measured]),
            gain=Intervals.of([measured[0].gain()]),
            by_steps=rounded(nearest.by_steps),
            exceeds_noise=noiseless(task) is not task,
            normalised=activation(context.config.activation).normalised,
            left_out=left_out(task),
            sizes=sizes,
            seed=context.seed,
        )

    def blocks(self, result: AlgorithmMatch) -> list[Block]:
        """The nearest algorithm and risks, distances and risks on all kinds of prompts, and what was looked at."""
        return shown(result)

    def judge(self, result: AlgorithmMatch) -> list[Verdict]:
        """Is it a known algorithm, is it GD on x̃, is it the same elsewhere, and does it do better than ridge and GD?"""
        verdicts = [
            _known(result),
            _preprocessed(result),
            _elsewhere(result),
            _better(result, "better_than_ridge", RIDGE),
            _better(result, "better_than_descent", PLAIN),
        ]
        return [_unless_few(verdict, result.sizes.training) for verdict in verdicts]


def _fitted(context: Context, tuning: Prompt, energy: float, few: int) -> tuple[Fitted, Members]:
    """Of each family the member nearest to the model, and the one that predicts best; of ridge, where it is known."""
    bound = bounds(tuning, energy)
    try:
        predictions = context.predict(tuning).clamp(-bound, bound)
    except NumericsError as error:
        raise NotApplicable(_NOWHERE + str(error)) from error
    nearest = fitted(context.task, Given(tuning, predictions, bound)[ordinary(steepness(tuning))], few)
    best = fitted(context.task, Given(tuning, tuning.y_q, bound), few)
    return nearest, best.members | {RIDGE: best_ridge(context.task, tuning)}


def _unless_few(verdict: Verdict, prompts: int) -> Verdict:
    """The verdict, left open where prompts are so few that intervals are too narrow."""
    if verdict.status == "not_applicable" or prompts >= FEWEST:
        return verdict
    reason = f"{prompts} prompts are too few to tell: it takes {FEWEST:,}."
    return dataclasses.replace(verdict, status="inconclusive", sentence=reason)


def _known(result: AlgorithmMatch) -> Verdict:
    distance = result.distance.at(0, result.winner)
    none = " It is none of these." if distance.value > KNOWN.high else ""
    sentence = (
        f"On prompts as in training {result.missed(0, result.winner)}, and is nearest to the model; "
        f"{result.missed(0, result.second)}.{none}"
    )
    return judge("known_algorithm", SOURCE, distance, KNOWN, sentence)


def _preprocessed(result: AlgorithmMatch) -> Verdict:
    own, rival = result.missed(0, result.families.index(PREPROCESSED)), result.missed(0, result.rival)
    sentence = f"{own}, and of all other families' nearest members {rival}, the least."
    return judge("preprocessed_descent", SOURCE, result.ratio, PREPROCESSES, sentence)


def _elsewhere(result: AlgorithmMatch) -> Verdict:
    claim, kinds = "same_algorithm_elsewhere", range(1, len(result.kinds))
    distances = {
        kind: result.distance.at(kind, result.winner)
        for kind in kinds
        if result.trained_length[kind] and not result.undefined[kind]
    }
    if not distances:
        return not_applicable(claim, SOURCE, "the model has predictions on no other prompts of this length")
    worst = max(distances, key=lambda kind: distances[kind].value)
    there, where = result.nearest_there[worst], f"{result.kinds[worst]} ({result.what[worst]})"
    also = "the nearest there too" if there == result.winner else f"while {result.missed(worst, there)}"
    sentence = f"It does worst with {where}: {result.missed(worst, result.winner)}, {also}."
    return judge(claim, SOURCE, extreme(max, list(distances.values())), ELSEWHERE, sentence)


def _better(result: AlgorithmMatch, claim: str, family: str) -> Verdict:
    i = result.families.index(family)
    own, its, zero = (result.excess.value[0, at] for at in (0, 1 + i, -1))
    if its < NOTHING * zero:
        return not_applicable(claim, SOURCE, f"{family} ({result.best[i]}) is exact on this task")
    what = "excess risk" if result.exceeds_noise else "risk"
    gain = result.gain.at(0, i)
    sentence = (
        f"The model's {what} is {own:.4g}, {1 + gain.value:.4g} times that of {family} ({result.best[i]}) at its best "
        f"on the same prompts, {its:.4g}."
    )
    return judge(claim, SOURCE, gain, BETTER, sentence)
