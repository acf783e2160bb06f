"""The options of every command, and what `--help` says of them."""

from __future__ import annotations

import argparse

from icl_interp.activations import BUILT_IN
from icl_interp.cli import commands, given

MASKS = ("demonstrations", "strict_causal")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    made = argparse.ArgumentParser(
        prog="icl-interp",
        description="What in-context regression transformers learn, with a number behind every claim.",
        epilog="examples:\n  icl-interp demo\n  icl-interp train --heads 4 --out runs/h4 && icl-interp analyze runs/h4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    known = made.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(known)
    _add_train(known)
    _add_analyze(known)
    _add_compare(known)
    _add_sweep(known)
    _add_reproduce(known)
    probes = _command(known, "probes", "list the probes that are installed", "icl-interp probes")
    probes.set_defaults(command=commands.probes)
    return made


def _add_demo(known: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = _command(
        known,
        "demo",
        "train four heads in the paper's main setting, analyze them and write the report",
        "icl-interp demo\nicl-interp demo --steps 50000 --seed 1 --out runs/longer",
    )
    demo.add_argument(
        "--out", metavar="FOLDER", help=f"where everything goes (default {commands.DEMO_FOLDER}, which is replaced)"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    demo.add_argument(
        "--steps", type=int, default=commands.DEMO_STEPS, help=f"optimiser steps (default {commands.DEMO_STEPS})"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(command=commands.demo)


def _add_train(known: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = _command(
        known,
        "train",
        "train a model on fresh prompts and save the run",
        "icl-interp train --heads 4 --steps 50000 --out runs/h4\n"
        "icl-interp train --heads 2 --covariance kms:0.5 --seed 7 --out runs/kms\n"
        "icl-interp train --steps 500000 --out runs/paper --resume\n"
        "icl-interp train --sparsity 4 --dim 16 --length 20 --noise-var 0.25 --layers 3 --heads 8 --d-head 8 "
        "--scratch 16 --read-out --activation linear --activation-scale 0.05 --lr 0.003 --schedule cosine "
        "--warmup 400 --clip 1 --out runs/deep",
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
    task.add_argument("--sparsity", type=int, metavar="S", help="β has S entries that are not zero (default: all)")
    task.add_argument("--covariance", metavar="kms:RHO|FILE", help="Σ of x (default: the identity)")
    task.add_argument("--mean", type=float, nargs="+", default=[0.0], help="mean of x: one number or d (default 0)")
    model = train.add_argument_group("model")
    model.add_argument("--heads", type=int, default=2, help="heads in each layer (default 2)")
    model.add_argument("--layers", type=int, default=1, help="layers (default 1)")
    model.add_argument("--d-head", type=int, help="width of a head (default: that of the residual stream)")
    model.add_argument("--scratch", type=int, default=0, help="further coordinates of the residual stream (default 0)")
    model.add_argument("--read-in", type=int, metavar="WIDTH", help="a learned map of (x, y) to a stream of this width")
    model.add_argument("--read-out", action="store_true", help="the prediction is read by a learned map")
    model.add_argument("--layer-norm", action="store_true", help="each layer reads the residual stream normalised")
    model.add_argument("--mask", choices=MASKS, default="demonstrations")
    model.add_argument(
        "--activation",
        choices=BUILT_IN,
        default="softmax",
        help="weights are f(Cs)/Σf(Cs) of scores s: softmax eˣ, affine 1 + x, square (1 + x)², tanh 1 + tanh x; or Cs "
        "itself: linear attention",
    )
    model.add_argument("--activation-scale", type=float, default=1.0, metavar="C", help="(default 1)")
    how = train.add_argument_group("training")
    how.add_argument("--steps", type=int, default=20_000, help="optimiser steps (default 20000; the paper: 500000)")
    how.add_argument("--batch-size", type=int, default=256, help="prompts a step (default 256)")
    how.add_argument("--lr", type=float, default=1e-3, help="learning rate (default 0.001)")
    how.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), default="adam")
    how.add_argument("--weight-decay", type=float, default=0.0)
    how.add_argument(
        "--schedule", choices=("constant", "cosine"), default="constant", help="of the learning rate (default constant)"
    )
    how.add_argument("--warmup", type=int, default=0, metavar="STEPS", help="over which it rises first (default 0)")
    how.add_argument("--clip", type=float, metavar="NORM", help="longest gradient (default: any)")
    how.add_argument("--records", type=int, default=300, help="points of the training to keep (default 300)")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--data-seed", type=int, help="seed of the prompts alone (default: the same as --seed)")
    how.add_argument(
        "--engine", choices=("auto", "cuda", "numba", "torch"), default="auto", help="what trains (default auto)"
    )
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    train.set_defaults(command=commands.train)


def _add_analyze(known: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    analyze = _command(
        known,
        "analyze",
        "say what a checkpoint learned: verdicts on the terminal, report.html (and .md, .json) beside it",
        "icl-interp analyze runs/h4\nicl-interp analyze runs/h4 --probe kernel_fit --probe my_probe.py --out out/h4\n"
        "icl-interp analyze heads4.pt --length 40 --noise-var 0.1\n"
        'icl-interp analyze multitask.pt --length 48 --noise-var 0.1 --supports "0,1,2,3;2,3,4,5"',
    )
    analyze.add_argument(
        "checkpoint", help="a run's folder, or a file of another make (.pt, .safetensors, .npz): see --dim and so on"
    )
    analyze.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the report goes (default: into a run's folder; beside a file, into the folder FILE.report)",
    )
    analyze.add_argument("--probe", action="append", metavar="NAME|FILE.py", help="only this probe; may be repeated")
    analyze.add_argument("--seed", type=int, default=0, help="of the prompts that probes draw")
    analyze.add_argument(
        "--budget", type=int, help="prompts a measurement may draw where 32,768 leave a claim open (default: 131,072)"
    )
    analyze.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    _add_given(analyze)
    analyze.set_defaults(command=commands.analyze)


def _add_compare(known: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = _command(
        known,
        "compare",
        "two to a dozen runs or reports side by side: verdicts, roles, ω, μ and risks on one scale",
        "icl-interp compare runs/h2 runs/h4\n"
        "icl-interp compare runs/h2/report.json runs/h4/report.html --out runs/h2-h4.html",
    )
    compare.add_argument(
        "checkpoints",
        nargs="+",
        metavar="RUN",
        help="a run, which is analyzed, or a report (report.json, report.html), which is read",
    )
    compare.add_argument(
        "--out",
        metavar="FILE.html",
        default=commands.COMPARE_PAGE,
        help=f"the page (default {commands.COMPARE_PAGE}, which is replaced)",
    )
    compare.add_argument("--probe", action="append", metavar="NAME", help="only this probe; may be repeated")
    compare.add_argument("--seed", type=int, default=0, help="of the prompts that probes draw, the same for all runs")
    compare.add_argument("--budget", type=int, help="prompts a measurement may draw (default: 131,072)")
    compare.set_defaults(command=commands.compare)


def _add_sweep(known: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sweep = _command(
        known,
        "sweep",
        "train and analyze every combination of parameters with every seed, a row of a Parquet file each",
        "icl-interp sweep --heads 1,2,4,8 --noise-var 0.01,0.1 --seeds 64 --out runs/heads\n"
        "icl-interp sweep --heads 1,2 --seeds 1000 --backend dask --scheduler tcp://host:8786 --out runs/many\n"
        "icl-interp sweep sweep.toml",
    )
    sweep.add_argument(
        "file",
        nargs="?",
        metavar="FILE.toml",
        help="seeds, out, probes and so on; under [grid] any parameter, such as n_heads = [1, 2]",
    )
    sweep.add_argument("--out", metavar="FOLDER", help="where rows go; a sweep that was begun there goes on")
    sweep.add_argument("--seeds", type=int, metavar="N", help="seeds from 0 on (default 1)")
    sweep.add_argument("--probe", action="append", metavar="NAME", help="only this probe; may be repeated")
    sweep.add_argument("--budget", type=int, help="prompts a measurement may draw (default 1536)")
    sweep.add_argument("--keep", action="store_true", help="keep the runs themselves")
    sweep.add_argument("--reports", action="store_true", help="with --keep: a report for each of them, 2 MB")
    sweep.add_argument("--retry", action="store_true", help="try runs that failed again")
    sweep.add_argument("--workers", type=int, help="processes (default: one a core)")
    sweep.add_argument("--backend", choices=("loky", "dask", "ray"), help="this machine's processes, or a cluster's")
    sweep.add_argument("--scheduler", metavar="ADDRESS", help="of the cluster (default: one is started here)")
    grid = sweep.add_argument_group("grid: values with commas between them")
    for option, what in given.SWEPT.items():
        grid.add_argument(f"--{option}", metavar="V,V,…", help=what.said)
    sweep.set_defaults(command=commands.sweep)


def _add_reproduce(known: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reproduce = _command(
        known,
        "reproduce",
        "make the figures and tables of arXiv 2503.12734 and 2408.04532 again, their numbers beside ours, as one page",
        "icl-interp reproduce --list\nicl-interp reproduce figure-4 table-1\nicl-interp reproduce all --schedule paper",
    )
    reproduce.add_argument("names", nargs="*", metavar="NAME", help="figure-1, table-1, … as --list has them; or all")
    reproduce.add_argument("--list", action="store_true", help="list what can be made, and exit")
    reproduce.add_argument(
        "--schedule",
        choices=("quick", "paper"),
        default="quick",
        help="quick: trainings of 100,000 steps; paper: the paper's 500,000 (default quick)",
    )
    reproduce.add_argument(
        "--out",
        metavar="FOLDER",
        default=commands.REPRODUCE_FOLDER,
        help="where runs, results and the page go; what is there is not made again, but for the figures named "
        f"(default {commands.REPRODUCE_FOLDER})",
    )
    reproduce.set_defaults(command=commands.reproduce)


def _add_given(analyze: argparse.ArgumentParser) -> None:
    model = analyze.add_argument_group(
        "what the file does not say",
        "A run's folder says all of this.  Other checkpoints hold little more than weights: what\n"
        "is missing to read those is asked for, or assumed, and the report says so.  Probes that\n"
        "draw prompts need --length and --noise-var at least.",
    )
    model.add_argument("--dim", type=int, help="d, covariates")
    model.add_argument("--outputs", type=int, help="N, responses (default: as many as --supports)")
    model.add_argument("--heads", type=int, help="heads in each layer")
    model.add_argument("--length", type=int, help="L, demonstrations in training")
    model.add_argument("--noise-var", type=float, help="σ², variance of the labels' noise")
    model.add_argument("--covariance", metavar="kms:RHO|FILE", help="Σ of x (default: the identity)")
    model.add_argument("--mean", type=float, nargs="+", help="mean of x: one number or d (default 0)")
    model.add_argument("--sparsity", type=int, metavar="S", help="entries of β that are not zero (default: all)")
    model.add_argument("--supports", metavar="SETS", help='features of each response, as in "0,1,2,3;2,3,4,5"')
    model.add_argument("--attn-scale", type=float, help="divisor of the attention scores")
    model.add_argument("--mask", choices=MASKS, help="whom a position attends to, in a deeper model")
    model.add_argument("--activation", metavar="NAME", help="how scores become weights (default: softmax)")
    model.add_argument("--activation-scale", type=float, metavar="C", help="the activation's C (default 1)")


def _command(
    known: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str, examples: str
) -> argparse.ArgumentParser:
    indented = "\n".join(f"  {line}" for line in examples.splitlines())
    return known.add_parser(
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
