"""Figures 16 to 19 and Table 2: each claim is reproduced by populations of which it is true, and by no others."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from icl_interp.config import ModelConfig
from icl_interp.probing import Table
from icl_interp.records import Dynamics, Run, Runs, TrainConfig
from icl_interp.reproduce import Bench, Reproduction, Schedule, recipes, task_readings
from icl_interp.reproduce import task_quantities as quantities
from icl_interp.reproduce.figures import tasks
from icl_interp.reproduce.figures.superposition import PRINTED_MU, PRINTED_OMEGA
from icl_interp.reproduce.task_readings import Population, approximate_optimum, risk_optima
from icl_interp.reproduce.trainings import TWO_TASKS
from icl_interp.sharing import own_steps, shared_steps
from icl_interp.task_risks import task_moments
from icl_interp.testing import plant_tasks
from icl_interp.testing.planting import hidden_weights

SEEDS = 6
STEPS = np.array([0, 1_000, *range(420_000, 500_001, 20_000)])
WHOLE = Schedule("whole", 500_000, 2, 3, 40, 16_384, task_seeds=SEEDS)
TINY = Schedule("tiny", 60, 2, 3, 40, 8_192, task_seeds=3)
USES = TWO_TASKS.signal_scales.T > 0
_, LEVEL = quantities.levels(USES)
FIGURES = ("figure-16", "figure-17", "figure-18", "figure-19", "table-2")
ETA = float(own_steps(TWO_TASKS).max())
GAMMA = 0.14


@pytest.fixture(scope="module")
def optima(tmp_path_factory):
    """Where one head's risk is least, once for all tests that are about something else."""
    bench = Bench(tmp_path_factory.mktemp("optima"), WHOLE)
    return risk_optima(TWO_TASKS, bench.prompts("two tasks, one head", TWO_TASKS))


@pytest.fixture(autouse=True)
def less_to_compute(monkeypatch, optima):
    monkeypatch.setattr(task_readings, "PROMPTS", 1_024)
    monkeypatch.setattr(tasks, "risk_optima", lambda task, prompts: optima)


# --- Populations with known heads -------------------------------------------------------------------------------------


def ended(omega, mu, seed=0, *, loss=0.205, noise=0.002, steps=STEPS) -> Run:
    """A run whose iterates scatter about these heads (heads × features, heads × tasks)."""
    omega, mu = np.asarray(omega, float), np.asarray(mu, float)
    model, rng = ModelConfig(TWO_TASKS.dim, TWO_TASKS.n_outputs, len(omega)), np.random.default_rng(seed)
    sizes = 1 + noise * rng.standard_normal((len(steps), 2))
    diagonals = [a * omega[:, :, None] * np.eye(TWO_TASKS.dim) for a, _ in sizes]
    moments = [hidden_weights(model, KQ, b * mu, 1.0, 0.0, rng) for KQ, (_, b) in zip(diagonals, sizes, strict=True)]
    circuits = [Run(model, weights).circuits() for weights in moments]
    dynamics = Dynamics(
        steps,
        loss * (1 + 1e-4 * rng.standard_normal(len(steps))),
        np.stack([c.omega for c in circuits]),
        np.stack([c.mu for c in circuits]),
        steps,
        {name: torch.stack([weights[name] for weights in moments]) for name in moments[0]},
    )
    training = TrainConfig(TWO_TASKS, model, int(steps[-1]), seed=seed, data_seed=seed % 4)
    return Run(model, moments[-1], TWO_TASKS, training, dynamics, int(steps[-1]), seed)


def one_head(low=0.4235, high=0.5091, mu=1.6384):
    """One head, by default where its risk is least as Monte Carlo over 20,000 prompts has it."""
    return np.array([[low, low, high, high, low, low]]), np.full((1, 2), mu)


