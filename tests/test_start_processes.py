"""Mistakes of a launcher about the processes of a job are said in one line, before any starts."""

import socket

import pytest

from research.parallel import processes


@pytest.fixture
def joined(monkeypatch):
    """The arguments that jax.distributed is started with; it does not start."""
    calls = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *a, **b: calls.append(a))
    for name in ("GRAFT_COORDINATOR", "GRAFT_PROCESSES", "GRAFT_PROCESS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return calls


RIGHT = {"GRAFT_COORDINATOR": "127.0.0.1:{port}", "GRAFT_PROCESSES": "2", "GRAFT_PROCESS": "0"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"GRAFT_PROCESS": "x"}, "GRAFT_PROCESS is 'x'"),
        ({"GRAFT_PROCESS": None}, "GRAFT_PROCESS is not set"),
        ({"GRAFT_PROCESSES": None}, "GRAFT_PROCESSES is not set"),
        ({"GRAFT_PROCESSES": "2.0"}, "GRAFT_PROCESSES is '2.0'"),
        ({"GRAFT_PROCESS": "-1"}, "GRAFT_PROCESS is '-1'"),
        ({"GRAFT_PROCESS": "2"}, "at most 1"),
        ({"GRAFT_COORDINATOR": "localhost"}, "HOST:PORT"),
        ({"GRAFT_COORDINATOR": "localhost:99999"}, "HOST:PORT"),
        ({"GRAFT_COORDINATOR": "no.such.host.invalid:8476"}, "cannot be listened on"),
        ({"GRAFT_COORDINATOR": None, "SLURM_NTASKS": "two"}, "SLURM_NTASKS is 'two'"),
    ],
)
def test_a_wrong_variable_is_named(joined, monkeypatch, changes, said):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {**RIGHT, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value.format(port=port))
    with pytest.raises(ValueError) as refused:
        processes.start_processes()
    assert said in str(refused.value) and "\n" not in str(refused.value) and not joined


def test_a_port_that_is_taken_is_refused_by_the_process_that_listens_there(joined, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in RIGHT.items():
            monkeypatch.setenv(name, value.format(port=port))
        with pytest.raises(ValueError, match="cannot be listened on: Address already in use"):
            processes.start_processes()
        monkeypatch.setenv("GRAFT_PROCESS", "1")
        processes.start_processes()
    monkeypatch.setenv("GRAFT_PROCESS", "0")
    processes.start_processes()
    assert [call[1:3] for call in joined] == [(2, 1), (2, 0)]


@pytest.mark.parametrize(
    ("nodes", "count", "resolved", "bind"),
    [
        ("node[003-010,12],other", "8", "10.0.0.3", "node003:61447"),
        ("gpu1,gpu2", "2", "10.0.0.1", "gpu1:61447"),
        ("localhost", "1", "127.0.0.1", "localhost:61447"),
        # Debian's own name for itself: the other nodes would not reach it.
        ("gpu1,gpu2", "2", "127.0.1.1", None),
    ],
)
def test_a_slurm_job_listens_on_the_address_of_its_first_node(
    monkeypatch, nodes, count, resolved, bind
):
    calls = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *a, **b: calls.append(b))
    monkeypatch.setattr(processes, "_check_coordinator", lambda *a, **b: None)
    monkeypatch.setattr(processes.socket, "gethostbyname", lambda host: resolved)
    slurm = {"NTASKS": "8", "PROCID": "0", "STEP_NODELIST": nodes, "JOB_ID": "4103"}
    slurm["STEP_NUM_NODES"] = count
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("GRAFT_COORDINATOR", raising=False)
    processes.start_processes()
    monkeypatch.setenv("SLURM_PROCID", "3")
    processes.start_processes()
    assert [call["coordinator_bind_address"] for call in calls] == [bind, None]
    assert all(call["heartbeat_timeout_seconds"] == 30 for call in calls)
    assert all(call["initialization_timeout"] == 300 for call in calls)
