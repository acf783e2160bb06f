"""What a notebook shows of an analysis, an outcome, runs, circuits and prompts: fragments without scripts.

They carry their own few styles, named so that they meet nothing else in the notebook, and colours that are read on
light and on dark backgrounds, since a notebook does not say which it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_interp.probing import Heatmap, Outcome, Table
from icl_interp_reports.population import runs_in_words
from icl_interp_reports.prompts import prompt_numbers, prompt_picture, prompt_sizes, prompt_table
from icl_interp_reports.svg import curve_svg
from icl_interp_reports.templating import environment
from icl_interp_reports.words import assumptions, coordinates, facts, head_rows, run_facts

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis
    from icl_interp.circuits import Circuits
    from icl_interp.records import Run, Runs
    from icl_interp.reproduce.results import Reproduction
    from icl_interp.tasks import Prompt


_CIRCUITS = {
    "KQ": "rows are a key's coordinates, columns the query's; hatched is what reaches no prediction.",
    "OV": "rows are coordinates written, columns those read; hatched is what reaches no prediction.",
}


def analysis_in_notebook(analysis: Analysis) -> str:
    """Settings, what belongs on a first screen, and every claim."""
    first = [b for o in analysis for b in o.blocks if isinstance(b, Table | Heatmap) and b.first_screen]
    return _fragment(
        "analysis", analysis=analysis, facts=facts(analysis), assumed=assumptions(analysis.provenance), first=first
    )


def outcome_in_notebook(outcome: Outcome) -> str:
    """One probe's claims and all that it shows; curves and bars as their numbers."""
    return _fragment("outcome", outcome=outcome)


def run_in_notebook(run: Run) -> str:
    """Settings, the loss over the records, and each head's ω and μ."""
    loss = run.dynamics.loss if run.dynamics is not None else None
    curve = curve_svg(loss, "loss over the recorded points of the training") if loss is not None else ""
    return _fragment("run", facts=run_facts(run), assumed=assumptions(run), curve=curve, heads=_heads(run.circuits()))


def runs_in_notebook(runs: Runs) -> str:
    """What the first runs share, and a row for each; no more folders are opened than there are rows."""
    said, table = runs_in_words(runs)
    return _fragment("runs", facts=said, table=table if table.rows else None)


def prompt_in_notebook(prompt: Prompt) -> str:
    """Sizes, the range of each of the four tensors, and the first prompts as heat maps."""
    said = {"prompts": f"{len(prompt):,}, each with {prompt_sizes(prompt)}", "numbers": prompt_numbers(prompt)}
    picture = prompt_picture(prompt)
    return _fragment("prompt", facts=said, table=prompt_table(prompt), pictures=[picture] if picture else [])


def circuits_in_notebook(circuits: Circuits) -> str:
    """KQ and OV of every head, inert parts hatched, and each head's ω and μ."""
    pictures, labels = [], coordinates(circuits.dim, circuits.n_outputs)
    for layer in range(circuits.n_layers):
        where = f" of layer {layer}" if circuits.n_layers > 1 else ""
        before = f"layer {layer}, " if circuits.n_layers > 1 else ""
        panels = tuple(f"{before}head {head}" for head in range(circuits.n_heads))
        pictures += [
            Heatmap(matrices[layer], panels, f"{name} of every head{where}: {says}", name, labels, labels)
            for (name, says), matrices in zip(_CIRCUITS.items(), circuits.masked(), strict=True)
        ]
    return _fragment("circuits", pictures=pictures, heads=_heads(circuits))


def reproduction_in_notebook(reproduction: Reproduction) -> str:
    """The paper's claims beside ours, and our figure; curves and bars as their numbers."""
    return _fragment("reproduction", reproduction=reproduction)


def _heads(circuits: Circuits) -> Table:
    columns, rows = head_rows(circuits)
    return Table(columns, rows, alt="ω and μ of every head.")


def _fragment(kind: str, **content: object) -> str:
    return environment().get_template("notebook.html").render(kind=kind, **content)
