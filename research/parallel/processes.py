"""The processes of a pod or of a cluster job."""

import os
import socket

import jax


def start_processes() -> None:
    """Joins the other processes of a pod or cluster job, if the launcher says that there are any;
    does nothing otherwise.

    JAX finds the processes of SLURM jobs and of TPU pods that name their workers.
    GRAFT_PROCESSES=auto makes it look for them, as launch/tpu.sh does. Elsewhere three variables
    name them: GRAFT_COORDINATOR (host:port of process 0), GRAFT_PROCESSES (how many) and
    GRAFT_PROCESS (the number of this one, from 0). ValueError if one of these is missing or wrong,
    and if the coordinator's port is taken.
    """
    coordinator = os.environ.get("GRAFT_COORDINATOR")
    if coordinator:
        count, process = _number("GRAFT_PROCESSES"), _number("GRAFT_PROCESS")
        if process >= count:
            raise ValueError(
                f"GRAFT_PROCESS={process} is one of GRAFT_PROCESSES={count}, which count from 0; "
                f"set it to at most {count - 1}"
            )
        _check_coordinator(coordinator, listens=process == 0)
        jax.distributed.initialize(
            coordinator,
            count,
            process,
            # JAX would listen on all addresses, and the coordinator has no authentication.
            coordinator_bind_address=coordinator if process == 0 else None,
            heartbeat_timeout_seconds=30,
        )
    elif (
        os.environ.get("GRAFT_PROCESSES") == "auto"
        or ("SLURM_NTASKS" in os.environ and _number("SLURM_NTASKS") > 1)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


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
            f"GRAFT_COORDINATOR={address} cannot be listened on: {error.strerror}; choose a free "
            "port of this machine"
        ) from None