def shared_pair(unlike=0.0):
    """Two heads with the steps of mode II."""
    omega = GAMMA * shared_steps(TWO_TASKS) / ETA
    mu = ETA / (2 * GAMMA)
    return np.array([(1 + unlike) * omega, (unlike - 1) * omega]), np.array([[mu, mu], [-mu, -mu]])


def dedicated(gamma=GAMMA):
    """A pair for each task."""
    omega = gamma * np.repeat(USES, 2, axis=0) * np.array([[1], [-1], [1], [-1]])
    return omega, ETA / (2 * gamma) * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])


def superposed(seed):
    found = plant_tasks(TWO_TASKS, "IV", permute=False, seed=seed)
    return found.omega, found.mu


def runs_of(heads, **options) -> Runs:
    """A population; `heads` are the same for all, or made from the seed."""
    return Runs([ended(*(heads(seed) if callable(heads) else heads), seed, **options) for seed in range(SEEDS)])


GOOD = {
    "two-tasks-h1": lambda: runs_of(one_head(), loss=0.396),
    "two-tasks-h2": lambda: runs_of(shared_pair(), loss=0.239),
    "two-tasks-h3": lambda: runs_of(superposed),
    "two-tasks-h4": lambda: runs_of(dedicated()),
}


class Planted(Bench):
    """A bench whose trainings ended as they are told; otherwise as they should."""

    def __init__(self, folder, runs, schedule=WHOLE):
        super().__init__(folder, schedule)
        self.planted = runs

    def runs(self, name):
        if name not in self.planted:
            self.planted[name] = GOOD[name]()
        return self.planted[name]


def made(tmp_path, name, runs=None, schedule=WHOLE, of=None) -> Reproduction:
    """A figure; `runs` are those of `of`, by default of the first training that it asks for."""
    each = recipes()[name]
    planted = {} if runs is None else {of or each.runs[0]: runs}
    found = each(Planted(tmp_path, planted, schedule))
    assert not found.failure, found.details
    return found


def status_of(found: Reproduction, words: str) -> str:
    (status,) = {claim.status for claim in found.claims if words in claim.claim}
    return status


# --- Numbers of heads -------------------------------------------------------------------------------------------------


def test_the_printed_table_solves_the_conditions():
    omega = np.stack([PRINTED_OMEGA[users] for users in quantities.users_of(USES)], axis=1)
    steps = PRINTED_MU.T @ omega
    np.testing.assert_allclose(steps[0], [0.906, 0.906, 0.915, 0.915, 0.009, 0.009], atol=6e-4)
    np.testing.assert_allclose(steps[1], [0.009, 0.009, 0.907, 0.907, 0.927, 0.927], atol=6e-4)
    assert quantities.off_steps(own_steps(TWO_TASKS))(omega, PRINTED_MU) == pytest.approx(0.9268 / ETA - 1, abs=1e-3)
    assert quantities.off_support(USES)(omega, PRINTED_MU) == pytest.approx(0.0097, abs=3e-4)
    assert quantities.imbalance(omega, PRINTED_MU) == pytest.approx(0.0554 / 13.7854, abs=1e-5)


def test_one_division_of_the_work_in_any_order_under_any_names():
    omega, mu = superposed(0)
    patterns = [*quantities.group_means(omega, USES)]
    assert patterns == [(0,), (1,), (0, 1)]

    def parts_of(omega, mu):
        return quantities.parts(quantities.group_means(omega, USES), mu)

    one = parts_of(omega, mu)
    for heads in permutations(range(3)):
        order = list(heads)
        assert quantities.distance(one, parts_of(omega[order], mu[order]), patterns) == pytest.approx(0, abs=1e-12)
    assert quantities.distance(one, parts_of(-2 * omega, -mu / 2), patterns) == pytest.approx(0, abs=1e-12)
    renamed = parts_of(omega[:, [5, 4, 2, 3, 1, 0]], mu[:, ::-1])
    assert quantities.distance(one, renamed, patterns) == pytest.approx(0, abs=1e-12)
    assert quantities.distance(one, parts_of(*superposed(1)), patterns) > 0.05
    np.testing.assert_allclose(one.sum(0), [[ETA, 0, ETA], [0, ETA, ETA]], atol=1e-9)


