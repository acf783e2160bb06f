"""The command line: thin.  Exit status 0: fine; 1: failed; 2: misused; 130: interrupted, what was trained is saved."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_interp.errors import ConfigError, ICLError, SaveError, TrainingError

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis
    from icl_interp.records import Run
    from icl_interp.tasks import Covariance, LinearRegression

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
DEMO_FOLDER, DEMO_STEPS = "runs/demo", 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show ω is no reason to fail
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        return _complain(error, MISUSED)
    except BrokenPipeError:  # `icl-interp probes | head`: nobody reads on, and Python must not try again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ICLError, OSError) as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(error: object, status: int) -> int:
    line = " ".join(str(error).split())
    # What a damaged file says must not steer the terminal.
    print("icl-interp:", "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line), file=sys.stderr)
    return status


def _train(options: argparse.Namespace) -> int:
    return _train_and_save(
        _task(options),
        n_heads=options.heads,
        n_layers=options.layers,
        d_head=options.d_head,
        mask=options.mask,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        seed=options.seed,
        n_records=options.records,
        data_seed=options.data_seed,
        engine=options.engine,
        device=options.device,
        out=options.out,
        overwrite=options.overwrite,
        resume=options.resume,
        save_every=options.save_every,
    )


def _train_and_save(task: LinearRegression, *, steps: int, out: str, **how: Any) -> int:
    from icl_interp import Run, train

    try:
        run = train(task, steps=steps, out=out, **how)
    except (SaveError, TrainingError) as error:
        rescued = _rescue(error.run) if isinstance(error.run, Run) else ""
        return _complain(f"{error}{rescued}", FAILED if rescued else MISUSED)
    assert run.dynamics is not None
    print(f"{run.step:,} steps, loss {run.dynamics.loss[-1]:.4f}, saved to {out}")
    if run.step != steps:
        return _complain(
            f"interrupted after {run.step:,} of {steps:,} steps; what was trained is saved, and --resume goes on",
            INTERRUPTED,
        )
    return OK


def _rescue(run: Run) -> str:
    """Where training ended up when it could not be saved where it should: nothing that was computed is thrown away."""
    try:
        place = Path(tempfile.mkdtemp(prefix="icl-interp-")) / "run"
        return f"; what was trained is in {run.save(place)}"
    except OSError as error:
        return f"; nor could what was trained be kept: {error}"


def _analyze(options: argparse.Namespace) -> int:
    from icl_interp import analyze
    from icl_interp.probing import load_file

    probes: list[str] = []
    for probe in options.probe or []:
        probes += load_file(probe) if probe.endswith(".py") else [probe]
    result = analyze(
        options.checkpoint, probes=probes or None, seed=options.seed, budget=options.budget, device=options.device
    )
    return _report(result, Path(options.out) if options.out else _beside(Path(options.checkpoint)))


def _report(result: Analysis, folder: Path) -> int:
    """Write the reports, then print the verdicts: `| head` must not cost a report, nor a full disk what was found."""
    try:
        result.to_json(folder / "report.json")
        result.to_markdown(folder / "report.md")
        result.to_html(folder / "report.html")
    finally:
        print(result)
    print(f"written: {folder / 'report.md'}, {folder / 'report.json'} and, to open in a browser,")
    print((folder / "report.html").resolve().as_uri())
    unfinished = [outcome.probe for outcome in result if outcome.status in ("failed", "broken")]
    return _complain(f"probes that did not finish: {', '.join(unfinished)}", FAILED) if unfinished else OK


def _demo(options: argparse.Namespace) -> int:
    from icl_interp import LinearRegression, analyze

    out = options.out or DEMO_FOLDER
    task = LinearRegression(dim=5, length=40, noise_var=0.1)
    print(f"training 4 heads for {options.steps:,} steps of 256 prompts: d = 5, L = 40, σ² = 0.1", flush=True)
    replaced = options.overwrite or options.out is None  # the demo's own folder
    status = _train_and_save(task, n_heads=4, steps=options.steps, seed=options.seed, out=out, overwrite=replaced)
    if status != OK:
        return status
    print("analyzing what was learned", flush=True)
    return _report(analyze(out), Path(out))


def _beside(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _probes(options: argparse.Namespace) -> int:
    from icl_interp.probing import Need, discover

    known, broken = discover()
    for probe in known.values():
        print(f"{probe.name:<18}{probe.title}")
        needs = [need.name.lower() for need in Need if need in probe.needs and need.name]
        print(f"{'':<18}needs {', '.join(needs) or 'nothing'}; takes {probe.cost}")
    for name, error in broken.items():
        print(f"{name:<18}broken: {type(error).__name__}: {error}")
    return FAILED if broken else OK


def _task(options: argparse.Namespace) -> LinearRegression:
    from icl_interp import LinearRegression

    return LinearRegression(
        dim=options.dim,
        length=options.length,
        noise_var=options.noise_var,
        covariance=_covariance(options.covariance),
        mean=options.mean[0] if len(options.mean) == 1 else tuple(options.mean),
    )


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="icl-interp",
        description="What in-context regression transformers learn, with a number behind every claim.",
        epilog="examples:\n  icl-interp demo\n  icl-interp train --heads 4 --out runs/h4 && icl-interp analyze runs/h4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_analyze(commands)
    probes = _command(commands, "probes", "list the probes that are installed", "icl-interp probes")
    probes.set_defaults(command=_probes)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = _command(
        commands,
        "demo",
        "train four heads in the paper's main setting, analyze them and write the report",
        "icl-interp demo\nicl-interp demo --steps 50000 --seed 1 --out runs/longer",
    )
    demo.add_argument(
        "--out", metavar="FOLDER", help=f"where everything goes (default {DEMO_FOLDER}, which is replaced)"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    demo.add_argument("--steps", type=int, default=DEMO_STEPS, help=f"optimiser steps (default {DEMO_STEPS})")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(command=_demo)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = _command(
        commands,
        "train",
        "train a model on fresh prompts and save the run",
        "icl-interp train --heads 4 --steps 50000 --out runs/h4\n"
        "icl-interp train --heads 2 --covariance kms:0.5 --seed 7 --out runs/kms\n"
        "icl-interp train --steps 500000 --out runs/paper --resume",
    )
    train.add_argument("--out", required=True, metavar="FOLDER", help="where the run is saved")
    train.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    train.add_argument(
        "--resume", action="store_true", help="go on with a training that was cut short; begin where there is none"
    )
    train.add_argument(
        "--save-every", type=float, default=30.0, metavar="SECONDS", help="how often its state is saved (default 30)"
    )
    task = train.add_argument_group("task: y = βᵀx + ε")
    task.add_argument("--dim", type=int, default=5, help="d, covariates (default 5)")
    task.add_argument("--length", type=int, default=40, help="L, demonstrations (default 40)")
    task.add_argument("--noise-var", type=float, default=0.1, help="σ² (default 0.1)")
    task.add_argument("--covariance", metavar="kms:RHO|FILE", help="Σ of x (default: the identity)")
    task.add_argument("--mean", type=float, nargs="+", default=[0.0], help="mean of x: one number or d (default 0)")
    model = train.add_argument_group("model")
    model.add_argument("--heads", type=int, default=2, help="heads in each layer (default 2)")
    model.add_argument("--layers", type=int, default=1, help="layers (default 1)")
    model.add_argument("--d-head", type=int, help="width of a head (default d + 1)")
    model.add_argument("--mask", choices=("demonstrations", "strict_causal"), default="demonstrations")
    how = train.add_argument_group("training")
    how.add_argument("--steps", type=int, default=20_000, help="optimiser steps (default 20000; the paper: 500000)")
    how.add_argument("--batch-size", type=int, default=256, help="prompts a step (default 256)")
    how.add_argument("--lr", type=float, default=1e-3, help="learning rate (default 0.001)")
    how.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), default="adam")
    how.add_argument("--weight-decay", type=float, default=0.0)
    how.add_argument("--records", type=int, default=300, help="points of the training to keep (default 300)")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--data-seed", type=int, help="seed of the prompts alone (default: the same as --seed)")
    how.add_argument("--engine", choices=("auto", "numba", "torch"), default="auto", help="what trains (default auto)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    train.set_defaults(command=_train)


def _add_analyze(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    analyze = _command(
        commands,
        "analyze",
        "say what a checkpoint learned: verdicts on the terminal, report.html (and .md, .json) beside it",
        "icl-interp analyze runs/h4\nicl-interp analyze runs/h4 --probe kernel_fit --probe my_probe.py --out out/h4",
    )
    analyze.add_argument("checkpoint", help="a run's folder")
    analyze.add_argument("--out", metavar="FOLDER", help="where the report goes (default: beside the checkpoint)")
    analyze.add_argument("--probe", action="append", metavar="NAME|FILE.py", help="only this probe; may be repeated")
    analyze.add_argument("--seed", type=int, default=0, help="of the prompts that probes draw")
    analyze.add_argument("--budget", type=int, help="prompts a measurement may draw")
    analyze.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    analyze.set_defaults(command=_analyze)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str, examples: str
) -> argparse.ArgumentParser:
    indented = "\n".join(f"  {line}" for line in examples.splitlines())
    return commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"examples:\n{indented}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class _Version(argparse.Action):
    """Looked up only when asked for: package metadata is slow to read."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from icl_interp import __version__

        print(f"icl-interp {__version__}")
        parser.exit()
