"""How an analysis is written down.  Reads probing's and analysis' data; computes nothing."""

from icl_interp_reports.markdown import to_markdown
from icl_interp_reports.terminal import to_text

__all__ = ["to_markdown", "to_text"]
