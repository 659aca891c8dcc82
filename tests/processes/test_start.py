"""How a process learns its place: by a cluster's environment, in processes of their own."""

import os
import subprocess
import sys

import pytest
from test_meeting import free_port

JOIN = """
import logging, warnings
import jax
from rich.console import Console
from jaxpref.processes.output import first_prints
import jaxpref
jaxpref.join(start_timeout=60)
print(jax.process_index(), "of", jax.process_count())
first_prints(Console())
logging.warning("logged")
warnings.warn("warned")
logging.error("failed")
"""

# Of both processes, and of each.
CLUSTERS = {
    "slurm": (
        {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"},
        [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)],
    ),
    "open_mpi": (
        {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"},
        [{"OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)} for i in range(2)],
    ),
    # As the webhook of GKE sets it for two hosts of a slice; the first variable makes jax believe in TPU chips.
    "gke": (
        {
            "JAX_FORCE_TPU_INIT": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost,localhost",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
            "MEGASCALE_NUM_SLICES": "1",
            "MEGASCALE_SLICE_ID": "0",
        },
        [{"TPU_WORKER_ID": str(i)} for i in range(2)],
    ),
    "gke_two_slices": (
        {
            "JAX_FORCE_TPU_INIT": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
            "MEGASCALE_NUM_SLICES": "2",
        },
        [{"MEGASCALE_SLICE_ID": str(i)} for i in range(2)],
    ),
}


SLOW = ("open_mpi", "gke_two_slices")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CLUSTERS]


@pytest.mark.parametrize("cluster", CASES)
def test_a_cluster_says_who_is_who(cluster):
    """And once they know it, one of them warns."""
    shared, own = CLUSTERS[cluster]
    # jax's own variable for the port: without it all jobs of one number would meet on one.
    shared = os.environ | shared | {"JAX_COORDINATOR_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env=shared | mine,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mine in own
    ]
    try:
        said, warned = zip(*(worker.communicate(timeout=120) for worker in workers), strict=True)
    finally:
        for worker in workers:
            worker.kill()
    assert [out.strip() for out in said] == ["0 of 2", "1 of 2"]
    found = [[word for word in ("logged", "warned", "failed") if word in err] for err in warned]
    assert found == [["logged", "warned", "failed"], ["failed"]], warned


WRONG = {
    "--coordinator a:1": "--coordinator HOST:PORT without --processes N, --process-id I",
    "--processes 2 --process-id 0": "--processes N, --process-id I without --coordinator HOST:PORT",
    "--coordinator a:1 --processes 2 --process-id 2": "--process-id from 0 to 1",
    "--coordinator a:1 --processes 0 --process-id 0": "--processes of 1 or more",
    "--coordinator a --processes 2 --process-id 0": "--coordinator HOST:PORT, of process 0",
    "--coordinator a:70000 --processes 2 --process-id 0": "a:70000",
    "--coordinator a:1 --processes 2 --process-id 0 --distributed": "both",
    "--coordinator a:1 --processes 2 --process-id 0 --start-timeout 0": "--start-timeout of 1 second or more",
}


@pytest.mark.parametrize("options", WRONG)
def test_options_that_do_not_fit_are_refused(options, call):
    code, out, err = call("export", "run", "--to", "somewhere", *options.split())
    assert (code, out) == (2, "") and WRONG[options] in err
