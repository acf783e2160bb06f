"""What stands beside a verdict: how often such verdicts are right, and on how many prompts it was decided."""

from __future__ import annotations

from collections.abc import Iterable

from icl_interp import calibration
from icl_interp.probing import Outcome, Verdict
from icl_interp.probing.outcomes import NOT_OF_PROMPTS
from icl_interp_reports.words import brief


def beside(outcome: Outcome, verdict: Verdict) -> str:
    """How often verdicts like this one are right, in a phrase; "" where a claim does not apply."""
    return calibration.how_reliable(outcome.probe, verdict.claim, verdict.status)


def family(outcome: Outcome, verdict: Verdict) -> tuple[str, str] | None:
    """Name and title of the family of models that `beside` names, if it names one."""
    known = calibration.reliability(f"{outcome.probe}.{verdict.claim}")
    name = known.named(verdict.status) if known else None
    return (name, known.titles.get(name, "")) if known and name else None


def families(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """Titles of the families that stand beside any of the verdicts, by their names."""
    named = [family(outcome, verdict) for outcome in outcomes for verdict in outcome.verdicts]
    return dict(sorted(each for each in named if each is not None))


def sampled(outcome: Outcome, budget: int | None = None) -> str:
    """On how many prompts a probe decided, or which claims its last ones leave open; "" where none rests on prompts.

    Args:
        outcome: of the probe.
        budget: of the analysis, if it is known: whether the prompts were all that were allowed.
    """
    resting = [verdict for verdict in outcome.verdicts if _rests_on_prompts(verdict)]
    if not outcome.looks or not resting:
        return ""
    last, undecided = outcome.prompts, [v.claim for v in resting if v.claim in outcome.undecided]
    if not undecided:
        return f"decided on {last:,} prompts"
    end = ", the end of the budget," if last == budget else ""
    return f"{last:,} prompts{end} leave {', '.join(map(brief, undecided))} open"


def _rests_on_prompts(verdict: Verdict) -> bool:
    if verdict.estimate is None:
        return verdict.status == "inconclusive"
    return verdict.estimate.covers not in NOT_OF_PROMPTS
