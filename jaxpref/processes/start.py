"""The one place where a process becomes one of several."""

import os
from dataclasses import dataclass

import jax

# jax tells what it finds of a cluster under no public name.
from jax._src.clusters import ClusterEnv

from jaxpref.errors import InputError
from jaxpref.processes.agreement import check_same_programs
from jaxpref.processes.meeting import meet
from jaxpref.processes.timeouts import HEARTBEAT_TIMEOUT, SILENT, START_TIMEOUT
from jaxpref.processes.watch import watch_others

_LOOKED_FOR = {
    "a TPU VM: TPU chips and the package libtpu, on GKE also": (
        "TPU_WORKER_ID",
        "TPU_WORKER_HOSTNAMES",
    ),
    "SLURM:": (
        "SLURM_JOB_ID",
        "SLURM_STEP_NODELIST",
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_LOCALID",
    ),
    "Open MPI:": ("OMPI_MCA_orte_hnp_uri",),
    "Kubernetes: the package kubernetes and": ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
}
"""What jax finds several processes by: a kind of cluster -> environment variables."""


@dataclass(frozen=True)
class _Place:
    """Where a process stands among the others."""

    coordinator: str
    """HOST:PORT of process 0."""
    processes: int
    process_id: int


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: int = START_TIMEOUT,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> None:
    """Makes this process one of several; before anything else is asked of jax.

    Args:
        coordinator: HOST:PORT of process 0; with `processes` and `process_id`.  None: a cluster
            started the processes, and jax finds all three.
        start_timeout: seconds until all must be there.
        heartbeat_timeout: seconds within which this process ends where another one is gone.
    Errors: InputError where no cluster is found, for numbers that do not fit, a port that is in
        use, processes that do not come in time, and ones of other versions or devices.
    """
    for name, seconds in {
        "--start-timeout": start_timeout,
        "--heartbeat-timeout": heartbeat_timeout,
    }.items():
        if seconds < 1:
            raise InputError(f"{name} of 1 second or more", str(seconds), f"raise {name}")
    if coordinator is None:
        place = _found(start_timeout)
    else:
        place = _checked(coordinator, processes, process_id)
    links = meet(place.coordinator, place.processes, place.process_id, start_timeout)
    # jax would keep SIGTERM to itself, which ends a process or makes a training run save itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process_id,
        initialization_timeout=start_timeout,
        # Who says more about a lost process comes first: jax ends a process after half of this,
        # where its last sign came just before the coordinator froze.
        heartbeat_timeout_seconds=3 * SILENT * heartbeat_timeout,
    )
    watch_others(heartbeat_timeout, links)
    check_same_programs()


def _found(timeout: int) -> _Place:
    """As the cluster has it.  Errors: InputError where jax finds none."""
    try:
        coordinator, processes, process_id, _ = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, timeout
        )
    except Exception as error:  # each kind of cluster has errors of its own
        raise _no_cluster(f"jax: {type(error).__name__}: {error}") from error
    if coordinator is None or processes is None or process_id is None:
        raise _no_cluster(_seen())
    return _Place(coordinator, processes, process_id)


def _no_cluster(why: str) -> InputError:
    looked_for = "; ".join(f"{kind} {', '.join(names)}" for kind, names in _LOOKED_FOR.items())
    return InputError(
        "one of several processes that a cluster started, for --distributed",
        f"{why}; looked for {looked_for}",
        "start it by the cluster (under SLURM by srun); or say who is who by --coordinator "
        "HOST:PORT --processes N --process-id I; or leave --distributed out for one process, "
        "whatever the number of its devices",
    )


def _seen() -> str:
    """What of a cluster is there, for one that is there in part."""
    names = [name for names in _LOOKED_FOR.values() for name in names]
    there = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"no cluster in full ({', '.join(there)})" if there else "no cluster"


def _checked(coordinator: str, processes: int | None, process_id: int | None) -> _Place:
    """Errors: InputError for an address or numbers that are none."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(
            "--coordinator HOST:PORT, of process 0",
            coordinator,
            "give a name or address that all hosts reach, and a port that is free there",
        )
    if processes is None or processes < 1:
        raise InputError("--processes of 1 or more", str(processes), "say how many there are")
    if process_id is None or not 0 <= process_id < processes:
        raise InputError(
            f"--process-id from 0 to {processes - 1} (--processes {processes})",
            str(process_id),
            "number the processes from 0; each number is given once",
        )
    return _Place(coordinator, processes, process_id)
