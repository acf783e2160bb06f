"""What a probe may look at, and that nothing it does there reaches another probe."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.probing import Context, Need, NotApplicable, UndeclaredNeed, context
from icl_interp.records import Run
from icl_interp.tasks import LinearRegression, UnavailableTask, kms
from icl_interp.testing import plant
from icl_interp.training import train
from icl_interp.weights import initial_weights

TASK = LinearRegression(dim=3, length=8)
EVERYTHING = Need.WEIGHTS | Need.FORWARD | Need.TASK | Need.DYNAMICS | Need.ONE_LAYER


@pytest.fixture(scope="module")
def planted():
    return plant(TASK, roles=("positive", "negative", "dummy")).run


@pytest.fixture(scope="module")
def trained():
    return train(TASK, steps=50, n_records=20, progress=False)


def untrained(task=TASK, **sizes):
    config = ModelConfig(TASK.dim, **sizes)
    return Run(config, initial_weights(config, torch.Generator().manual_seed(0)), task=task)


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("x", "y", "x_q", "y_q"))


# --- Needs ------------------------------------------------------------------------------------------------------------

LOOKS = {
    "circuits": (Need.WEIGHTS, lambda c: c.circuits),
    "weights": (Need.WEIGHTS, lambda c: c.weights),
    "task": (Need.TASK, lambda c: c.task),
    "dynamics": (Need.DYNAMICS, lambda c: c.dynamics),
    "late_circuits": (Need.DYNAMICS, lambda c: c.late_circuits()),
    "model": (Need.FORWARD, lambda c: c.model()),
    "sample": (Need.TASK, lambda c: c.sample("label", 2)),
    "chunks": (Need.TASK, lambda c: list(c.chunks("label", 2))),
    "predict": (Need.FORWARD, lambda c: c.predict(TASK.sample(2).to(dtype=torch.float64))),
    "head_outputs": (Need.FORWARD, lambda c: c.head_outputs(TASK.sample(2).to(dtype=torch.float64))),
    "shape": (Need.TASK, lambda c: c.shape),
    "heads": (Need.FORWARD | Need.TASK, lambda c: c.heads),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_needs_exactly_what_it_says(trained, look):
    need, action = LOOKS[look]
    seen = Context(trained, budget=50)
    action(seen.restricted(need))
    for one in need:
        with pytest.raises(UndeclaredNeed, match=r"the probe looked at \S+ without declaring Need\.\S+ in its needs"):
            action(seen.restricted(EVERYTHING & ~one))


def test_what_is_free_needs_nothing(trained):
    seen = Context(trained).restricted(Need.NONE)
    assert seen.config == trained.model_config
    assert seen.rng("label").normal() == Context(trained).rng("label").normal()
    assert not seen.offers(Need.TASK)
    assert (seen.seed, seen.budget) == (0, context.DEFAULT_BUDGET)


def test_what_was_computed_for_one_probe_is_still_hidden_from_another(planted):
    seen = Context(planted, budget=50)
    assert seen.restricted(EVERYTHING).heads
    with pytest.raises(UndeclaredNeed, match=r"looked at heads without declaring Need\.(FORWARD\|TASK|TASK\|FORWARD)"):
        seen.restricted(Need.WEIGHTS).heads


@dataclass(frozen=True)
class OwnTask:
    """A user's own; an empty one is false, as an empty list is."""

    dim: int = 3
    length: int = 8
    n_outputs: int = 1

    def sample(self, batch, *, length=None, generator=None, device=None):
        return TASK.sample(batch, length=length, generator=generator, device=device)

    def __len__(self):
        return 0


def test_what_each_kind_of_checkpoint_offers(planted, trained):
    bare = Need.WEIGHTS | Need.FORWARD | Need.ONE_LAYER
    unavailable = UnavailableTask(3, 8, 1, "mine")
    assert Context(trained).available == EVERYTHING
    assert Context(planted).available == bare | Need.TASK
    assert Context(untrained(task=None)).available == bare
    assert Context(untrained(task=None), TASK).available == bare | Need.TASK
    assert Context(untrained(task=unavailable)).available == bare
    assert Context(untrained(task=unavailable), OwnTask()).available == bare | Need.TASK
    assert Context(planted, OwnTask()).task == OwnTask()
    once = replace(trained.dynamics, **{n: getattr(trained.dynamics, n)[:1] for n in ("steps", "loss", "omega", "mu")})
    assert Context(replace(trained, dynamics=once)).available == bare | Need.TASK  # one record is no dynamics


