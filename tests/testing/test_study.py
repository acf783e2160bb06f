"""Members judged, and what was said of them counted."""

import dataclasses
import math

import numpy as np
import pytest

from icl_interp import LinearRegression
from icl_interp.calibration import Coverage, Rate, Study
from icl_interp.errors import ConfigError
from icl_interp.serialization import from_data, to_data
from icl_interp.testing import Family, Known, counting, known_families, plant
from icl_interp.testing.drawing import STEP, Measured, Row, Said, applicable, examine
from icl_interp.testing.known import formula_family

TASK = LinearRegression(dim=3, length=24, noise_var=0.1)
SIGN, DIAGONAL = "head_roles.sign_matching", "circuit_pattern.kq_diagonal"


def member(seed):
    """Two opposite heads, whose size of perturbation is their seed's."""
    model = plant(TASK, roles=["positive", "negative"], seed=seed)
    truth = {f"kernel_fit.mu.{h}": float(mu) for h, mu in enumerate(model.mu)}
    return Known(model.run, 0.01 * (seed + 1), truth | {"kernel_fit.no_such": 1.0}, roles=model.roles)


def family(holds=(), violates=(), build=member, **of_it):
    made = Family("some", "some models", tuple(holds), tuple(violates), False, False, lambda s, _: map(build, s))
    return dataclasses.replace(made, **of_it)


def row(status, value=0.0, seed=0, size=0.0, **of_it):
    return Row(seed, size, {SIGN: Said(status, value, prompts=1_024)}, **of_it)


# --- Families --------------------------------------------------------------------------------------------------------


def test_a_family_that_violates_something_is_judged_on_that():
    both = family([DIAGONAL], [SIGN])
    assert both.probes == ("head_roles",)
    assert both.claims == (SIGN,)
    thorough = dataclasses.replace(both, thorough=True)
    assert thorough.probes == ("circuit_pattern", "head_roles")
    assert set(thorough.claims) == {SIGN, DIAGONAL}
    assert family([DIAGONAL]).probes == ("circuit_pattern",)


def test_a_claim_cannot_be_true_and_false_of_a_family():
    with pytest.raises(ConfigError, match=r"both true and false: .*sign_matching"):
        family([SIGN], [SIGN])


def test_two_families_cannot_have_one_name():
    assert "untrained" in known_families()
    with pytest.raises(ConfigError, match="there is a family 'untrained' already"):
        formula_family("untrained", "others")(member)


# --- Members judged --------------------------------------------------------------------------------------------------


def test_members_are_judged_by_what_their_family_is_about():
    rows = list(examine(family([SIGN, DIAGONAL]), [3, 4]))
    assert [r.seed for r in rows] == [3, 4]
    assert all(r.claims[claim].status == "holds" for r in rows for claim in (SIGN, DIAGONAL))
    assert rows[0].roles == (("positive", "negative"),) * 2 or rows[0].roles == (("negative", "positive"),) * 2


def test_of_a_family_that_says_nothing_all_probes_speak_once():
    silent = family(build=lambda seed: member(seed))
    known = next(iter(silent.members([0], None)))
    names = [probe.name for probe in applicable(silent, known)]  # pyright: ignore[reportAttributeAccessIssue]
    assert {"kernel_fit", "risk", "dynamics"} <= set(names)
    assert "superposition" not in names  # of several responses
    kernel_fit = [probe for probe in applicable(silent, known) if probe.name == "kernel_fit"]  # pyright: ignore
    first, second = examine(silent, [0, 1], probes=kernel_fit, first=512)
    prompts = [{said.prompts for said in each.claims.values()} for each in (first, second)]
    assert prompts == [{256}, {256 * STEP}]


def test_estimates_stand_beside_their_truth():
    (found,) = examine(family(["kernel_fit.zero_sum_ov"]), [5])
    assert set(found.numbers) == {"kernel_fit.mu.0", "kernel_fit.mu.1"}  # what is not there is left out
    for number in found.numbers.values():
        assert number.value == pytest.approx(number.truth, rel=1e-4)
        assert number.low <= number.value <= number.high


def test_what_is_drawn_does_not_depend_on_the_rest_of_the_draw():
    alone, with_another = (list(examine(family([SIGN]), seeds))[-1] for seeds in ([7], [6, 7]))
    assert to_data(alone) == to_data(with_another)


