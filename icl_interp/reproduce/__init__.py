"""Papers done again (arXiv 2503.12734, 2408.04532): each figure and table by name, their numbers beside ours.

    bench = Bench("runs/reproduce", "quick")
    found = list(reproduce(["figure-6", "table-1"], bench))
    found[0]                                    # in a notebook: the claims, and the figure
    Gallery("runs/reproduce/quick").write(found)  # gallery.html, and the same as Markdown and JSON

A figure is one function in `figures/`, declared with `@recipe`; it asks the bench for the runs it needs, which are
trained once and shared, and answers with claims and blocks.  `icl-interp reproduce` does all of this in one command.
"""

from icl_interp.reproduce.bench import Bench
from icl_interp.reproduce.gallery import Gallery
from icl_interp.reproduce.recipes import Recipe, recipe, recipes, reproduce
from icl_interp.reproduce.results import Claim, Reproduction, Status, compare, within, worst
from icl_interp.reproduce.trainings import MAIN, SCHEDULES, Schedule, ScheduleName

__all__ = [
    "MAIN",
    "SCHEDULES",
    "Bench",
    "Claim",
    "Gallery",
    "Recipe",
    "Reproduction",
    "Schedule",
    "ScheduleName",
    "Status",
    "compare",
    "recipe",
    "recipes",
    "reproduce",
    "within",
    "worst",
]
