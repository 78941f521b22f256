"""The processes of a pod or of a cluster job."""

import os

import jax


def start_processes() -> None:
    """Joins the other processes of a pod or cluster job, where the launcher says that there are
    any; does nothing otherwise.

    JAX finds the processes of SLURM jobs and of TPU pods that name their workers.
    GRAFT_PROCESSES=auto has it look for them, as launch/tpu.sh does. Elsewhere three variables name
    them: GRAFT_COORDINATOR (host:port of process 0), GRAFT_PROCESSES (how many) and GRAFT_PROCESS
    (this one's number).
    """
    coordinator = os.environ.get("GRAFT_COORDINATOR")
    if coordinator:
        process = int(os.environ["GRAFT_PROCESS"])
        jax.distributed.initialize(
            coordinator,
            int(os.environ["GRAFT_PROCESSES"]),
            process,
            # JAX would listen on all addresses, and the coordinator has no authentication.
            coordinator_bind_address=coordinator if process == 0 else None,
            heartbeat_timeout_seconds=30,
        )
    elif (
        os.environ.get("GRAFT_PROCESSES") == "auto"
        # A job of one task has nobody to join.
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()
