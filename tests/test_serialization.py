"""There and back through JSON text for everything that may be asked of it, and a refusal of everything else."""

import functools
import json
import math
import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Bool, Float, Int

from icl_interp.config import ModelConfig
from icl_interp.errors import CheckpointError
from icl_interp.records import TrainConfig
from icl_interp.serialization import dumps, from_data, to_data
from icl_interp.tasks import (
    LinearRegression,
    MultiTaskRegression,
    Prompt,
    SparseRegression,
    Task,
    UnavailableTask,
    kms,
)


@dataclass(frozen=True)
class Inner:
    name: str
    value: float | None


@dataclass(frozen=True, eq=False)
class Everything:
    """One field of each kind that configurations, findings and verdicts have."""

    number: float
    count: int
    flag: bool
    text: str
    maybe: float | None
    choice: Literal["a", "b"]
    words: tuple[str, ...]
    pair: tuple[float, int]
    items: list[Inner]
    table: dict[str, float]
    inner: Inner
    matrix: Float[np.ndarray, "rows columns"]
    counts: Int[np.ndarray, "n"]
    flags: Bool[np.ndarray, "n"]
    array: np.ndarray
    extra: dict[str, Inner] = field(default_factory=dict)


def floats():
    return st.floats(width=64)


def arrays(dtype, ndim, elements=None):
    return hnp.arrays(dtype, hnp.array_shapes(min_dims=ndim, max_dims=ndim, min_side=0, max_side=3), elements=elements)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
inners = st.builds(Inner, texts, st.none() | floats())
everything = st.builds(
    Everything,
    number=floats(),
    count=st.integers(),
    flag=st.booleans(),
    text=texts,
    maybe=st.none() | floats(),
    choice=st.sampled_from("ab"),
    words=st.lists(texts, max_size=3).map(tuple),
    pair=st.tuples(floats(), st.integers()),
    items=st.lists(inners, max_size=2),
    table=st.dictionaries(texts, floats(), max_size=2),
    inner=inners,
    matrix=arrays(np.float64, 2) | arrays(np.float32, 2),
    counts=arrays(np.int64, 1),
    flags=arrays(bool, 1),
    array=arrays(np.float64, 3) | arrays(np.int64, 2) | arrays(bool, 1),
    extra=st.dictionaries(texts, inners, max_size=2),
)
PLAIN = to_data(
    Everything(
        number=0.5,
        count=3,
        flag=True,
        text="t",
        maybe=None,
        choice="a",
        words=("w",),
        pair=(1.0, 2),
        items=[Inner("i", 1.0)],
        table={"k": 2.0},
        inner=Inner("j", None),
        matrix=np.eye(2),
        counts=np.arange(3),
        flags=np.array([True, False]),
        array=np.zeros(2),
    )
)


def through_json(value, kind=None):
    return json.loads(dumps(to_data(value, kind)))


def without(mapping, *names):
    return {k: v for k, v in mapping.items() if k not in names}


def assert_same(a, b):
    assert type(a) is type(b)
    for name in Everything.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            assert x.shape == y.shape
            assert x.dtype.kind == y.dtype.kind
            np.testing.assert_array_equal(x, y)
        else:
            assert repr(x) == repr(y)  # unlike ==, equal for NaN, and not for 0.0 and −0.0 or 1 and True


# --- There and back --------------------------------------------------------------------------------------------------


@given(everything)
def test_everything_comes_back(value):
    assert_same(from_data(Everything, through_json(value)), value)
    assert_same(from_data(Everything, to_data(value)), value)  # without JSON in between, tuples are still tuples


@given(everything)
def test_saying_it_again_says_the_same(value):
    data = through_json(value)
    assert dumps(to_data(from_data(Everything, data))) == dumps(data)


