"""A page that opens from disk with the network off: templates, styles, figures and plotly.js in one text.

Words, tables and small matrices are in the page itself, so that it reads without scripts; a script draws plotly figures
over that layer.  Everything that comes from elsewhere is escaped by the template engine, and the page's policy lets no
script run but its own two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from icl_interp.probing import Block
from icl_interp_reports.figures import figure
from icl_interp_reports.plotlyjs import packed, script_hash, source_hash
from icl_interp_reports.templating import asset, environment


def drawn(blocks: Mapping[str, Block]) -> dict[str, str]:
    """The figures of those blocks that have one, as JSON for the page's script."""
    figures = {name: figure(block) for name, block in blocks.items()}
    return {name: script_json(spec) for name, spec in figures.items() if spec is not None}


def filled(template: str, figures: Mapping[str, str], *, first: str = "", **content: object) -> str:
    """The page that a template which extends `page.html` makes of its content; `version` is who wrote it.

    `first` names a script of the page's own, which runs before the one of all pages and may make figures.
    """
    script, own = asset("report.js"), asset(first) if first else ""
    draws = bool(figures or own)
    scripts = [f"'{script_hash(each)}'" for each in (own, script) if each] + ([f"'{source_hash()}'"] if draws else [])
    text = (
        environment()
        .get_template(template)
        .render(
            **content,
            figures="{" + ",".join(f'"{name}":{text}' for name, text in figures.items()) + "}",
            pictures=figures,
            plotly=packed() if draws else None,
            scripts=" ".join(scripts),
            script=script,
            own_script=own,
            style=asset("report.css"),
        )
    )
    return text.encode(errors="replace").decode()


def script_json(data: object) -> str:
    """JSON that cannot end the script element it stands in, and holds printable characters only."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
