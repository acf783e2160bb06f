"""For authors of probes, and for us: checkpoints with known truth, and the contract of a probe as a check."""

from icl_interp.testing.checks import ProbeContractError, check_probe
from icl_interp.testing.planting import Planted, plant

__all__ = ["Planted", "ProbeContractError", "check_probe", "plant"]