def test_a_probe_that_fails_is_told():
    class Broken:
        def run(self, context):
            raise RuntimeError("no")

        def blocks(self, result):
            return []

        def judge(self, result):
            return []

    from icl_interp.probing import Need, probe
    from icl_interp.probing.registry import _REGISTRY

    broken = probe(name="broken_here", title="?", needs=Need.WEIGHTS)(Broken)
    del _REGISTRY["broken_here"]
    some = family([SIGN])
    (found,) = examine(some, [0], probes=[broken()])
    assert found.claims["broken_here.failed"].status == "failed"
    told = counting.told(some, [found])
    assert told.raised == (("broken_here", 1),)
    ((key, said),) = counting.exceptions(Study("choosing", (1_024, 65_536), (told,), rates=()))
    assert (key, said) == ("broken_here raises on some", "broken_here raises on 1 of 1 some")


def test_rows_go_to_text_and_back():
    (found,) = examine(family(["kernel_fit.zero_sum_ov"]), [5])
    assert to_data(from_data(Row, to_data(found))) == to_data(found)


# --- Counted ---------------------------------------------------------------------------------------------------------


def test_rates_count_every_member():
    rows = [row("holds"), row("holds"), row("fails"), row("inconclusive"), Row(9, 0.0, {})]
    (rate,) = counting.rates(family([], [SIGN]), rows)
    assert rate == Rate("some", SIGN, "violates", 5, 2, 1, 1, 1)
    (spread,) = counting.spreads(family([], [SIGN]), [*rows, row("holds", math.nan)])
    assert (spread.models, spread.truth) == (4, "violates")


def test_planted_truths_are_counted_by_the_size_of_the_perturbation():
    rows = [row("holds", size=0.001), row("fails", size=0.001), row("holds", size=0.5)]
    small, large = counting.found(family([SIGN]), rows)
    assert (small.found, small.of, large.found, large.of) == (1, 2, 1, 1)
    assert small.size < large.size


def test_coverage_and_errors_of_estimates():
    def with_number(value, half=1.0, prompts=1_024):
        number = Measured(2.0, value, value - half, value + half, "prompts", prompts)
        return row("holds", size=0.01, numbers={"kernel_fit.mu.0": number, "kernel_fit.mu.1": number})

    rows = [*(with_number(2.0 + 0.1 * i) for i in range(20)), with_number(9.0, math.inf)]
    (coverage,) = counting.coverage(family([SIGN]), rows)
    assert coverage == Coverage("kernel_fit.mu", "prompts", 1_024, 22, 40, "some")
    by_size, by_prompts = counting.errors(family([SIGN]), rows)
    misses = np.array([0.1 * i for i in range(20)] + [7.0]).repeat(2)
    assert by_size.rms == by_prompts.rms == (pytest.approx(np.sqrt((misses**2).mean()), rel=1e-3),)
    assert by_prompts.at == (1_024.0,)
    assert by_prompts.models == (42,)


def test_wrong_roles_are_an_error_too():
    rows = [row("holds", roles=(("positive", "negative"), ("positive", "dummy"))) for _ in range(10)]
    (error,) = counting.errors(family([SIGN]), rows)
    assert (error.estimate, error.against, error.bias) == ("head_roles.roles, share wrong", "prompts", (0.5,))


@pytest.mark.parametrize(
    ("truth", "holds", "of", "trained", "told"),
    [
        ("violates", 4, 1_000, False, False),
        ("violates", 5, 1_000, False, True),
        ("violates", 1, 300, True, True),
        ("holds", 990, 1_000, False, False),
        ("holds", 989, 1_000, False, True),
        ("unsaid", 500, 1_000, False, False),
    ],
)
def test_what_is_not_as_it_should_be_is_told(truth, holds, of, trained, told):
    rate = Rate("some", SIGN, truth, of, holds, of - holds, 0, 0)
    families = (counting.told(family(trained=trained), [row("holds")]),)
    study = Study("reporting", (1, 2), families, (rate,))
    assert bool(list(counting.exceptions(study))) == told


@pytest.mark.parametrize(
    ("held", "of", "well"),
    [(1_860, 2_000, True), (1_859, 2_000, False), (1_941, 2_000, False), (90, 100, True), (88, 100, False)],
)
def test_intervals_cover_as_they_should(held, of, well):
    row_of_coverage = Coverage("kernel_fit.mu", "prompts", 1_024, held, of, "some")
    assert counting.covers_as_it_should(row_of_coverage) == well
