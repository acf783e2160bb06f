"""What is only drawn is made smaller, and looks the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from icl_interp.probing import levelled, rounded, thinned

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(arrays(float, st.integers(0, 30), elements=finite), st.integers(1, 6))
def test_rounding_keeps_so_many_digits_of_each_number(values, digits):
    np.testing.assert_allclose(rounded(values, digits), values, rtol=5.01 * 10.0**-digits)


@given(arrays(float, st.integers(0, 30), elements=finite), st.integers(1, 6))
def test_levelling_keeps_so_many_digits_of_the_largest(values, digits):
    largest = np.abs(values).max(initial=0.0)
    shown = levelled(values, digits)
    np.testing.assert_allclose(shown, values, rtol=0, atol=5.01 * 10.0**-digits * largest * (1 + 1e-9))
    assert not np.signbit(shown[shown == 0]).any()


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_levelling_leaves_what_has_no_scale_as_it_is(odd):
    values = np.array([1.23456789, odd])
    np.testing.assert_array_equal(levelled(values), values)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300, unique=True), st.integers(2, 50))
def test_thinning_keeps_both_ends_and_no_more_than_asked(steps, most):
    steps = np.array(sorted(steps))
    kept = thinned(steps, most)
    assert len(kept) <= max(most, 1) or len(steps) <= most
    assert {0, len(steps) - 1} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
