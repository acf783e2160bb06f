"""What a user says of a task or a checkpoint, as the options have it."""

from __future__ import annotations

import argparse
import tomllib
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from icl_interp.config import check_count, check_positive
from icl_interp.errors import ConfigError

if TYPE_CHECKING:
    from icl_interp.formats import Given
    from icl_interp.records import Run
    from icl_interp.tasks import Covariance, LinearRegression, MultiTaskRegression, SparseRegression


def task(options: argparse.Namespace) -> LinearRegression | SparseRegression:
    """The task to train on.

    Raises:
        ConfigError: a number out of range; a covariance or mean beside a sparsity.
    """
    from icl_interp.tasks import LinearRegression, SparseRegression

    if options.sparsity is not None:
        if options.covariance is not None or options.mean != [0.0]:
            raise ConfigError("sparse regression has covariates x ~ N(0, I): leave --covariance and --mean out")
        return SparseRegression(options.dim, options.sparsity, options.length, options.noise_var)
    return LinearRegression(
        dim=options.dim,
        length=options.length,
        noise_var=options.noise_var,
        covariance=_covariance(options.covariance),
        mean=_mean(options.mean),
    )


@dataclass(frozen=True)
class Swept:
    """A parameter that the command line can vary: its field, the type of its values, and what `--help` says."""

    field: str
    kind: type[int] | type[float] | type[str]
    said: str


SWEPT = {
    "dim": Swept("dim", int, "d, covariates"),
    "length": Swept("length", int, "L, demonstrations"),
    "noise-var": Swept("noise_var", float, "σ²"),
    "sparsity": Swept("sparsity", int, "entries of β that are not zero: sparse regression"),
    "heads": Swept("n_heads", int, "heads in each layer"),
    "layers": Swept("n_layers", int, "layers"),
    "d-head": Swept("d_head", int, "width of a head"),
    "activation": Swept("activation", str, "how scores become weights"),
    "activation-scale": Swept("activation_scale", float, "C of the activation"),
    "steps": Swept("steps", int, "optimiser steps"),
    "batch-size": Swept("batch_size", int, "prompts a step"),
    "lr": Swept("lr", float, "learning rate"),
    "optimizer": Swept("optimizer", str, "adam, adamw or sgd"),
    "records": Swept("n_records", int, "points of the training to keep"),
}


def sweep(options: argparse.Namespace) -> dict[str, object]:
    """Arguments of `icl_interp.sweep`: those of the file, with the options' in place of them.

    Raises:
        ConfigError: a file that cannot be read or says what no sweep has, values of another type, no folder.
    """
    from icl_interp.tasks import SparseRegression

    told = _toml(options.file) if options.file else {}
    grid = {**told.pop("grid", {}), **_grid(options)}
    own = {"seeds": options.seeds, "out": options.out, "probes": options.probe, "budget": options.budget}
    own |= {"workers": options.workers, "keep": options.keep or None}
    own |= {"reports": options.reports or None, "retry": options.retry or None}
    own |= {"backend": options.backend, "scheduler": options.scheduler}
    told |= {name: value for name, value in own.items() if value is not None}
    if unknown := set(told) - set(own) - {"analysis_seed", "engine", "device"}:
        raise ConfigError(f"a sweep has no {', '.join(sorted(unknown))}; parameters to vary go under [grid]")
    if "out" not in told:
        raise ConfigError("say where the rows go: --out FOLDER")
    if "sparsity" in grid:
        told["task"] = SparseRegression()
    return {"grid": grid, **told}


def _toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def _grid(options: argparse.Namespace) -> dict[str, list[Any]]:
    given = {option: getattr(options, option.replace("-", "_")) for option in SWEPT}
    return {SWEPT[option].field: _values(option, text) for option, text in given.items() if text is not None}


def _values(option: str, text: str) -> list[Any]:
    kind = SWEPT[option].kind
    try:
        return [kind(value.strip()) for value in text.split(",")]
    except ValueError:
        numbers = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"--{option} takes {numbers} with commas between, got {text!r}") from None


def of_checkpoint(options: argparse.Namespace) -> Given:
    """What to take for granted when the checkpoint is opened.

    Raises:
        ConfigError: a size or a scale that no model has, or supports for another number of responses.
    """
    from icl_interp.formats import Given

    sets = _supports(options.supports)
    outputs = len(sets) if sets is not None and options.outputs is None else options.outputs
    for name, value in (("--dim", options.dim), ("--outputs", outputs), ("--heads", options.heads)):
        if value is not None:
            check_count(name, value)
    if options.attn_scale is not None:
        check_positive("--attn-scale", options.attn_scale)
    if sets is not None and len(sets) != outputs:
        raise ConfigError(f"--supports has {len(sets)} sets, one for each response, and --outputs is {outputs}")
    return Given(
        options.dim,
        outputs,
        options.heads,
        options.attn_scale,
        options.mask,
        options.activation,
        options.activation_scale,
    )


