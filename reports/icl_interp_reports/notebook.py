"""What a notebook shows of an analysis, an outcome, a run and circuits: fragments without scripts.

They carry their own few styles, named so that they meet nothing else in the notebook, and colours that are read on
light and on dark backgrounds, since a notebook does not say which it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_interp.probing import Heatmap, Outcome, Table
from icl_interp_reports.svg import curve_svg
from icl_interp_reports.templating import environment
from icl_interp_reports.words import facts, head_rows, run_facts

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis
    from icl_interp.circuits import Circuits
    from icl_interp.records import Run


def analysis_in_notebook(analysis: Analysis) -> str:
    """Settings, what belongs on a first screen, and every claim."""
    first = [b for o in analysis for b in o.blocks if isinstance(b, Table | Heatmap) and b.first_screen]
    return _fragment("analysis", analysis=analysis, facts=facts(analysis), first=first)


def outcome_in_notebook(outcome: Outcome) -> str:
    """One probe's claims and all that it shows; curves and bars as their numbers."""
    return _fragment("outcome", outcome=outcome)


def run_in_notebook(run: Run) -> str:
    """Settings, the loss over the records, and each head's ω and μ."""
    loss = run.dynamics.loss if run.dynamics is not None else None
    curve = curve_svg(loss, "loss over the recorded points of the training") if loss is not None else ""
    return _fragment("run", facts=run_facts(run), curve=curve, heads=_heads(run.circuits()))


def circuits_in_notebook(circuits: Circuits) -> str:
    """KQ and OV of every head, inert parts hatched, and each head's ω and μ."""
    pictures = []
    for layer in range(circuits.n_layers):
        where = f"layer {layer}, " if circuits.n_layers > 1 else ""
        panels = tuple(f"{where}head {head}" for head in range(circuits.n_heads))
        pictures += [
            Heatmap(matrices[layer], panels, alt=f"{where}{name} of every head.", title=name)
            for name, matrices in zip(("KQ", "OV"), circuits.masked(), strict=True)
        ]
    return _fragment("circuits", pictures=pictures, heads=_heads(circuits))


def _heads(circuits: Circuits) -> Table:
    columns, rows = head_rows(circuits)
    return Table(columns, rows, alt="ω and μ of every head.")


def _fragment(kind: str, **content: object) -> str:
    return environment().get_template("notebook.html").render(kind=kind, **content)
