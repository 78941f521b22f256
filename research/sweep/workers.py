"""Runs the cells of a ledger on this machine: each worker claims a cell, has a process of its own
train it, and writes its record."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import research
from research import command
from research.allocator import keeping_memory
from research.devices.nodes import accelerator, runs_on_cpu
from research.sweep.claims import LEASE_SECONDS, Claim, attempts, claim, held
from research.sweep.deaths import death, deaths, given_up, memory_kills
from research.sweep.halving import Rungs
from research.sweep.ledger import Ledger
from research.sweep.outcome import checkpoint_step, last_line, log_size, now, outcome

POLL_SECONDS = 1.0  # between two looks at cells that others hold
_FULL = "no space left"


@dataclass
class Workers:
    """`count` workers on the cells of `ledger`.

    cells    what the record of each cell has from the plan, by key, in the order to run
    metrics  what is better of each metric, by name
    tell     takes lines for the user
    rungs    those of successive halving; None runs every cell to its end
    """

    ledger: Ledger
    cells: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, str]
    count: int
    tell: Callable[[str], None]
    lease_seconds: float = LEASE_SECONDS
    rungs: Rungs | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _trainers: list["Trainer"] = field(default_factory=list)
    _failure: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Returns when every cell has its record, or when `stop` was called and the processes have
        saved what they had. Raises what a worker raised, such as OSError for a full disk."""
        own = devices(self.count)
        self._trainers = [Trainer(*one) for one in zip(shares(self.count), own)]
        threads = [threading.Thread(target=self._work, args=(one,)) for one in self._trainers]
        for thread in threads:
            thread.start()
        # Short waits, so that the main thread takes signals in between.
        while any(thread.is_alive() for thread in threads):
            self._renew()
            for thread in threads:
                thread.join(min(0.2, self.lease_seconds / 8))
        for trainer in self._trainers:
            trainer.close()
        if self._failure:
            raise self._failure[0]

    def stop(self) -> None:
        """Asks all processes to save and end."""
        self._stop.set()
        for trainer in self._trainers:
            trainer.terminate()

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stop.is_set()

    def _renew(self) -> None:
        """Touches the claims that are held; a process whose cell others have taken is ended."""
        for trainer in self._trainers:
            mine = trainer.claim
            # A disk that is full or away for a moment is no reason to give a cell up.
            with contextlib.suppress(OSError):
                if mine is not None and not mine.renew():
                    trainer.lost = True
                    trainer.kill()

    def _work(self, trainer: "Trainer") -> None:
        try:
            while not self._stop.is_set():
                left = [key for key in self.cells if not self.ledger.ended(key)]
                if not left:
                    return
                jobs = sorted(self._jobs(left), key=lambda job: self._deaths(job[0]))
                if not any(self._attempt(trainer, *job) for job in jobs):
                    self._stop.wait(POLL_SECONDS)
        except BaseException as error:
            self._failure.append(error)
            self.stop()

    def _jobs(self, left: Sequence[str]) -> list[tuple[str, int]]:
        """(cell, step to train to, 0 for its end) of what can be run; where halving lets nothing go
        on and nobody is at work any more, it ends the rest."""
        if self.rungs is None:
            return [(key, 0) for key in left]
        # Asked first: what ends in between is then among the jobs.
        busy = any(held(self.ledger.cell(key), self.lease_seconds) for key in left)
        jobs = self.rungs.jobs()
        if not jobs and not busy:
            for key, reason in self.rungs.stopped().items():
                self.finish(key, None, "", reason)
            jobs = self.rungs.jobs()
        return jobs

    def _attempt(self, trainer: "Trainer", key: str, until: int) -> bool:
        """Runs a cell, to the step `until` or to its end, if it is free; False if another process
        has it. One that has died too often gets its record instead."""
        if self._give_up(key):
            return True
        cell = self.ledger.cell(key)
        step = checkpoint_step(cell / "run")
        mine = claim(cell, step, self.lease_seconds)
        if mine is None:
            return False
        # Between the look and the claim.
        if self.ledger.ended(key) or (self.rungs and until and self.rungs.reached(key, until)):
            mine.release("ended")
            return True
        trainer.claim, trainer.lost, trainer.until = mine, False, until
        before, said = memory_kills(), log_size(cell / "output.log")
        code = trainer.train(cell)
        trainer.claim = None
        if trainer.lost:
            self.tell(f"{key} was taken over by another machine")
        elif self.rungs and not code and until and self.rungs.reached(key, until):
            mine.release(f"rung at step {until}")
        else:
            error = last_line(cell / "output.log", said) if code else ""
            self._conclude(key, code, error, mine, memory_kills() - before)
        return True

    def _conclude(self, key: str, code: int, error: str, mine: Claim, killed: int) -> None:
        """Writes the record of a cell, or leaves it to another attempt."""
        if self._stop.is_set() and code:
            mine.release("stopped")
            return
        if code == command.RETRY and _FULL in error:
            mine.release(error)
            raise command.Stop(command.RETRY, error)
        died = death(code, error, killed)
        if died is None:
            self.finish(key, code, error)
            return
        mine.release(died.reason, died.kind)
        if not self._give_up(key):
            self.tell(f"{key} {died.reason}; it goes on from its last checkpoint")

    def _give_up(self, key: str) -> bool:
        """Writes the record of a cell that has died too often; False for another one."""
        reason = given_up(self.ledger.cell(key), self.lease_seconds)
        if reason:
            self.finish(key, None, reason)
        return bool(reason)

    def _deaths(self, key: str) -> int:
        return len(deaths(self.ledger.cell(key), self.lease_seconds))

    def finish(self, key: str, code: int | None, error: str, stopped: str = "") -> None:
        """Writes the record of a cell that has ended, or that halving has stopped."""
        cell = self.ledger.cell(key)
        record = {
            "cell": key,
            **self.cells[key],
            **outcome(cell / "run", self.metrics, code, error, stopped),
            "attempts": attempts(cell),
            "ended": now(),
            "host": socket.gethostname(),
            "cores": len(os.sched_getaffinity(0)) // max(1, self.count) or 1,
        }
        if self.ledger.finish(key, record):
            self.tell(_line(record, sum(map(self.ledger.ended, self.cells)), len(self.cells)))