def test_offers_is_what_is_there_and_declared(planted, trained):
    assert Context(trained).offers(Need.DYNAMICS)
    assert not Context(planted).offers(Need.DYNAMICS)
    assert not Context(trained).restricted(Need.TASK).offers(Need.DYNAMICS)
    assert not Context(planted).restricted(Need.TASK).offers(Need.TASK | Need.DYNAMICS)


def test_a_task_that_is_not_known_is_a_reason_not_to_apply():
    with pytest.raises(NotApplicable, match="the task is not known"):
        Context(untrained(task=UnavailableTask(3, 8, 1, "mine"))).sample("label")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be a whole number ≥ 0, got -1"),
        ({"seed": 1.5}, "seed must be a whole number ≥ 0, got 1.5"),
        ({"budget": 0}, "budget must be a whole number ≥ 1, got 0"),
        ({"budget": "many"}, "budget must be a whole number ≥ 1, got 'many'"),
    ],
)
def test_seed_and_budget_out_of_range(planted, settings, message):
    with pytest.raises(ConfigError, match=message):
        Context(planted, **settings)


# --- Prompts ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcd"), max_size=6), st.integers(0, 2**40))
def test_prompts_depend_on_seed_and_label_alone(calls, seed):
    run = untrained()
    seen = Context(run, seed=seed, budget=4)
    first = {label: Context(run, seed=seed, budget=4).sample(label) for label in "abcd"}
    for label in calls:
        seen.rng(label).normal()
        assert same(seen.restricted(Need.TASK).sample(label), first[label])
    assert not same(first["a"], first["b"])
    assert not same(first["a"], Context(run, seed=seed + 1, budget=4).sample("a"))


def test_labels_that_a_checksum_confuses_are_apart(planted):
    """CRC-32 gives "plumless" and "buckeroo" the same number."""
    seen = Context(planted, budget=4)
    assert not same(seen.sample("plumless"), seen.sample("buckeroo"))
    assert seen.rng("plumless").normal() != seen.rng("buckeroo").normal()


@pytest.mark.parametrize("label", ["", "ω", "\x00", "\udcff", "a" * 10_000])
def test_any_text_is_a_label(planted, label):
    assert same(Context(planted).sample(label, 2), Context(planted).sample(label, 2))


def test_global_random_states_neither_matter_nor_change(planted):
    torch.manual_seed(1)
    first = Context(planted).sample("label", 3)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert same(first, Context(planted).sample("label", 3))
    assert torch.equal(before, torch.random.get_rng_state())


@given(st.integers(1, 40), st.integers(1, 300))
def test_chunks_are_the_sample_in_pieces(n, numbers):
    """Small chunks hold as many prompts together, and in the same order, as `sample` gives."""
    seen = Context(untrained(), budget=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "CHUNK_NUMBERS", numbers)
        pieces = list(seen.chunks("label", n))
        whole = seen.sample("label", n)
    assert sum(map(len, pieces)) == len(whole) == n
    assert all(torch.equal(a, b) for a, b in zip(torch.cat([p.x for p in pieces]), whole.x, strict=True))
    a_prompt = 2 * TASK.length * (TASK.dim + TASK.n_outputs)
    assert len(pieces) == -(-n // max(1, numbers // a_prompt))


def test_chunks_fit_in_memory(planted):
    length = 200
    sizes = [len(p) for p in Context(planted).chunks("label", 30_000, length=length)]
    assert sum(sizes) == 30_000
    assert len(sizes) > 1
    assert max(sizes) * length * 2 * (TASK.dim + 1) <= context.CHUNK_NUMBERS
    assert max(sizes) <= context.CHUNK_PROMPTS


def test_models_of_other_sizes_get_the_same_prompts():
    """Or their predictions could not be compared prompt by prompt."""
    small, large = (
        Context(Run(c, initial_weights(c, torch.Generator().manual_seed(0)), task=TASK))
        for c in (ModelConfig(TASK.dim, n_heads=h) for h in (1, 40))
    )
    assert same(small.sample("label", 9_000), large.sample("label", 9_000))


def test_a_sample_has_the_size_length_task_and_type_asked_for(planted):
    seen = Context(planted, budget=6)
    assert len(seen.sample("label")) == 6
    assert seen.sample("label").x.shape == (6, 8, 3)
    assert seen.sample("label", 2, length=5).x.shape == (2, 5, 3)
    assert seen.sample("label").x.dtype == torch.float64
    shifted = seen.sample("label", 200, task=TASK.shifted(5.0))
    assert shifted.x.mean() > 4


@pytest.mark.parametrize("n", [0, -1, 2.0])
def test_a_sample_of_nothing_is_refused(planted, n):
    with pytest.raises(ConfigError, match=f"n must be a whole number ≥ 1, got {n}"):
        Context(planted).sample("label", n)


# --- Nothing leaks ----------------------------------------------------------------------------------------------------


def test_the_model_is_a_copy(planted):
    seen = Context(planted)
    model = seen.model()
    before = {name: weight.clone() for name, weight in planted.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], planted.weights[name]) for name in before)
    assert any(parameter.any() for parameter in seen.model().parameters())


