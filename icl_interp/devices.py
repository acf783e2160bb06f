"""Where computations run."""

from __future__ import annotations

import torch

from icl_interp.errors import ConfigError


def named_device(device: str | torch.device) -> torch.device:
    """The CPU or the CUDA device that `device` names.

    Raises:
        ConfigError: another kind of device, or a GPU that is not there.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {str(device)!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices here; "
            "use 'cpu' or 'auto'"
        )
    return chosen
