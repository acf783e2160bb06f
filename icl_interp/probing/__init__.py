"""The plugin door: everything a probe's author needs."""

from icl_interp.estimates import (
    Estimate,
    exact,
    mean_of,
    propagate,
    ratio_of,
    share_of,
    slope_of,
)
from icl_interp.probing.blocks import Bars, Block, Cell, Equation, Frames, Heatmap, Lines, Scatter, Surface, Table, Text
from icl_interp.probing.context import KINDS, Context, Need, NotApplicable, UndeclaredNeed
from icl_interp.probing.drawn import levelled, rounded, thinned
from icl_interp.probing.outcomes import Outcome, broken, run_probe
from icl_interp.probing.registry import AnyProbe, Probe, discover, fitting, load_file, probe
from icl_interp.probing.verdicts import DECISIVE, Status, Threshold, Verdict, decide, judge, not_applicable

__all__ = [
    "DECISIVE",
    "KINDS",
    "AnyProbe",
    "Bars",
    "Block",
    "Cell",
    "Context",
    "Equation",
    "Estimate",
    "Frames",
    "Heatmap",
    "Lines",
    "Need",
    "NotApplicable",
    "Outcome",
    "Probe",
    "Scatter",
    "Status",
    "Surface",
    "Table",
    "Text",
    "Threshold",
    "UndeclaredNeed",
    "Verdict",
    "broken",
    "decide",
    "discover",
    "exact",
    "fitting",
    "judge",
    "levelled",
    "load_file",
    "mean_of",
    "not_applicable",
    "probe",
    "propagate",
    "ratio_of",
    "rounded",
    "run_probe",
    "share_of",
    "slope_of",
    "thinned",
]