def test_the_model_predicts_what_the_context_predicts(planted):
    seen = Context(planted, budget=5)
    prompt = seen.sample("label")
    hooked = seen.model().double().predict(prompt)
    torch.testing.assert_close(hooked, seen.predict(prompt), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.head_outputs(prompt).sum(1), seen.predict(prompt))


def test_a_probe_that_writes_into_what_it_sees_harms_only_itself(planted):
    seen = Context(planted, budget=50)
    prompt = seen.sample("label")
    before, roles, omega = seen.predict(prompt), seen.heads.roles, seen.heads.omega.copy()
    seen.circuits.KQ[:] = 0
    seen.circuits.OV[:] = 0
    seen.heads.omega[:] = 0
    seen.sample("label").x[:] = 0
    other = seen.restricted(EVERYTHING)
    assert torch.equal(other.predict(other.sample("label")), before)
    assert other.circuits.KQ.any()
    assert other.heads.roles == roles
    np.testing.assert_array_equal(other.heads.omega, omega)


def test_heads_are_classified_once_for_all_probes(planted, monkeypatch):
    calls = []
    real = context.classify
    monkeypatch.setattr(context, "classify", lambda *a: calls.append(a) or real(*a))
    seen = Context(planted, budget=50)
    first, second = seen.restricted(EVERYTHING).heads, seen.restricted(Need.FORWARD | Need.TASK).heads
    assert len(calls) == 1
    assert first.roles == second.roles == Context(planted, budget=50).heads.roles


def test_another_budget_is_another_view_of_the_same(planted):
    seen = Context(planted, budget=50, seed=3).restricted(Need.WEIGHTS | Need.FORWARD | Need.TASK)
    more = seen.at(200)
    assert (more.budget, more.seed, len(more.sample("label").x)) == (200, 3, 200)
    assert more._circuits is seen._circuits
    with pytest.raises(UndeclaredNeed):
        more.dynamics
    alone = Context(planted, budget=200, seed=3)
    assert seen.heads.roles  # found on fewer prompts, which must not be what the other view is given
    np.testing.assert_array_equal(more.heads.mu, alone.heads.mu)
    assert not np.array_equal(more.heads.mu, seen.heads.mu)


# --- Dynamics, depth --------------------------------------------------------------------------------------------------


def test_late_circuits_are_those_of_the_last_fifth(trained):
    late = Context(trained).late_circuits()
    steps = [s for s in trained.dynamics.snapshot_steps if s >= 40]
    assert len(late) == len(steps) >= 2
    np.testing.assert_array_equal(late[-1].KQ, trained.circuits().KQ)
    np.testing.assert_array_equal(late[0].KQ, trained.circuits(int(steps[0])).KQ)


def test_without_a_record_there_are_no_late_circuits(planted):
    assert Context(planted).late_circuits() == []
    assert Context(planted).dynamics is None


def test_a_deeper_model_has_no_roles():
    seen = Context(untrained(n_layers=2), budget=5)
    with pytest.raises(NotApplicable, match="heads have roles in one layer, on a prompt's own columns"):
        seen.heads
    assert seen.predict(seen.sample("label")).shape == (5, 1)


def test_several_responses_are_told_apart():
    config = ModelConfig(3, n_outputs=2)
    seen = Context(Run(config, initial_weights(config)))
    with pytest.raises(NotApplicable, match="the claim is about one response; this model has 2"):
        seen.single_response()
    Context(untrained()).single_response()


def test_the_reference_shape_is_the_tasks(planted):
    np.testing.assert_array_equal(Context(planted).shape, np.eye(3))
    shape = Context(planted, LinearRegression(3, 8, covariance=kms(0.5))).shape
    assert np.trace(shape) == pytest.approx(3)
    assert abs(shape[0, 1]) > 0.05


def test_what_is_held_at_once_is_bounded():
    large = LinearRegression(100, 800)
    seen = Context(Run(ModelConfig(100), initial_weights(ModelConfig(100)), task=large))
    held = seen.holdable(30_000)
    assert 100 < held < 1_000
    assert held * 2 * 800 * 101 <= context.HELD_NUMBERS
    assert Context(plant(TASK, omega=[0.1], mu=[1.0]).run).holdable(30_000) == 30_000