def test_numbers_of_dedicated_heads():
    omega, mu = dedicated()
    assert quantities.pairs_opposition(omega, mu) == quantities.leak(omega, mu) == 0
    assert quantities.misread(USES)(omega, mu) == 0
    assert quantities.own_sizes(omega, mu, USES) == (pytest.approx(GAMMA), pytest.approx(ETA / 2 / GAMMA))
    assert quantities.pairs_opposition(omega, mu[[0, 2, 1, 3]]) > 0.5  # heads of one sign, and pairs torn apart
    assert quantities.misread(USES)(omega[:, ::-1], mu) == 16  # four features of each head


def test_one_head_is_best_where_no_other_is_better():
    prompts = TWO_TASKS.sample(2_048, generator=torch.Generator().manual_seed(0))
    (best,), (risk,) = risk_optima(TWO_TASKS, [prompts])

    def risk_at(low, high):
        moments = task_moments(one_head(low, high)[0], prompts, TWO_TASKS)
        return np.mean([each.value for each in moments.risks(moments.best_mu())])

    assert risk == pytest.approx(risk_at(*best[:2]))
    for low, high in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
        assert risk_at(best[0] + low, best[1] + high) > risk
    np.testing.assert_allclose(approximate_optimum(TWO_TASKS), [0.381, 0.457, 1.750], atol=1e-3)


# --- Populations of which all is true ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_population_of_which_all_is_true(tmp_path, name):
    found = made(tmp_path, name)
    statuses = {claim.claim: claim.status for claim in found.claims}
    shown = ("where the approximate loss", "the entries of Table 2")
    assert {status for claim, status in statuses.items() if not claim.startswith(shown)} == {"reproduced"}, statuses
    pictures = 4 if name == "figure-16" else 5  # the μ of one head are no picture
    kinds = (
        ["Table", "Table", "Table", "Text"] if name == "table-2" else [*["Heatmap"] * pictures, *["Table"] * 2, "Text"]
    )
    assert [type(block).__name__ for block in found.blocks] == kinds
    assert Reproduction.from_data(found.to_data()).to_data() == found.to_data()


def test_removing_heads_confirms_planted_modes(tmp_path):
    bench = Planted(tmp_path, {})
    for name, mode in zip(GOOD, ("I", "II", "IV", "III"), strict=True):
        population = Population.of(bench, name)
        assert {run.sharing.mode for run in population.runs} == {mode}
        assert all(run.confirmed for run in population.runs)
        assert population.drawn(mode) == 0


# --- Populations of which one thing is not true -----------------------------------------------------------------------


def scaled(heads, *, omega=1.0, mu=1.0):
    """The same with factors on ω or μ, in any shape that fits."""
    return heads[0] * np.array(omega), heads[1] * np.array(mu)


def tilted(heads, task, feature, amount):
    """With a step of `amount` more for a task on a feature: ω moves where it changes nothing else to first order."""
    omega, mu = (part.copy() for part in heads)
    wanted = np.zeros(mu.shape[1])
    wanted[task] = amount
    omega[:, feature] += np.linalg.pinv(mu.T) @ wanted
    return omega, mu


def bulged():
    """Heads of dedicated pairs that share a large ω off their support, which cancels between them."""
    omega, mu = dedicated()
    omega[:2, 4:] += 0.6 * GAMMA
    return omega, mu


