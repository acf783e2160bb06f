"""Training: from tasks to a `Run`, or to many."""

from icl_interp.training.loop import train, train_many

__all__ = ["train", "train_many"]
