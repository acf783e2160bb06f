"""icl-interp: what in-context regression transformers learn, with a number and an error behind every claim.

    import icl_interp as icl

    task = icl.LinearRegression(dim=5, length=40, noise_var=0.1)
    run = icl.train(task, n_heads=4, steps=20_000, seed=0, out="runs/h4")
    result = icl.analyze(run)
    result.verdicts

Names load their modules on first use, so that importing the package costs neither torch nor TransformerLens.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icl_interp.activations import register_activation
    from icl_interp.analysis import Analysis, analyze
    from icl_interp.circuits import Circuits
    from icl_interp.comparison import Comparison, compare
    from icl_interp.config import ModelConfig
    from icl_interp.errors import CheckpointError, ConfigError, ICLError, SaveError, TrainingError
    from icl_interp.formats import load
    from icl_interp.model import ICLTransformer
    from icl_interp.records import Dynamics, Run, Runs, TrainConfig
    from icl_interp.sweeps import Sweep, sweep
    from icl_interp.tasks import LinearRegression, MultiTaskRegression, Prompt, SparseRegression, Task, kms
    from icl_interp.training import train, train_many

_HOMES = {
    "activations": ("register_activation",),
    "analysis": ("Analysis", "analyze"),
    "circuits": ("Circuits",),
    "comparison": ("Comparison", "compare"),
    "config": ("ModelConfig",),
    "errors": ("CheckpointError", "ConfigError", "ICLError", "SaveError", "TrainingError"),
    "formats": ("load",),
    "model": ("ICLTransformer",),
    "records": ("Dynamics", "Run", "Runs", "TrainConfig"),
    "sweeps": ("Sweep", "sweep"),
    "tasks": ("LinearRegression", "MultiTaskRegression", "Prompt", "SparseRegression", "Task", "kms"),
    "training": ("train", "train_many"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Analysis",
    "CheckpointError",
    "Circuits",
    "Comparison",
    "ConfigError",
    "Dynamics",
    "ICLError",
    "ICLTransformer",
    "LinearRegression",
    "ModelConfig",
    "MultiTaskRegression",
    "Prompt",
    "Run",
    "Runs",
    "SaveError",
    "SparseRegression",
    "Sweep",
    "Task",
    "TrainConfig",
    "TrainingError",
    "analyze",
    "compare",
    "kms",
    "load",
    "register_activation",
    "sweep",
    "train",
    "train_many",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("icl-interp")
    elif name.isidentifier() and not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    rooms = (room.name for room in iter_modules(__path__))
    return sorted({*__all__, *rooms, *(name for name in globals() if name.startswith("__"))})