def test_numpy_scalars_are_numbers():
    odd = Everything(
        **{
            **{name: getattr(from_data(Everything, PLAIN), name) for name in Everything.__dataclass_fields__},
            "number": np.float32(0.5),
            "count": np.int64(3),
            "flag": np.bool_(True),
            "maybe": np.float64("nan"),
            "pair": (np.float64(1), np.int32(2)),
            "table": {"k": np.float32("inf")},
        }
    )
    data = through_json(odd)
    assert data == {**PLAIN, "pair": [1.0, 2], "words": ["w"], "maybe": "NaN", "table": {"k": "Infinity"}}
    assert type(data["flag"]) is bool


def test_what_json_cannot_say_is_spelt_out():
    assert through_json([math.nan, math.inf, -math.inf, np.float32("nan")]) == ["NaN", "Infinity", "-Infinity", "NaN"]
    assert through_json(np.array([[1.0, np.nan]])) == [[1.0, "NaN"]]
    assert through_json({"a": {"b": np.arange(3)}, "c": (True, np.bool_(False))}) == {
        "a": {"b": [0, 1, 2]},
        "c": [True, False],
    }
    assert through_json(np.zeros((0, 3), np.float32)) == {"shape": [0, 3], "dtype": "float32"}
    assert through_json(np.array(3.5)) == 3.5
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps(math.nan)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 0, 3)])
def test_empty_arrays_keep_their_shape(shape):
    for dtype in (np.float64, np.float32, np.int64, bool):
        back = from_data(np.ndarray, through_json(np.zeros(shape, dtype)))
        assert (back.shape, back.dtype) == (shape, dtype)


@given(st.floats())
def test_floats_bit_for_bit(value):
    (back,) = from_data(tuple[float, ...], through_json((value,)))
    assert repr(back) == repr(value)


def test_whole_numbers_do_for_floats_and_stay_floats():
    data = {**PLAIN, "number": 1, "matrix": [[1, 2], [3, 4]], "array": [1, 2.5]}
    value = from_data(Everything, json.loads(dumps(data)))
    assert type(value.number) is float
    assert value.matrix.dtype == float
    assert value.array.tolist() == [1.0, 2.5]


