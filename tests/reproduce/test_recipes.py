"""What can be reproduced, in which order, and what becomes of what cannot."""

import pytest

from icl_interp.errors import ConfigError
from icl_interp.probing import Text
from icl_interp.reproduce import Bench, Claim, Gallery, Schedule, recipe, recipes, reproduce
from icl_interp.reproduce import recipes as recipes_module  # the function: the module is found through it
from icl_interp.reproduce.trainings import SCHEDULES, trainings

TINY = Schedule("tiny", steps=60, seeds=2, basin_seeds=3, basin_steps=40, prompts=500)
FIGURES = [f"figure-{number}" for number in (1, *range(3, 23))]


@pytest.fixture
def own_recipes(monkeypatch):
    """Three figures of our own, and no others."""
    import sys

    module = sys.modules[recipes_module.__module__]
    recipes()
    monkeypatch.setattr(module, "_known", {})

    @recipe("figure-10", "Ten", "Figure 10")
    def ten(bench):
        return [Claim("it is ten", "reproduced", "It is.")], [Text("ten")]

    @recipe("theorem-4.2", "Broken", "Theorem 4.2")
    def broken(bench):
        raise RuntimeError("no luck")

    @recipe("figure-9", "Nine", "Figure 9", runs=["h1"])
    def nine(bench):
        return [Claim("it was trained", "shown", f"{bench.run('h1').step} steps.")], []


def test_all_of_the_paper_is_there_in_its_order():
    sparse = ["sparse-heads", "sparse-probing", "sparse-pruning", "sparse-risk"]
    rest = ["same-sign", *sparse, "superposition-map", "theorem-4.2"]
    assert list(recipes()) == [*FIGURES, "table-1", "table-2", *rest]


def test_every_recipe_knows_its_trainings():
    known = trainings(SCHEDULES["quick"])
    for name, each in recipes().items():
        assert each.trained(SCHEDULES["quick"]) or not each.runs, name
        assert set(each.trained(SCHEDULES["quick"])) <= known.keys(), name
        assert each.title
        assert each.source


def test_each_comes_as_soon_as_it_is_made_and_a_crash_stops_nothing(own_recipes, tmp_path):
    made = reproduce(["theorem-4.2", "figure-10", "figure-9"], Bench(tmp_path, TINY))
    nine, ten, broken = next(made), next(made), next(made)
    assert (nine.name, ten.name, broken.name) == ("figure-9", "figure-10", "theorem-4.2")
    assert nine.claims[0].sentence == "60 steps."
    assert nine.runs == {"h1": Bench(tmp_path, TINY).described("h1")}
    assert (ten.blocks[0].text, ten.failure, ten.schedule) == ("ten", "", "tiny")
    assert (broken.claims, broken.blocks, broken.failure) == ((), (), "RuntimeError: no luck")
    assert "raise RuntimeError" in broken.details


def test_trainings_by_the_beginning_of_their_name(own_recipes, tmp_path):
    @recipe("figure-2", "Two", "Figure 2", runs=["map-n2-full-*", "h1"])
    def two(bench):
        return [Claim("there are five of two", "shown", f"{len(bench.runs('map-n2-full-h5'))} runs.")], []

    few = Schedule("few", 60, 2, 3, 40, 500, map_seeds=2, map_steps=40)
    each = recipes()["figure-2"]
    assert each.trained(few) == [*(f"map-n2-full-h{heads}" for heads in range(1, 6)), "h1"]
    assert len(each.trained(SCHEDULES["paper"])) == 6
    bench = Bench(tmp_path, few)
    made = each(bench)
    assert made.claims[0].sentence == "2 runs."
    first, last = bench.described("map-n2-full-h1"), bench.described("map-n2-full-h5")
    assert made.runs == {"map-n2-full-*": f"5 populations, from {first} … to {last}", "h1": bench.described("h1")}
    assert sorted(path.name for path in (tmp_path / "runs" / "few").iterdir()) == sorted(each.trained(few))


def test_all(own_recipes, tmp_path):
    assert [each.name for each in reproduce(["all"], Bench(tmp_path, TINY))] == ["figure-9", "figure-10", "theorem-4.2"]


def test_the_command_that_makes_it_again(own_recipes, tmp_path):
    (quick,) = reproduce(["figure-10"], Bench(tmp_path, "quick"))
    assert quick.command == "icl-interp reproduce figure-10 --schedule quick"
    (tiny,) = reproduce(["figure-10"], Bench(tmp_path, TINY))
    assert tiny.command == f"list(reproduce(['figure-10'], Bench(folder, {TINY!r})))"


@pytest.mark.parametrize(
    ("names", "said"),
    [(["figure-2", "figure-9"], "nothing called figure-2 can"), ([], r"nothing called \(no name\) can")],
)
def test_an_unknown_name(own_recipes, tmp_path, names, said):
    with pytest.raises(
        ConfigError, match=f"{said} be reproduced: name some of figure-9, figure-10, theorem-4.2, or all"
    ):
        reproduce(names, Bench(tmp_path, TINY))


def test_ctrl_c_is_no_failure_of_a_figure(own_recipes, tmp_path):
    @recipe("figure-1", "One", "Figure 1")
    def one(bench):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(reproduce(["all"], Bench(tmp_path, TINY)))


def test_a_gallery_keeps_what_was_made_before(own_recipes, tmp_path):
    gallery, bench = Gallery(tmp_path / "gallery"), Bench(tmp_path, TINY)
    assert gallery.kept() == ([], {})
    for each in reproduce(["figure-10", "theorem-4.2"], bench):
        gallery.keep(each)
    for each in reproduce(["figure-9", "figure-10"], bench):
        gallery.keep(each)
    kept, lost = gallery.kept()
    assert [each.name for each in kept] == ["figure-9", "figure-10", "theorem-4.2"]
    assert lost == {}
    (gallery.folder / "results" / "figure-9.json").write_text("{")
    kept, lost = gallery.kept()
    assert [each.name for each in kept] == ["figure-10", "theorem-4.2"]
    assert list(lost) == ["figure-9"]
    page = gallery.write(kept)
    assert page.name == "gallery.html"
    assert sorted(file.name for file in page.parent.glob("gallery.*")) == ["gallery.html", "gallery.json", "gallery.md"]
