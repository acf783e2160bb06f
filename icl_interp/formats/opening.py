"""Opening a checkpoint: take it apart, ask the formats which of them it is, and have that one make a `Run` of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from icl_interp.errors import CheckpointError, ConfigError, NoCheckpointError, UnsaidError
from icl_interp.formats.contents import Contents, Given, shown
from icl_interp.formats.files import reason
from icl_interp.formats.reading import take_apart
from icl_interp.formats.registry import known_formats
from icl_interp.records import Run

SAY_ACTIVATION = ("native", "live")  # formats that say how scores become weights; others know softmax


def load_run(checkpoint: str | Path | nn.Module | Mapping[str, object], given: Given | None = None) -> Run:
    """A checkpoint of any format that is known, on the CPU; what had to be assumed is in `Run.assumed`.

    Args:
        checkpoint: a path; or a module or a dict of tensors in memory.
        given: what the file may not say.

    Raises:
        CheckpointError: not there or not a checkpoint (`NoCheckpointError`), damaged, not supported, or written by a
            newer version; the message says which file, what was recognised in it, and what was expected.
        UnsaidError: something has to be given that was not.
        ConfigError: what was given is not what the file says; or no kind of checkpoint at all.
    """
    given = given or Given()
    where = str(checkpoint) if isinstance(checkpoint, str | Path) else "the checkpoint in memory"
    try:
        contents = take_apart(checkpoint)
        name, title, run = _read(contents, given)
        run = run if name in SAY_ACTIVATION else _with_activation(run, given)
    except (NoCheckpointError, UnsaidError) as error:
        raise type(error)(f"{where}: {reason(error)}") from error
    except ConfigError as error:
        if isinstance(checkpoint, str | Path):  # a size in a file that no model can have is the file's fault
            raise CheckpointError(f"{where}: {reason(error)}") from error
        raise
    except Exception as error:  # a stranger's file may break anything
        raise CheckpointError(f"{where}: {reason(error)}") from error
    _agree(run, given)
    return replace(run, format=title, assumed=(*run.assumed, *_said_of(contents)))


def _read(contents: Contents, given: Given) -> tuple[str, str, Run]:
    """The format's name and title, and what it makes of the contents."""
    formats = known_formats()
    for name, (title, form) in formats.items():
        if form.recognises(contents):
            try:
                return name, title, form.read(contents, given)
            except CheckpointError as error:
                if isinstance(error, NoCheckpointError) or (contents.path is not None and contents.path.is_dir()):
                    raise
                kind = UnsaidError if isinstance(error, UnsaidError) else CheckpointError
                raise kind(f"{contents.container}, recognised as {title}: {error}") from error
    held = shown(sorted({*contents.tensors, *contents.rest}))
    titles = "; ".join(title for title, _ in formats.values())
    raise NoCheckpointError(f"{contents.container} that no format recognises: it holds {held}; what is read: {titles}")


def _with_activation(run: Run, given: Given) -> Run:
    """The run of a format that knows softmax only, with the activation that was given."""
    said = {name: getattr(given, name) for name in ("activation", "activation_scale")}
    said = {name: value for name, value in said.items() if value is not None}
    return replace(run, model_config=replace(run.model_config, **said)) if said else run


def _said_of(contents: Contents) -> tuple[str, ...]:
    return (f"{shown(contents.left_out)} is no part of the model, and not read",) if contents.left_out else ()


def _agree(run: Run, given: Given) -> None:
    """What was given and what the file says."""
    config = run.model_config
    found = {
        "dim": config.dim,
        "n_outputs": config.n_outputs,
        "n_heads": config.n_heads,
        "attn_scale": config.score_scale,
        "mask": config.mask,
        "activation": config.activation,
        "activation_scale": config.activation_scale,
    }
    for name, value in found.items():
        said = getattr(given, name)
        same = math.isclose(said, value) if isinstance(said, float) else said == value
        if said is not None and not same:
            raise ConfigError(f"{name} is {value!r} in {run.origin}, {said!r} was given")