def task_for(
    run: Run, options: argparse.Namespace
) -> tuple[LinearRegression | MultiTaskRegression | SparseRegression | None, tuple[str, ...]]:
    """The task to read `run` under, None for the run's own; and what of it nobody said, a sentence each.

    What the options do not say is as in the run's own task, where it has one that is known.

    Raises:
        ConfigError: options that do not make a task; the message says which are needed.
    """
    from icl_interp.tasks import LinearRegression, MultiTaskRegression, SparseRegression

    said = _said_of_task(options)
    own = run.task if isinstance(run.task, LinearRegression | MultiTaskRegression | SparseRegression) else None
    if not said:
        return None, ()
    if own is None and not {"length", "noise_var"} <= said.keys():
        raise ConfigError(
            f"a task needs both --length and --noise-var, and {run.origin} has no task to take them from; got only "
            f"{', '.join(_option(name) for name in said)}"
        )
    if "sparsity" in said or isinstance(own, SparseRegression):
        return _sparse(run, own, said)
    if "supports" in said or isinstance(own, MultiTaskRegression):
        return _several(run, own, said)
    if run.model_config.n_outputs > 1:
        raise ConfigError(
            f"the model has {run.model_config.n_outputs} responses: say with --supports which features each depends "
            'on, as in --supports "0,1,2,3;2,3,4,5"'
        )
    if own is not None:
        return replace(own, **said), ()
    return LinearRegression(dim=run.model_config.dim, **said), _unsaid(said)


def _sparse(
    run: Run, own: LinearRegression | MultiTaskRegression | SparseRegression | None, said: dict[str, Any]
) -> tuple[SparseRegression, tuple[str, ...]]:
    from icl_interp.tasks import SparseRegression

    if refused := said.keys() & {"covariance", "mean", "supports"}:
        raise ConfigError(
            "sparse regression has one response and covariates x ~ N(0, I): leave "
            f"{', '.join(sorted(map(_option, refused)))} out"
        )
    if isinstance(own, SparseRegression):
        return replace(own, **said), ()
    if own is not None:
        said = {name: getattr(own, name) for name in ("length", "noise_var")} | said
    return SparseRegression(dim=run.model_config.dim, **said), (
        "the covariates are x ~ N(0, I)",
        "β has S entries N(0, 1/S) on a random support, and the query's response carries noise, as all others do",
    )


def _several(
    run: Run, own: LinearRegression | MultiTaskRegression | None, said: dict[str, Any]
) -> tuple[MultiTaskRegression, tuple[str, ...]]:
    from icl_interp.tasks import MultiTaskRegression

    if said.keys() & {"covariance", "mean"}:
        raise ConfigError("several responses share covariates x ~ N(0, I): leave --covariance and --mean out")
    if isinstance(own, MultiTaskRegression):
        return replace(own, **said), ()
    if own is not None:
        said = {name: getattr(own, name) for name in ("length", "noise_var")} | said
    return MultiTaskRegression(dim=run.model_config.dim, **said), (
        "the covariates are x ~ N(0, I)",
        "every response has a β of its own, N(0, I/|S_n|), and the query's responses carry noise, as all others do",
    )


def _said_of_task(options: argparse.Namespace) -> dict[str, Any]:
    said = {
        "length": options.length,
        "noise_var": options.noise_var,
        "covariance": _covariance(options.covariance),
        "mean": None if options.mean is None else _mean(options.mean),
        "supports": _supports(options.supports),
        "sparsity": options.sparsity,
    }
    return {name: value for name, value in said.items() if value is not None}


def _unsaid(said: dict[str, Any]) -> tuple[str, ...]:
    defaults = {"covariance": "Σ = I", "mean": "mean 0"}
    left = [name for name in defaults if name not in said]
    signal = "β ~ N(0, I/d), and the query's response carries noise, as all others do"
    if not left:
        return (signal,)
    options = " nor ".join(map(_option, left))
    missing = f"neither {options} was given" if len(left) == 2 else f"{options} was not given"
    return f"the covariates have {' and '.join(defaults[name] for name in left)}: {missing}", signal


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _mean(numbers: list[float]) -> float | tuple[float, ...]:
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _supports(text: str | None) -> list[list[int]] | None:
    """Features separated by commas, responses by semicolons."""
    if text is None:
        return None
    try:
        return [[int(feature) for feature in part.split(",")] for part in text.split(";")]
    except ValueError:
        raise ConfigError(
            f'--supports must be sets of features, one for each response, as in "0,1,2,3;2,3,4,5", got {text!r}'
        ) from None


def _covariance(text: str | None) -> Covariance:
    """`kms:RHO`, or a text file of d rows of d numbers."""
    if text is None:
        return None
    if text.startswith("kms:"):
        from icl_interp import kms

        try:
            return kms(float(text.removeprefix("kms:")))
        except ValueError as error:
            raise ConfigError(f"--covariance kms:RHO needs −1 < RHO < 1, got {text!r} ({error})") from None
    import numpy as np

    try:
        with warnings.catch_warnings(action="ignore"):  # an empty file is refused below, with its shape
            return np.loadtxt(text, ndmin=2)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--covariance must be kms:RHO or a text file of d rows of d numbers, got {text!r}: {error}"
        ) from None
