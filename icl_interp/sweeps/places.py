"""Where a sweep's processes are: joblib's own on this machine, or a Dask or Ray cluster through joblib's backends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal, get_args

from joblib import parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool

from icl_interp.config import check_choice
from icl_interp.errors import ConfigError

Backend = Literal["loky", "dask", "ray"]


class Place:
    """A context in which joblib runs what it is given.

    Args:
        backend: "loky", processes of joblib's own; "dask" and "ray", workers of a cluster.
        workers: processes; on a cluster of somebody's own, tasks at once.
        scheduler: the cluster's address; None for one of this machine's, started for the sweep.

    Attributes:
        deaths: what is raised where a worker died.
        returns: how joblib gives back what is done: as it comes, or all at once.
        wave: how many batches it is given at a time.

    Raises:
        ConfigError: an unknown backend, one that is not installed, an address that "loky" has no use for.
    """

    def __init__(self, backend: Backend = "loky", workers: int = 1, scheduler: str | None = None):
        check_choice("backend", backend, get_args(Backend))
        if backend == "loky" and scheduler is not None:
            raise ConfigError(f"scheduler is the address of a Dask or Ray cluster; backend is {backend!r}")
        self._backend: Backend = backend
        self._workers, self._scheduler = workers, scheduler
        self.deaths: tuple[type[Exception], ...] = (BrokenProcessPool, *_deaths(backend))
        self.returns: Literal["generator_unordered", "list"] = "list" if backend == "ray" else "generator_unordered"
        self.wave: int = 2 * workers if backend == "ray" else 2**62
        self._opened = ExitStack()

    def apart(self) -> Place:
        """The same with two workers: of one joblib makes none, and what dies takes the sweep with it."""
        return Place(self._backend, 2, self._scheduler)

    def __enter__(self) -> Place:
        with ExitStack() as opening:
            if self._backend == "dask":
                opening.enter_context(_dask(self._scheduler, self._workers))
            elif self._backend == "ray":
                _start_ray(self._scheduler, self._workers)
            opening.enter_context(parallel_config(backend=self._backend, n_jobs=self._workers))
            self._opened = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _deaths(backend: str) -> tuple[type[Exception], ...]:
    try:
        if backend == "dask":
            from distributed import KilledWorker

            return (KilledWorker,)
        if backend == "ray":
            from ray.exceptions import RayError

            return (RayError,)
    except ImportError as error:
        raise ConfigError(f"backend {backend!r} is not installed: pip install icl-interp[{backend}]") from error
    return ()


def _dask(scheduler: str | None, workers: int) -> ExitStack:
    """The cluster at an address, or one of processes on this machine."""
    from distributed import Client, LocalCluster

    with ExitStack() as opening:
        if scheduler is None:
            local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
            opening.enter_context(local)
            opening.enter_context(Client(local))
        else:
            opening.enter_context(Client(scheduler))
        return opening.pop_all()


def _start_ray(scheduler: str | None, workers: int) -> None:
    """Join the cluster at an address, or start one; it lasts until the process ends, as Ray has it."""
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    if not ray.is_initialized():
        local = {} if scheduler else {"num_cpus": max(2, workers), "include_dashboard": False}
        ray.init(address=scheduler, log_to_driver=False, **local)