@dataclass
class Trainer:
    """A process that trains cells, started when it is first needed, on some of the cores, with
    environment variables of its own."""

    cores: Sequence[int]
    environment: Mapping[str, str] = field(default_factory=dict)
    claim: Claim | None = None
    until: int = 0
    lost: bool = False
    _process: subprocess.Popen[str] | None = None

    def train(self, cell) -> int:
        """Trains the cell in a folder to the step `until`, 0 for its end; returns the exit code of
        research.train, negative for a signal."""
        process = self._process if self._process and self._process.poll() is None else None
        process = self._process = process or self._start()
        try:
            print(self.until, cell.absolute(), file=process.stdin, flush=True)
        except OSError:  # it has died between two cells
            return process.wait()
        if process.stdout.readline():
            return command.DONE
        return process.wait()

    def terminate(self) -> None:
        """Asks the process to save and end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Waits for the process to end, which it does when it has nothing to do."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "research.sweep.trainer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | keeping_memory() | {"PYTHONPATH": _path()} | self.environment,
            # Ctrl-C is for the process that gives out the cells, which then asks this one to save.
            start_new_session=True,
        )
        if self.cores:
            # XLA makes a thread for each core that it may use, when JAX is first used.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(process.pid, self.cores)
        return process


def _path() -> str:
    """Where a child finds the package that this process has, wherever a notebook found it."""
    own = str(Path(research.__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))


def shares(count: int) -> list[list[int]]:
    """The processor cores of each of `count` workers: equal shares, and one core for several
    workers where there are more workers than cores."""
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    if not each:
        return [[cores[number % len(cores)]] for number in range(count)]
    return [cores[number * each : (number + 1) * each] for number in range(count)]


def devices(count: int) -> list[dict[str, str]]:
    """Environment variables for each of `count` workers, so that they do not share an accelerator
    where that cannot be: a card each, in turns. ValueError for several workers on a TPU, which one
    process at a time can hold."""
    kind = None if runs_on_cpu() else accelerator()
    if count == 1 or kind not in ("tpu", "cuda"):
        return [{}] * count
    if kind == "tpu":
        raise ValueError(
            f"--workers={count} on a TPU, which one process holds: give --workers=1, and share "
            "the folder with other machines for more"
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    nodes = sorted(path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*"))
    cards = [card for card in named.split(",") if card] or nodes or ["0"]
    chosen = [{"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} for number in range(count)]
    if count <= len(cards):
        return chosen
    # JAX takes most of a card at its start, which leaves nothing to a second process.
    return [{**one, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} for one in chosen]


def _line(record: Mapping[str, Any], ended: int, total: int) -> str:
    levels = ", ".join(f"{name}={level}" for name, level in record["levels"].items())
    words = record["reason"] or ", ".join(
        f"{name} {value:.4f}" for name, value in list(record["metrics"].items())[:1]
    )
    return f"{ended}/{total} {record['state']}: {levels}, seed {record['seed']}: {words}"