# --- Strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("number", "0.5", "expected a number, got '0.5'"),
        ("number", "nan", "expected a number, got 'nan'"),
        ("number", True, "expected a number, got True"),
        ("number", None, "expected a number, got None"),
        ("number", 10**400, "int too large to convert to float"),
        ("count", True, "expected int, got True"),
        ("count", 3.0, "expected int, got 3.0"),
        ("count", "3", "expected int, got '3'"),
        ("flag", 1, "expected bool, got 1"),
        ("flag", "true", "expected bool, got 'true'"),
        ("text", 1, "expected str, got 1"),
        ("text", None, "expected str, got None"),
        ("maybe", "1", "expected a number, got '1'"),
        ("maybe", [], "expected a number, got []"),
        ("choice", "c", "c not in literal"),
        ("choice", ["a"], "not in literal"),
        ("words", "word", "expected a list, got 'word'"),
        ("words", {"w": 1}, "expected a list, got {'w': 1}"),
        ("words", None, "expected a list, got None"),
        ("words[1]", ["w", 1], "expected str, got 1"),
        ("pair", [1.0], "Not enough values"),
        ("pair", [1.0, 2, 3], "Too many values"),
        ("pair", "12", "expected a list, got '12'"),
        ("items", {"name": "i"}, "expected a list, got {'name': 'i'}"),
        ("items[0]", ["i"], "expected an object, got 'i'"),
        ("items[0].value", [{"name": "i"}], "value is missing"),
        ("table", [["k", 1.0]], "expected an object, got [['k', 1.0]]"),
        ("table['k']", {"k": "1"}, "expected a number, got '1'"),
        ("inner", [], "expected an object, got []"),
        ("inner", "name", "expected an object, got 'name'"),
        ("inner", {"name": "j", "value": 1.0, "more": 1}, "Extra fields in constructor for Inner: more"),
        ("extra", [], "expected an object, got []"),
        ("matrix", [["1", "2"]], "expected a number, got '1'"),
        ("matrix", [[1.0, "nan"]], "expected a number, got 'nan'"),
        ("matrix", [[True]], "expected Float[ndarray, 'rows columns'], got bool of shape (1, 1)"),
        ("matrix", [[True, 1.0]], "expected a number, got True"),
        ("matrix", [1.0, 2.0], "expected Float[ndarray, 'rows columns'], got float64 of shape (2,)"),
        ("matrix", 1.0, "expected Float[ndarray, 'rows columns'], got float64 of shape ()"),
        ("matrix", [[1.0], [1.0, 2.0]], "expected a number, got [1.0]"),
        ("matrix", None, "expected a number, got None"),
        ("matrix", {}, "or the shape and dtype of an empty one, got {}"),
        ("matrix", {"shape": [2, 2], "dtype": "float64"}, "or the shape and dtype of an empty one"),
        ("matrix", {"shape": [10**13, 10**13], "dtype": "float64"}, "or the shape and dtype of an empty one"),
        ("matrix", {"shape": [0, -1], "dtype": "float64"}, "or the shape and dtype of an empty one"),
        ("matrix", {"shape": [0, 2], "dtype": "O"}, "or the shape and dtype of an empty one"),
        ("matrix", {"shape": [0, 2], "dtype": ["f8"]}, "or the shape and dtype of an empty one"),
        ("matrix", {"shape": [False, 2], "dtype": "float64"}, "or the shape and dtype of an empty one"),
        ("matrix", {"shape": [0], "dtype": "float64"}, "got float64 of shape (0,)"),
        ("counts", [1.5], "expected Int[ndarray, 'n'], got float64 of shape (1,)"),
        ("counts", [True], "expected Int[ndarray, 'n'], got bool of shape (1,)"),
        ("counts", [10**30], "too large"),
        ("flags", [0, 1], "expected Bool[ndarray, 'n'], got int64 of shape (2,)"),
        ("array", ["a"], "expected a number, got 'a'"),
        ("array", [[{}]], "expected a number, got {}"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, value, complaint):
    root = re.split(r"[.\[]", name)[0]
    with pytest.raises(CheckpointError) as caught:
        from_data(Everything, {**PLAIN, root: value})
    assert str(caught.value).startswith("not a Everything: ")
    assert complaint in str(caught.value)
    assert f"@ $.{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (dict[str, str], {"a": "b"}, "ab"),
        (tuple[float, ...], [1.0], {}),
        (list[int], [1], "1"),
        (Inner, PLAIN["inner"], []),
    ],
)
def test_strictness_does_not_wear_off_with_use(kind, good, bad):
    # A converter caches what it builds, and what it caches for one class it hands to the next.
    for _ in range(3):
        fresh = dataclass(type("Fresh", (), {"__annotations__": {"it": kind}}))
        assert from_data(kind, good)
        assert from_data(fresh, {"it": good})
        with pytest.raises(CheckpointError, match=r"expected an? (object|list)"):
            from_data(kind, bad)
        with pytest.raises(CheckpointError, match=r"expected an? (object|list)"):
            from_data(fresh, {"it": bad})


def test_missing_and_unknown_fields_are_named():
    with pytest.raises(
        CheckpointError, match=r"not a Everything: count is missing @ \$.count; text is missing @ \$.text"
    ):
        from_data(Everything, without(PLAIN, "count", "text"))
    with pytest.raises(CheckpointError, match="Extra fields in constructor for Everything: surplus"):
        from_data(Everything, {**PLAIN, "surplus": 1})
    with pytest.raises(CheckpointError, match=r"expected int, got '3' @ \$.count.*expected str, got 4 @ \$.text"):
        from_data(Everything, {**PLAIN, "count": "3", "text": 4})  # all at once


def test_long_values_are_cut_short():
    with pytest.raises(CheckpointError) as caught:
        from_data(Everything, {**PLAIN, "count": "x" * 10**6})
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, "NaN"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(sorted(PLAIN)), inner, max_size=3)
    ),
    max_leaves=10,
)
KINDS = [float, int, bool, str, np.ndarray, Float[np.ndarray, "a b"], dict[str, str], list[float], tuple[str, ...]]
KINDS += [Inner, Everything, ModelConfig, TrainConfig, LinearRegression, MultiTaskRegression, SparseRegression, Task]


