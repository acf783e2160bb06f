"""What was reproduced, kept in a folder, and the gallery made of it.

FOLDER/results/figure-4.json   each reproduction with its blocks
FOLDER/gallery.html            all of them on a page; gallery.md the same in Markdown
FOLDER/gallery.json            every claim, for programs
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from icl_interp.errors import CheckpointError
from icl_interp.formats.files import write_file
from icl_interp.reproduce.recipes import place_of
from icl_interp.reproduce.results import Reproduction
from icl_interp.serialization import dumps

SCHEMA_VERSION = 1


class Gallery:
    """The reproductions of one schedule in a folder; one that is made again takes the place of the older.

    Args:
        folder: where they are kept; it need not be there yet.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def keep(self, reproduction: Reproduction) -> Path:
        """Write it down.

        Raises:
            SaveError: the disk refused.
        """
        return write_file(self.folder / "results" / f"{reproduction.name}.json", _json(reproduction.to_data()))

    def kept(self) -> tuple[list[Reproduction], dict[str, str]]:
        """All that were kept, in the paper's order; and, by name, why one cannot be read."""
        found, lost = [], {}
        for file in sorted((self.folder / "results").glob("*.json"), key=lambda file: place_of(file.stem)):
            try:
                found.append(Reproduction.from_data(json.loads(file.read_text(encoding="utf-8"))))
            except (CheckpointError, OSError, ValueError, RecursionError) as error:
                lost[file.stem] = str(error)
        return found, lost

    def write(self, reproductions: Sequence[Reproduction]) -> Path:
        """Make the gallery of these; the path of the page.

        Raises:
            SaveError: the disk refused.
        """
        from icl_interp_reports import gallery_html, gallery_markdown

        data = [{**each.to_data(), "blocks": f"results/{each.name}.json"} for each in reproductions]
        write_file(
            self.folder / "gallery.json", _json({"schema_version": SCHEMA_VERSION, "reproductions": data}, indent=2)
        )
        write_file(self.folder / "gallery.md", gallery_markdown(reproductions))
        return write_file(self.folder / "gallery.html", gallery_html(reproductions))


def _json(data: object, indent: int | None = None) -> str:
    # An error may quote half a surrogate pair, which a file's name can hold; JSON can spell it.
    return dumps(data, indent=indent).encode(errors="backslashreplace").decode() + "\n"
