"""Where users look for it: how an `Analysis` is written down (see the package `icl_interp_reports`)."""

from icl_interp_reports import to_html, to_markdown

__all__ = ["to_html", "to_markdown"]