def structured_or_refused(kind, data):
    try:
        from_data(kind, data)
    except CheckpointError as error:
        assert str(error)  # noqa: PT017


@given(st.sampled_from(KINDS), json_values)
@settings(max_examples=300)
def test_junk_is_refused_and_nothing_else_happens(kind, data):
    structured_or_refused(kind, data)


TRAIN = through_json(TrainConfig(LinearRegression(2, 3, covariance=np.eye(2), mean=[1, 2]), ModelConfig(2)))


@given(st.sampled_from(["everything", "train", "task"]), st.data())
@settings(max_examples=300)
def test_one_field_of_junk_is_refused_and_nothing_else_happens(which, data):
    kind, good = {"everything": (Everything, PLAIN), "train": (TrainConfig, TRAIN), "task": (Task, TRAIN["task"])}[
        which
    ]
    name = data.draw(st.sampled_from(sorted(good)))
    structured_or_refused(kind, {**good, name: data.draw(json_values)})


@functools.cache
def nested(depth):
    lists, objects = 1.0, 1.0
    for _ in range(depth):
        lists, objects = [lists], {"name": objects}
    return lists, objects


@pytest.mark.parametrize("depth", [50, 5_000, 100_000])
@pytest.mark.parametrize(
    "name", [None, "number", "count", "text", "words", "items", "inner", "table", "matrix", "array"]
)
def test_nesting_however_deep_is_refused(name, depth):
    for data in nested(depth):
        with pytest.raises(CheckpointError, match=name or "Everything"):
            from_data(Everything, data if name is None else {**PLAIN, name: data})


# --- Tasks and configurations ----------------------------------------------------------------------------------------

variances = st.floats(0, 1e6)
means = st.floats(-10, 10) | st.lists(st.floats(-10, 10), min_size=3, max_size=3)
covariances = (
    st.none()
    | st.floats(-0.99, 0.99).map(kms)
    | arrays(np.float64, 2, st.floats(-2, 2)).map(lambda a: np.eye(3) + (a @ a.T if a.shape[0] == 3 else 0 * np.eye(3)))
)
tasks = st.builds(
    LinearRegression,
    dim=st.just(3),
    length=st.integers(1, 100),
    noise_var=variances,
    covariance=covariances,
    mean=means,
    query_noise=st.booleans(),
    signal_var=st.floats(1e-6, 1e6),
)


sets = st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=3)
several = st.builds(
    MultiTaskRegression,
    dim=st.just(4),
    supports=sets,
    length=st.integers(1, 100),
    noise_var=variances,
    query_noise=st.booleans(),
    signal_var=st.floats(1e-6, 1e6),
    shared_signal=st.booleans(),
)


sparse = st.builds(
    SparseRegression,
    dim=st.integers(4, 9),
    sparsity=st.integers(1, 4),
    length=st.integers(1, 100),
    noise_var=variances,
    query_noise=st.booleans(),
    signal_var=st.floats(1e-6, 1e6),
)


@given(tasks | several | sparse)
def test_tasks_come_back_equal(task):
    back = from_data(Task, through_json(task, Task))
    assert back == task
    assert hash(back) == hash(task)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    a, b = (t.sample(2, generator=g) for t, g in zip((task, back), generators, strict=True))
    assert torch.equal(a.z, b.z)


@given(
    tasks,
    st.integers(1, 3),
    st.sampled_from(["adam", "adamw", "sgd"]),
    st.floats(0, 0.999),
    st.none() | st.integers(1, 4),
)
def test_training_configurations_come_back_equal(task, heads, optimizer, beta, d_head):
    model = ModelConfig(3, n_heads=heads, d_head=d_head, mask="strict_causal", attn_scale=0.5)
    config = TrainConfig(task, model, optimizer=optimizer, betas=(beta, beta), lr=1, seed=2**70)
    assert from_data(TrainConfig, through_json(config)) == config


