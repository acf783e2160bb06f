"""For authors of probes, and for us: checkpoints with known truth, and the contract of a probe as a check."""

from icl_interp.testing.checks import ProbeContractError, check_probe
from icl_interp.testing.construction import construct_descent
from icl_interp.testing.known import Family, Known, known_families
from icl_interp.testing.planting import Planted, plant
from icl_interp.testing.sharing import PlantedTasks, plant_tasks

__all__ = [
    "Family",
    "Known",
    "Planted",
    "PlantedTasks",
    "ProbeContractError",
    "check_probe",
    "construct_descent",
    "known_families",
    "plant",
    "plant_tasks",
]
