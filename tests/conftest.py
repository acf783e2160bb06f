"""Shapes in signatures are checked at run time here, in the modules that compute; the others' business is to refuse
wrong types with a message of their own, which a type checker would forestall."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "disabled")  # a dependency of TransformerLens; no test may reach for the network

COMPUTING = (
    "attention",
    "circuits",
    "compat",
    "estimates",
    "estimators",
    "lens",
    "model",
    "roles",
    "training.gradients",
    "weights",
)
install_import_hook([f"icl_interp.{module}" for module in COMPUTING], "beartype.beartype")

# Small tensors gain little from threads, and two processes that share the cores lose a lot to them.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
