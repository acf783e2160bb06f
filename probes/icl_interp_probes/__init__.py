"""The built-in probes, one question a file.  Importing this package registers them, in reading order."""

from icl_interp_probes import circuit_pattern, head_roles, kernel_fit, risk, dynamics  # isort: skip

__all__ = ["circuit_pattern", "dynamics", "head_roles", "kernel_fit", "risk"]
