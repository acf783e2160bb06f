"""Sizes of a model: defaults, and a refusal of everything else that says what was passed and what would be right."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.config import ModelConfig, check_choice, check_count, check_flag, check_positive
from icl_interp.errors import ConfigError, ICLError

# What no number is, and what looks like one but is not plain.
JUNK = (None, "1", True, False, [1], {}, 1j, np.array([1, 2]), object())


def test_defaults_are_filled_in_from_the_sizes():
    config = ModelConfig(dim=5, n_outputs=2)
    assert (config.d_model, config.head_width, config.score_scale) == (7, 7, math.sqrt(7))
    config = ModelConfig(dim=5, d_head=3, attn_scale=1)
    assert (config.d_model, config.head_width, config.score_scale) == (6, 3, 1)


def test_a_config_is_a_value():
    config = ModelConfig(dim=5, n_heads=4)
    assert config == ModelConfig(5, 1, 4)
    assert hash(config) == hash(ModelConfig(5, 1, 4))
    assert dataclasses.replace(config, n_heads=2) == ModelConfig(5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 6
    with pytest.raises(TypeError, match="heads"):
        ModelConfig(dim=5, heads=4)


@pytest.mark.parametrize("name", ["dim", "n_outputs", "n_heads", "n_layers", "d_head"])
@pytest.mark.parametrize("value", [0, -1, 2.0, math.nan, *(v for v in JUNK if v is not None)])
def test_sizes_are_whole_numbers_from_one_on(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number ≥ 1, got {re.escape(repr(value))}"):
        ModelConfig(**{"dim": 5, name: value})


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, 10**400, *(v for v in JUNK if v is not None)])
def test_the_scale_is_positive_and_finite(value):
    with pytest.raises(ConfigError, match=f"^attn_scale must be a finite number > 0, got {re.escape(repr(value))}"):
        ModelConfig(5, attn_scale=value)


@pytest.mark.parametrize("value", [None, "", "causal", ["demonstrations"], {}, np.array(["a", "b"]), 1])
def test_masks_and_activations_are_named(value):
    with pytest.raises(ConfigError, match="mask must be one of 'demonstrations', 'strict_causal', got "):
        ModelConfig(5, mask=value)
    with pytest.raises(ConfigError, match=r"activation must be one of 'softmax', 'affine', .* got "):
        ModelConfig(5, activation=value)


@pytest.mark.parametrize("value", [np.int64(5), np.float32(0.5), torch.tensor(5)])
def test_numbers_of_other_libraries_are_refused_with_a_way_out(value):
    # They would train, and only fail when the run is saved.
    for check in (check_count, check_positive):
        with pytest.raises(ConfigError, match=re.escape(f"got {value!r}; pass a plain number, its .item()")):
            check("it", value)
        check("it", math.ceil(value.item()))


def test_an_error_is_a_value_error_too():
    assert issubclass(ConfigError, ICLError)
    assert issubclass(ConfigError, ValueError)


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none()), st.integers(0, 3))
def test_counts(value, minimum):
    if type(value) is int and value >= minimum:
        check_count("n", value, minimum)
    else:
        with pytest.raises(ConfigError, match=f"n must be a whole number ≥ {minimum}, got "):
            check_count("n", value, minimum)


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none()), st.booleans())
def test_positive_numbers(value, zero):
    number = type(value) in (int, float) and math.isfinite(value)
    if number and (value > 0 or (zero and value == 0)):
        check_positive("a", value, zero=zero)
    else:
        with pytest.raises(ConfigError, match=f"a must be a finite number {'≥' if zero else '>'} 0, got "):
            check_positive("a", value, zero=zero)


@pytest.mark.parametrize("value", [0, 1, None, "no", np.bool_(True)])
def test_flags(value):
    check_flag("f", True)
    check_flag("f", False)
    with pytest.raises(ConfigError, match=f"f must be True or False, got {re.escape(repr(value))}"):
        check_flag("f", value)


@given(st.text())
def test_choices(value):
    if value in ("a", "b"):
        check_choice("c", value, ("a", "b"))
    else:
        with pytest.raises(ConfigError, match="c must be one of 'a', 'b', got "):
            check_choice("c", value, ("a", "b"))
