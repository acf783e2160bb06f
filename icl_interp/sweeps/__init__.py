"""Many runs from a grid of parameters, each trained, analyzed and kept as a row.

    found = icl_interp.sweep({"n_heads": [1, 2, 4], "noise_var": [0.01, 0.1]}, seeds=8, out="runs/sweep")
    found.to_pandas()[["n_heads", "noise_var", "seed", "kernel_fit.eta.value", "head_roles.heads.roles"]]

A sweep that was cut short goes on where it was; the rows of a finished one are a Parquet file.
"""

from icl_interp.sweeps.sweep import Sweep, sweep

__all__ = ["Sweep", "sweep"]
