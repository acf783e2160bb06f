"""A calibration study as Markdown: what CALIBRATION.md says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from icl_interp.calibration import Error, Rate, Study, ThresholdTold, Truth, in_percent, nearest, reliability
from icl_interp.probing.verdicts import CLAIMS, DECISIVE, LOOKS
from icl_interp_reports.calibration import claims_of
from icl_interp_reports.markdown import escape, table

COMMAND = "python benchmarks/calibration.py"
DRAWS = {
    "reporting": "These are models drawn anew, after thresholds were chosen on others.",
    "choosing": "These are the models on which thresholds are chosen; another draw has to confirm what they show.",
}


def calibration_markdown(study: Study) -> str:
    """A document with the study's tables; the same study gives the same text."""
    parts = ["# How often the verdicts are right", *_introduction(study)]
    parts += ["## Several claims at once", _several()]
    parts += ["## Claims", _claims(study)]
    parts += ["## Families", _families(study)]
    for title, rows in (("Coverage", study.coverage), ("Errors", study.errors), ("Exceptions", study.exceptions)):
        if rows:
            parts += [f"## {title}", *_WRITTEN[title](study)]
    parts += [f"Made by `{COMMAND}`."]
    return "\n\n".join(parts) + "\n"


def _introduction(study: Study) -> Iterator[str]:
    models, first, last = sum(family.models for family in study.families), *study.budget
    yield (
        f"{models:,} models of {len(study.families)} families, of which it is known what is true, were given to the "
        f"probes that make claims about them. {DRAWS[study.draw]} Each probe begins with {first:,} prompts and goes on "
        f"to {last:,} where those leave a claim open."
    )
    yield (
        "A family is a kind of model. It says which claims are true of every one of its models, and which are false; "
        "of all others it says nothing. For each claim, *found* is how often it holds on models of which it is true, "
        "in the family where it does so least often; *passes* is how often it holds on models that violate it, in the "
        "family where it does so most often; *open* is the share of inconclusive verdicts among all models of which "
        "it is true. Models that a claim does not apply to are not counted. Reports say this beside each verdict."
    )
    yield (
        "A threshold lies between two curves, the shares of models whose number is beyond x among those of which the "
        "claim is true and among those that violate it: *nearest of true* and *nearest of false* are where these "
        "curves come nearest to it, but for 1 % and 0.4 % of a family's models. The curves are on the page."
    )


def _several() -> str:
    return (
        f"A report decides about {CLAIMS} claims, some of them at up to {LOOKS} numbers of prompts. Were each decided "
        "by its own 95 % interval, few reports would be right throughout. So each is decided at the level "
        f"0.05 / ({CLAIMS} · {LOOKS}) (Bonferroni: whatever depends on what): its interval is stretched by "
        f"{DECISIVE:.2f} about its value before it is held against the threshold. The intervals that are shown, and "
        "whose coverage is counted below, are those of 95 %."
    )


def _claims(study: Study) -> str:
    thresholds = {threshold.claim: threshold for threshold in study.thresholds}
    rows = []
    for claim in claims_of(study):
        known, wanted = reliability(claim, study), thresholds.get(claim)
        missed, passing = (known.missed, known.passing) if known else (None, None)
        left = in_percent(known.open) if known and known.true else ""
        found, passes = _share(missed, missed.holds if missed else 0), _share(passing, passing.holds if passing else 0)
        ends = (_nearest(study, wanted, "holds"), _nearest(study, wanted, "violates")) if wanted else ("", "")
        rows.append((claim, str(wanted or ""), *ends, found, passes, left))
    columns = ("claim", "wanted", "nearest of true", "nearest of false", "found, at worst", "passes, at worst", "open")
    return table(columns, rows)


def _nearest(study: Study, threshold: ThresholdTold, truth: Truth) -> str:
    found = nearest(study, threshold, truth)
    return f"{found.number:.4g}, {found.family}" if found else ""


def _share(rate: Rate | None, count: int) -> str:
    return f"{count:,} of {rate.judged:,}, {rate.family}" if rate else ""


def _families(study: Study) -> str:
    columns = ("family", "its models", "made by", "models", "claims true", "claims false")
    rows = [
        (f.name, f.title, "training" if f.trained else "formula", f"{f.models:,}", len(f.holds), len(f.violates))
        for f in study.families
    ]
    return table(columns, rows)


def _coverage(study: Study) -> Iterator[str]:
    yield "How often the 95 % interval of an estimate held the number that the model was made with."
    columns = ("estimate", "models", "covers", "prompts", "held", "share, 95 % interval")
    rows = []
    for row in study.coverage:
        low, high = (in_percent(end) for end in row.interval)
        share = f"{in_percent(row.share)} ({low} to {high})" if row.of else ""
        prompts = f"{row.prompts:,}" if row.prompts else "none"
        rows.append((row.estimate, row.models, row.covers, prompts, f"{row.held:,} of {row.of:,}", share))
    yield table(columns, rows)


def _errors(study: Study) -> Iterator[str]:
    yield (
        "Estimate minus truth: the root of its mean square and its mean, at the smallest and at the largest "
        "perturbation, with the fewest and with the most prompts. All between is on the page."
    )
    columns = ("estimate", "family", "against", "from", "to", "rms error", "bias")
    yield table(columns, [_ends(error) for error in study.errors if error.at])


def _ends(error: Error) -> tuple[str, ...]:
    def both(values: Sequence[float]) -> str:
        return f"{values[0]:.3g} → {values[-1]:.3g}" if len(values) > 1 else f"{values[0]:.3g}"

    first, last = (f"{at:,.0f}" if error.against == "prompts" else f"{at:.3g}" for at in (error.at[0], error.at[-1]))
    return error.estimate, error.family, error.against, first, last, both(error.rms), both(error.bias)


def _exceptions(study: Study) -> Iterator[str]:
    yield "What is not as it should be, and why."
    yield "\n".join(f"- {escape(what)}: {escape(cause)}" for what, cause in study.exceptions)


_WRITTEN = {"Coverage": _coverage, "Errors": _errors, "Exceptions": _exceptions}