@pytest.mark.parametrize(
    ("name", "heads", "claim"),
    [
        ("figure-16", one_head(0.46, 0.46), "ω is larger"),
        ("figure-16", scaled(one_head(), omega=[1.05, 0.95, 1, 1, 1, 1]), "on either level"),
        ("figure-16", scaled(one_head(), mu=[1.05, 0.95]), "μ is the same"),
        ("figure-16", one_head(0.3813, 0.4574, 1.7503), "where its risk is least"),
        ("figure-17", scaled(shared_pair(), mu=1.05), "the steps E are"),
        ("figure-17", scaled(shared_pair(), omega=[1, 1, 1.05, 1.05, 1, 1]), "larger on features of both"),
        ("figure-17", scaled(shared_pair(), mu=[[1.1], [0.9]]), "Σμ is zero"),
        ("figure-17", shared_pair(unlike=0.3), "heads are opposite"),
        ("figure-17", tilted(scaled(shared_pair(), mu=[[1.02, 1], [1, 1.02]]), 0, 0, 0.1), "solved alike"),
        ("figure-18", scaled(dedicated(), mu=[[1.1], [0.9], [1], [1]]), "Σμ is zero"),
        ("figure-18", scaled(dedicated(), mu=0.95), "on its own features"),
        ("figure-18", tilted(dedicated(), 0, 5, 0.06), "on the others' features"),
        ("figure-18", scaled(dedicated(), omega=[[1.3], [0.7], [1], [1]]), "two opposite heads"),
        ("figure-18", (dedicated()[0], dedicated()[1] + 0.2 * dedicated()[1][:, ::-1]), "OV serves one"),
        ("figure-18", bulged(), "supports can be read"),
        ("figure-18", dedicated(gamma=0.2), "|ω| is"),
        ("figure-18", dedicated(gamma=0.2), "|μ| is"),
        ("figure-19", scaled(superposed(3), mu=0.95), "on its own features"),
        ("figure-19", tilted(superposed(3), 1, 0, 0.06), "on the others' features"),
        ("figure-19", superposed(3), "not unique"),
        ("table-2", scaled(superposed(3), mu=0.95), "on its own features"),
        ("table-2", superposed(3), "not unique"),
        ("table-2", scaled(superposed(3), omega=[1.1, 0.9, 1, 1, 1, 1]), "ω is one number"),
    ],
)
def test_a_population_of_which_a_claim_is_not_true(tmp_path, name, heads, claim):
    assert status_of(made(tmp_path, name, runs_of(heads)), claim) == "differs"


def test_superposition_that_does_not_balance(tmp_path):
    def heads(seed):
        omega, mu = superposed(seed)
        return omega, mu + 0.06 * np.abs(mu).mean()

    assert status_of(made(tmp_path, "figure-19", runs_of(heads)), "Σμ is zero") == "differs"


def test_a_single_run_that_is_off_is_found(tmp_path):
    runs = [*GOOD["two-tasks-h4"]()]
    runs[5] = ended(*scaled(dedicated(), mu=0.95), 5)
    found = made(tmp_path, "figure-18", Runs(runs))
    (claim,) = (claim for claim in found.claims if "on its own features" in claim.claim)
    assert claim.status == "differs"
    assert "in seed 5" in claim.sentence


def test_superposition_that_costs_something(tmp_path):
    found = made(tmp_path, "figure-19", runs_of(superposed, loss=0.21))
    assert status_of(found, "as well as four") == "differs"


def test_heads_that_serve_one_task_by_what_removing_them_does(tmp_path):
    """Their late iterates say superposition, the final models do not."""
    runs = []
    for seed in range(SEEDS):
        late, last = ended(*superposed(seed), seed), ended(*dedicated_three(), seed)
        runs.append(replace(late, weights=last.weights, step=None))  # the last snapshot stays what it was
    assert status_of(made(tmp_path, "figure-19", Runs(runs)), "a head serves several tasks") == "differs"


def dedicated_three():
    """A pair for one task and a single head for the other."""
    omega, mu = dedicated()
    return omega[:3], mu[:3]


# --- Modes ------------------------------------------------------------------------------------------------------------


