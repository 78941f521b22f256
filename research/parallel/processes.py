"""The processes of a pod or of a cluster job."""

import ipaddress
import os
import re
import socket
from typing import Any

import jax

from research.parallel.peers import watch_peers

# Seconds. A process that sends no sign of life for so long is lost; JAX's own is 100.
HEARTBEAT = 30
# For the slowest of the others to start.
START = 300


def start_processes() -> None:
    """Joins the other processes of a pod or cluster job, if the launcher says that there are any;
    does nothing otherwise. If one of them fails, all end (`research.parallel.peers`).

    JAX finds the processes of SLURM jobs and of TPU pods that name their workers.
    GRAFT_PROCESSES=auto makes it look for them, as launch/tpu.sh does. Elsewhere three variables
    name them: GRAFT_COORDINATOR (host:port of process 0), GRAFT_PROCESSES (how many) and
    GRAFT_PROCESS (the number of this one, from 0).

    Process 0 listens, without authentication: on the address of GRAFT_COORDINATOR, in a SLURM job
    on that of its node, on a TPU pod on all of its machine. ValueError if one of the variables is
    missing or wrong, and if the port is taken.
    """
    times: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT,
        "initialization_timeout": START,
    }
    coordinator = os.environ.get("GRAFT_COORDINATOR")
    if coordinator:
        count, process = _number("GRAFT_PROCESSES"), _number("GRAFT_PROCESS")
        if process >= count:
            raise ValueError(
                f"GRAFT_PROCESS={process} is one of GRAFT_PROCESSES={count}, which count from 0; "
                f"set it to at most {count - 1}"
            )
        _check_coordinator(coordinator, listens=process == 0)
        bind = coordinator if process == 0 else None
        jax.distributed.initialize(
            coordinator, count, process, coordinator_bind_address=bind, **times
        )
    elif "SLURM_NTASKS" in os.environ and _number("SLURM_NTASKS") > 1:
        jax.distributed.initialize(coordinator_bind_address=_slurm_address(), **times)
    elif os.environ.get("GRAFT_PROCESSES") == "auto" or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    ):
        jax.distributed.initialize(**times)
    if jax.distributed.is_initialized():
        watch_peers()


def _slurm_address() -> str | None:
    """The address of the first node, for the task that listens there; None for all addresses of
    the machine, where the node's name is that of the loopback for itself alone, and in the other
    tasks."""
    nodes, job = os.environ.get("SLURM_STEP_NODELIST", ""), os.environ.get("SLURM_JOB_ID", "")
    if os.environ.get("SLURM_PROCID") != "0" or not nodes or not job.isdecimal():
        return None
    # "node[003-010,12],other": JAX takes node003, and a port of 4,096 that follows from the job.
    host = re.sub(r"\[([^],-]+).*", r"\1", nodes.split(",")[0])
    port = os.environ.get("JAX_COORDINATOR_PORT") or str(int(job) % 2**12 + 65536 - 2**12)
    _check_coordinator(f"{host}:{port}", listens=True)
    found = ipaddress.ip_address(socket.gethostbyname(host))
    # Debian gives a machine's own name the address 127.0.1.1, which no other node reaches.
    alone = os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1"
    return None if found.is_loopback and not alone else f"{host}:{port}"


def _number(name: str) -> int:
    """The whole number in an environment variable."""
    text = os.environ.get(name)
    if text is None or not text.isdecimal():
        got = "is not set" if text is None else f"is {text!r}"
        raise ValueError(f"{name} {got}; set it to a number, beside GRAFT_COORDINATOR=HOST:PORT")
    return int(text)


def _check_coordinator(address: str, listens: bool) -> None:
    """ValueError for an address that is none, and, in the process that listens, for a port that is
    taken. gRPC would end the process with a segmentation fault."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"GRAFT_COORDINATOR={address!r} must be HOST:PORT, such as 10.0.0.1:8476")
    if not listens:
        return
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a port that a former job has just left is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise ValueError(
            f"{address}, the coordinator's address, cannot be listened on: {error.strerror}; set "
            "GRAFT_COORDINATOR to a free port of this machine"
        ) from None
