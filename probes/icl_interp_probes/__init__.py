"""The built-in probes, one question a file.  Importing this package registers them, in reading order."""

# isort: off
from icl_interp_probes import circuit_pattern, head_roles, kernel_fit, task_allocation, superposition
from icl_interp_probes import faithfulness
from icl_interp_probes import risk, length_generalization, optimality, approximate_loss
from icl_interp_probes import preconditioner, activation, dynamics
from icl_interp_probes import head_utilization, layer_algorithm, algorithm_match

__all__ = [
    "activation",
    "algorithm_match",
    "approximate_loss",
    "circuit_pattern",
    "dynamics",
    "faithfulness",
    "head_roles",
    "head_utilization",
    "kernel_fit",
    "layer_algorithm",
    "length_generalization",
    "optimality",
    "preconditioner",
    "risk",
    "superposition",
    "task_allocation",
]