def mixed(others) -> Runs:
    """A population whose last runs are in another mode."""
    runs = [*GOOD["two-tasks-h2"]()]
    for seed in range(SEEDS - others, SEEDS):
        runs[seed] = ended(np.abs(shared_pair()[0]), np.full((2, 2), 1.6), seed, loss=0.4)
    return Runs(runs)


def test_a_single_run_elsewhere_refutes_always(tmp_path):
    found = made(tmp_path, "figure-17", mixed(1))
    assert status_of(found, "in mode II always") == "does_not_hold"
    assert status_of(found, "in mode II, ") == "undecided"  # five of six: 36 % to 100 %
    table = [block for block in found.blocks if isinstance(block, Table)][-1]
    assert [row[1] for row in table.rows] == [1, 5]
    assert [row[0][:3] for row in table.rows] == ["I: ", "II:"]


def test_most_runs_elsewhere(tmp_path):
    found = made(tmp_path, "figure-17", mixed(SEEDS))
    assert status_of(found, "in mode II, ") == "differs"
    assert status_of(found, "the steps E are") == "undecided"  # there is nothing to look at
    assert all("No run" in claim.sentence for claim in found.claims if claim.status == "undecided")


@pytest.mark.parametrize("name", FIGURES)
def test_no_run_in_the_mode(tmp_path, name):
    elsewhere = {
        "figure-16": None,
        "figure-17": (np.abs(shared_pair()[0]), np.full((2, 2), 1.6)),
        "figure-18": (np.tile(shared_pair()[0], (2, 1)), np.tile(shared_pair()[1], (2, 1)) / 2),
        "figure-19": dedicated_three(),
        "table-2": dedicated_three(),
    }[name]
    heads = (np.abs(one_head()[0]), np.array([[1, -1]])) if elsewhere is None else elsewhere
    statuses = {claim.status for claim in made(tmp_path, name, runs_of(heads)).claims}
    assert "reproduced" not in statuses


def test_a_state_between_modes_is_described(tmp_path):
    found = made(tmp_path, "figure-19", Runs([*GOOD["two-tasks-h3"]()[:-1], ended(*dedicated_three(), SEEDS - 1)]))
    table = [block for block in found.blocks if isinstance(block, Table)][-1]
    assert [row[0] for row in table.rows] == ["IV: superposition", "between modes: Σμ = 0 for 1 of 2 tasks"]
    assert "Σμ = 0 for 1 of 2 tasks" in next(c.sentence for c in found.claims if "in mode IV always" in c.claim)


# --- Too few, too short, untrained ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_short_schedule_refutes_nothing(tmp_path, name):
    heads = {
        "figure-16": one_head(0.46, 0.46),
        "figure-17": scaled(shared_pair(), mu=0.9),
        "figure-18": scaled(dedicated(), mu=0.9),
    }.get(name, scaled(superposed(3), mu=0.9))
    short = replace(WHOLE, steps=100_000)
    found = made(tmp_path, name, runs_of(heads), short)
    assert {claim.status for claim in found.claims} <= {"reproduced", "not_reached", "shown"}
    assert "not_reached" in {claim.status for claim in found.claims}


def test_a_single_seed_decides_little(tmp_path):
    found = made(tmp_path, "figure-19", Runs([GOOD["two-tasks-h3"]()[0]]))
    for words in ("the share of seeds", "as well as four", "not unique", "a head serves"):
        assert status_of(found, words) == "undecided"


def test_iterates_that_scatter_decide_nothing(tmp_path):
    found = made(tmp_path, "figure-18", runs_of(dedicated(), noise=0.2))
    assert status_of(found, "on its own features") != "reproduced"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), TINY, progress=False)


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_not_trained_reproduces_nothing(bench, monkeypatch, name):
    monkeypatch.setattr(tasks, "risk_optima", risk_optima)
    found = recipes()[name](bench)
    assert not found.failure, found.details
    assert "reproduced" not in {claim.status for claim in found.claims}
    assert Reproduction.from_data(found.to_data()).to_data() == found.to_data()
