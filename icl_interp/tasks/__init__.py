"""In-context regression tasks: where prompts come from (arXiv 2503.12734, section 2; theory in `icl_interp.theory`).

A prompt is L demonstrations (x_ℓ, y_ℓ) and a query x_q whose response y_q is to be predicted.  A `Task` draws prompts;
any object with the protocol's four members trains and is analyzed.  Drawing costs about one normal per number drawn.
"""

from __future__ import annotations

from icl_interp.tasks.linear import KMS, Covariance, LinearRegression, Mean, kms
from icl_interp.tasks.multitask import MultiTaskRegression, Supports
from icl_interp.tasks.prompt import Prompt
from icl_interp.tasks.protocol import Task, UnavailableTask, check_task
from icl_interp.tasks.sparse import SparseRegression

__all__ = [
    "KMS",
    "Covariance",
    "LinearRegression",
    "Mean",
    "MultiTaskRegression",
    "Prompt",
    "SparseRegression",
    "Supports",
    "Task",
    "UnavailableTask",
    "check_task",
    "kms",
]
