"""What the commands do, once their options are read."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_interp.cli import given
from icl_interp.cli.outcome import FAILED, INTERRUPTED, MISUSED, OK, complain, printable
from icl_interp.errors import SaveError, TrainingError

if TYPE_CHECKING:
    from icl_interp.analysis import Analysis
    from icl_interp.records import Run
    from icl_interp.tasks import Task

DEMO_FOLDER, DEMO_STEPS = "runs/demo", 50_000
REPRODUCE_FOLDER = "runs/reproduce"
COMPARE_PAGE = "runs/compare.html"


def train(options: argparse.Namespace) -> int:
    """Train a model and save the run."""
    return _train_and_save(
        given.task(options),
        n_heads=options.heads,
        n_layers=options.layers,
        d_head=options.d_head,
        mask=options.mask,
        activation=options.activation,
        activation_scale=options.activation_scale,
        scratch=options.scratch,
        read_in=options.read_in,
        read_out=options.read_out,
        layer_norm=options.layer_norm,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        seed=options.seed,
        n_records=options.records,
        data_seed=options.data_seed,
        schedule=options.schedule,
        warmup=options.warmup,
        clip=options.clip,
        engine=options.engine,
        device=options.device,
        out=options.out,
        overwrite=options.overwrite,
        resume=options.resume,
        save_every=options.save_every,
    )


def _train_and_save(task: Task, *, steps: int, out: str, **how: Any) -> int:
    from icl_interp import Run, train

    try:
        run = train(task, steps=steps, out=out, **how)
    except (SaveError, TrainingError) as error:
        rescued = _rescue(error.run) if isinstance(error.run, Run) else ""
        return complain(f"{error}{rescued}", FAILED if rescued else MISUSED)
    assert run.dynamics is not None
    print(f"{run.step:,} steps, loss {run.dynamics.loss[-1]:.4f}, saved to {out}")
    if run.step != steps:
        return complain(
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


def analyze(options: argparse.Namespace) -> int:
    """Open a checkpoint, say what it learned, and write the report."""
    from icl_interp import analyze
    from icl_interp.formats import load_run
    from icl_interp.probing import load_file

    probes: list[str] = []
    for probe in options.probe or []:
        probes += load_file(probe) if probe.endswith(".py") else [probe]
    run = load_run(options.checkpoint, given.of_checkpoint(options))
    task, assumed = given.task_for(run, options)
    result = analyze(
        replace(run, assumed=run.assumed + assumed),
        task,
        probes=probes or None,
        seed=options.seed,
        budget=options.budget,
        device=options.device,
    )
    return _report(result, Path(options.out) if options.out else _beside(Path(options.checkpoint), run))


def _report(result: Analysis, folder: Path) -> int:
    """Write the reports, then print the verdicts: `| head` must not cost a report, nor a full disk what was found."""
    try:
        result.to_json(folder / "report.json")
        result.to_markdown(folder / "report.md")
        result.to_html(folder / "report.html")
    finally:
        print(result)
    print(printable(f"written: {folder / 'report.md'}, {folder / 'report.json'} and, to open in a browser,"))
    print((folder / "report.html").resolve().as_uri())
    unfinished = [outcome.probe for outcome in result if outcome.status in ("failed", "broken")]
    return complain(f"probes that did not finish: {', '.join(unfinished)}", FAILED) if unfinished else OK


def compare(options: argparse.Namespace) -> int:
    """Analyze runs or read their reports, and put them side by side."""
    from icl_interp import compare

    found = compare(*options.checkpoints, probes=options.probe, seed=options.seed, budget=options.budget)
    try:
        found.to_html(options.out)
    finally:
        print(found)
    print("written, to open in a browser,")
    print(Path(options.out).resolve().as_uri())
    return OK


def sweep(options: argparse.Namespace) -> int:
    """Train and analyze a grid of runs, and say how often each claim holds."""
    from icl_interp.sweeps import Sweep, sweep
    from icl_interp.sweeps.summary import Summary

    asked: Any = given.sweep(options)
    try:
        found = sweep(**asked)
    except KeyboardInterrupt:
        done = len(Sweep.load(asked["out"]).to_pandas())
        return complain(f"interrupted; {done:,} runs are done, and the same command goes on from here", INTERRUPTED)
    rows = found.to_pandas()
    for claim in Summary.of(rows).of_kind("claim"):
        counts = Counter(status for status in claim.values if status).most_common()
        print(f"{claim.name:<50}" + ", ".join(f"{count:,} {status}" for status, count in counts))
    wrong = sum(rows["error"].notna())
    page = found.to_html()
    print(printable(f"written: {found.folder / 'rows.parquet'}, {len(rows):,} rows, and, to open in a browser,"))
    print(page.resolve().as_uri())
    return complain(f"{wrong:,} of {len(rows):,} runs failed: see the column error", FAILED) if wrong else OK


def demo(options: argparse.Namespace) -> int:
    """Train in the paper's main setting, analyze, and write the report."""
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


def reproduce(options: argparse.Namespace) -> int:
    """Make the paper's figures again, keep what comes out, and write the gallery of all that is kept."""
    from icl_interp.reproduce import Bench, Gallery, recipes, reproduce

    if options.list:
        for each in recipes().values():
            print(f"{each.name:<19}{each.title} ({each.source})")
        return OK
    bench, gallery = Bench(options.out, options.schedule), Gallery(Path(options.out) / options.schedule)
    failed, interrupted = [], False
    try:
        for found in reproduce(options.names, bench):
            gallery.keep(found)
            print(f"{found}\n", flush=True)
            failed += [found.name] if found.failure else []
    except KeyboardInterrupt:
        interrupted = True
    kept, lost = gallery.kept()
    page = gallery.write(kept)
    print(printable(f"written: {page.with_suffix('.md')}, {page.with_suffix('.json')} and, to open in a browser,"))
    print(page.resolve().as_uri())
    for name, reason in lost.items():
        complain(f"what was kept of {name} cannot be read, make it again: {reason}", FAILED)
    if interrupted:
        done = ", ".join(each.name for each in kept) or "nothing yet"
        return complain(f"interrupted; made so far: {done}; the same command goes on from here", INTERRUPTED)
    if failed:
        return complain(f"could not be made: {', '.join(failed)}", FAILED)
    return FAILED if lost else OK


def _beside(checkpoint: Path, run: Run) -> Path:
    """A run's folder; a folder of its own for another file: many may lie side by side, alike but for their suffix."""
    if checkpoint.is_dir():
        return checkpoint
    if Path(run.origin) == checkpoint.parent:  # the weights' file of a run's folder
        return checkpoint.parent
    return checkpoint.with_name(f"{checkpoint.name}.report")


def probes(options: argparse.Namespace) -> int:
    """List what is installed."""
    from icl_interp.probing import KINDS, Need, discover

    def said(needs: Need) -> str:
        return ", ".join(need.name.lower().replace("_", " ") for need in Need if need in needs and need.name)

    known, broken = discover()
    for probe in known.values():
        print(f"{probe.name:<18}{probe.title}")
        of = f"for models of {said(kinds)}; " if (kinds := probe.needs & KINDS) else ""
        print(f"{'':<18}{of}needs {said(probe.needs & ~KINDS) or 'nothing'}; takes {probe.cost}")
    for name, error in broken.items():
        print(f"{name:<18}broken: {type(error).__name__}: {error}")
    return FAILED if broken else OK
