"""The processes of a pod or of a cluster job."""

import os

import jax


def start_processes() -> None:
    """Joins the other processes of a pod or cluster job, where the launcher says that there are
    any.

    SLURM jobs and TPU pods that name their workers are found by JAX itself, and
    GRAFT_PROCESSES=auto has it look, as launch/tpu.sh does on the machines of a pod; elsewhere
    GRAFT_COORDINATOR (host:port), GRAFT_PROCESSES and GRAFT_PROCESS name them. The coordinator
    listens on its own address only, for it has no authentication.
    """
    coordinator = os.environ.get("GRAFT_COORDINATOR")
    if coordinator:
        process = int(os.environ["GRAFT_PROCESS"])
        jax.distributed.initialize(
            coordinator,
            int(os.environ["GRAFT_PROCESSES"]),
            process,
            coordinator_bind_address=coordinator if process == 0 else None,
            heartbeat_timeout_seconds=30,
        )
    elif (
        os.environ.get("GRAFT_PROCESSES") == "auto"
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()
