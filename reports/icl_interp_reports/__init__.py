"""How an analysis is written down.  Reads probing's and analysis' data; computes nothing."""

from icl_interp_reports.calibration import calibration_html
from icl_interp_reports.calibration_text import calibration_markdown
from icl_interp_reports.comparison import comparison_html, comparison_text
from icl_interp_reports.gallery import gallery_html
from icl_interp_reports.html import to_html
from icl_interp_reports.markdown import gallery_markdown, to_markdown
from icl_interp_reports.notebook import (
    analysis_in_notebook,
    circuits_in_notebook,
    outcome_in_notebook,
    prompt_in_notebook,
    reproduction_in_notebook,
    run_in_notebook,
    runs_in_notebook,
)
from icl_interp_reports.sweep import sweep_html
from icl_interp_reports.terminal import (
    analysis_in_a_line,
    circuits_in_a_line,
    circuits_text,
    outcome_in_a_line,
    prompt_in_a_line,
    prompt_text,
    reproduction_in_a_line,
    reproduction_text,
    run_in_a_line,
    run_text,
    runs_in_a_line,
    runs_text,
    to_text,
)

__all__ = [
    "analysis_in_a_line",
    "analysis_in_notebook",
    "calibration_html",
    "calibration_markdown",
    "circuits_in_a_line",
    "circuits_in_notebook",
    "circuits_text",
    "comparison_html",
    "comparison_text",
    "gallery_html",
    "gallery_markdown",
    "outcome_in_a_line",
    "outcome_in_notebook",
    "prompt_in_a_line",
    "prompt_in_notebook",
    "prompt_text",
    "reproduction_in_a_line",
    "reproduction_in_notebook",
    "reproduction_text",
    "run_in_a_line",
    "run_in_notebook",
    "run_text",
    "runs_in_a_line",
    "runs_in_notebook",
    "runs_text",
    "sweep_html",
    "to_html",
    "to_markdown",
    "to_text",
]
