"""A batch of prompts in words and pictures: its sizes, the ranges of its numbers, and the first few as heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from icl_interp.probing import Cell, Heatmap, Table
from icl_interp_reports.svg import MOST_CELLS
from icl_interp_reports.words import brief, coordinates

if TYPE_CHECKING:
    from icl_interp.tasks import Prompt

SHOWN = 3  # prompts that are drawn
ROOM = 16, 8, 40  # the most covariates, responses and demonstrations of a drawn prompt
_PARTS = {"x": "covariates", "y": "responses", "x_q": "the query's covariates", "y_q": "its response, asked for"}
_UNREADABLE = (RuntimeError, TypeError)  # a tensor on the meta device, or inside a transformation, has no numbers


def prompt_sizes(prompt: Prompt) -> str:
    """L, d and N."""
    return f"L = {prompt.length:,}, d = {prompt.x.shape[-1]:,}, N = {prompt.y.shape[-1]:,}"


def prompt_numbers(prompt: Prompt) -> str:
    """What kind of numbers they are and where; several kinds where the four tensors differ."""
    tensors = (getattr(prompt, name) for name in _PARTS)
    return ", ".join(dict.fromkeys(f"{str(t.dtype).removeprefix('torch.')} on {t.device}" for t in tensors))


def prompt_table(prompt: Prompt) -> Table:
    """Shape, range and mean of each of the four tensors, over what is finite; and what is wrong, if anything is."""
    columns = ("part", "what", "shape", "smallest", "largest", "mean", "trouble")
    rows = [_row(prompt, name) for name in _PARTS]
    told = [at for at in range(len(columns)) if any(row[at] not in (None, "") for row in rows)]
    shown = tuple(tuple(row[at] for at in told) for row in rows)
    return Table(tuple(columns[at] for at in told), shown, alt="What the prompts hold.")


def prompt_picture(prompt: Prompt) -> Heatmap | None:
    """The first prompts, a column for each demonstration and one for the query; None if there is nothing to draw.

    What a picture has no room for is left out, and its text says so.
    """
    d, N, L = (min(size, room) for size, room in zip(_sizes(prompt), ROOM, strict=True))
    first = prompt[: min(SHOWN, MOST_CELLS // max((d + N) * (L + 1), 1))]
    try:
        x, y, x_q, y_q = (_read(first, name) for name in _PARTS)
    except _UNREADABLE:
        return None
    demonstrations = np.concatenate([x[:, :L, :d], y[:, :L, :N]], -1)
    query = np.concatenate([x_q[:, :d], np.full((len(first), N), np.nan)], -1)
    columns = np.concatenate([demonstrations, query[:, None]], 1)
    if not columns.size:
        return None
    return Heatmap(
        columns.swapaxes(1, 2),
        tuple(f"prompt {i}, y_q = {_written(asked)}" for i, asked in enumerate(y_q)),
        alt=_alt(prompt, len(first), d, N, L),
        title="Prompts",
        row_labels=coordinates(d, N),
        column_labels=(*map(str, range(L)), "q"),
    )


def _alt(prompt: Prompt, shown: int, *drawn: int) -> str:
    d, N, _ = drawn
    sizes = zip(drawn, _sizes(prompt), ("covariates", "responses", "demonstrations"), strict=True)
    cut = [f"the first {room} of {size:,} {what}" for room, size, what in sizes if room < size]
    rows = coordinates(d, N)
    return " ".join(
        [
            f"{shown} of {len(prompt):,}: rows {rows[0]} to {rows[-1]}, a column for each demonstration and one for "
            "the query, q, whose response is asked for and therefore hatched (so is NaN).",
            *([f"Drawn are {', '.join(cut)}."] if cut else []),
        ]
    )


def _sizes(prompt: Prompt) -> tuple[int, int, int]:
    return prompt.x.shape[-1], prompt.y.shape[-1], prompt.length


def _row(prompt: Prompt, name: str) -> tuple[Cell, ...]:
    shape = " × ".join(f"{size:,}" for size in getattr(prompt, name).shape)
    try:
        values = _read(prompt, name)
    except _UNREADABLE as error:
        return name, _PARTS[name], shape, None, None, None, f"cannot be read: {brief(str(error))}"
    finite = values[np.isfinite(values)]
    lost = f"NaN or infinite: {values.size - finite.size:,} of {values.size:,}" if finite.size < values.size else ""
    if not finite.size:
        return name, _PARTS[name], shape, None, None, None, lost
    with np.errstate(over="ignore"):  # the sum of finite numbers need not be finite
        return name, _PARTS[name], shape, float(finite.min()), float(finite.max()), float(finite.mean()), lost


def _read(prompt: Prompt, name: str) -> np.ndarray:
    """The numbers of one of the four tensors, wherever they lie."""
    return getattr(prompt, name).detach().cpu().double().numpy()


def _written(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values[: ROOM[1]]).replace("-", "−")