class Odd:
    """A task of a user's own, with numpy's integers for sizes and a repr that no file can hold."""

    dim, length, n_outputs = np.int64(2), np.int64(5), 1

    def __init__(self, text="Odd\ud800"):
        self.text = text

    def sample(self, batch, *, length=None, generator=None, device=None):
        return Prompt(torch.zeros(batch, 5, 2), torch.zeros(batch, 5, 1), torch.zeros(batch, 2), torch.zeros(batch, 1))

    def __repr__(self):
        if self.text is None:
            raise RuntimeError("a repr may be broken too")
        return self.text


class Derived(LinearRegression):
    """Not a linear regression any more, for all that we know."""


@pytest.mark.parametrize(
    ("task", "description"),
    [(Odd(), "Odd?"), (Odd(None), "a Odd"), (Odd("x" * 5000), "x" * 1000), (Derived(2, 5), repr(Derived(2, 5)))],
)
def test_a_users_own_task_comes_back_as_a_description(task, description):
    data = through_json(task, Task)
    dumps(data).encode()
    back = from_data(Task, data)
    assert back == UnavailableTask(2, 5, 1, description)
    assert from_data(Task, through_json(back, Task)) == back  # and does not wear off


def test_unknown_tasks_are_refused_with_what_is_known():
    known = "LinearRegression, MultiTaskRegression, SparseRegression, custom"
    for data, shown in (
        ({"kind": "Sparse"}, "'Sparse'"),
        ({}, "None"),
        ({"kind": ["custom"]}, r"\['custom'\]"),
        ("x", "'x'"),
    ):
        with pytest.raises(CheckpointError, match=f"unknown task {shown}; this version knows {known}"):
            from_data(Task, data)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dim": 0}, "dim must be a whole number ≥ 1, got 0"),
        ({"noise_var": "NaN"}, "noise_var must be a finite number ≥ 0, got nan"),
        ({"query_noise": 1}, r"expected bool, got 1 @ \$.query_noise"),
        ({"covariance": {"rho": 1.5}}, "rho must be between -1 and 1"),
        ({"covariance": {"rho": 0.5, "size": 3}}, "Extra fields in constructor for KMS: size"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "covariance must be positive definite"),
        ({"covariance": "kms"}, r"expected a list, got 'kms' @ \$.covariance"),
        ({"mean": "0"}, r"expected a number, got '0' @ \$.mean"),
        ({"mean": [0.0, "1"]}, r"expected a number, got '1' @ \$.mean\[1\]"),
        ({"lenght": 3}, "Extra fields in constructor for LinearRegression: lenght"),
    ],
)
def test_impossible_tasks_in_a_file_say_why(change, complaint):
    data = through_json(LinearRegression(2, 3), Task)
    with pytest.raises(CheckpointError, match=complaint):
        from_data(Task, {**data, **change})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"supports": None}, r"expected a list, got None @ \$.supports"),
        ({"supports": "01"}, r"expected a list, got '01' @ \$.supports"),
        ({"supports": [[0], "1"]}, r"expected a list, got '1' @ \$.supports\[1\]"),
        ({"supports": [[0, True]]}, r"expected int, got True @ \$.supports\[0\]\[1\]"),
        ({"supports": [[0, 1.0]]}, r"expected int, got 1.0 @ \$.supports\[0\]\[1\]"),
        ({"supports": []}, "supports must be a sequence of sets of features"),
        ({"supports": [[0], [2]]}, r"supports\[1\] must be features among 0 … 1, each once"),
        ({"shared_signal": 1}, r"expected bool, got 1 @ \$.shared_signal"),
        ({"covariance": None}, "Extra fields in constructor for MultiTaskRegression: covariance"),
    ],
)
def test_impossible_tasks_of_several_responses_say_why(change, complaint):
    data = through_json(MultiTaskRegression(2, [(0,), (0, 1)], 3), Task)
    assert data["supports"] == [[0], [0, 1]]
    with pytest.raises(CheckpointError, match=complaint):
        from_data(Task, {**data, **change})
