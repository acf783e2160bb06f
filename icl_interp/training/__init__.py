"""Training: from a task to a `Run`."""

from icl_interp.training.loop import train

__all__ = ["train"]
