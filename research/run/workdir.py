"""The folder of a run: whether a run may begin in it, and that only one does."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from research.experiment.config import from_json
from research.run.resumed import read_config
from research.training.metrics import read_rows


def refuse_addresses(workdir: str) -> None:
    """ValueError for a workdir in an object store, `gs://bucket/run`: runs are written to mounted
    file systems."""
    scheme, mark, _ = workdir.partition("://")
    if mark:
        raise ValueError(
            f"--workdir={workdir} is an address and not a folder; mount the store (gcsfuse for "
            f"gs, s3fs for s3) or take a shared disk, and give the folder, such as "
            f"--workdir=/mnt/{scheme}/{Path(workdir).name}"
        )


@contextlib.contextmanager
def locked(workdir: Path, enabled: bool = True) -> Iterator[None]:
    """A context in which this process is the only one to train in `workdir`.

    ValueError if another process does. The kernel gives the lock back when a process ends in any
    way, so nothing is left to clean up. Only one process of a job locks: `enabled` in the others is
    False.
    """
    if not enabled:
        yield
        return
    with contextlib.ExitStack() as stack:
        # A folder that cannot be written is for the checkpoints to refuse, and some network file
        # systems know no locks.
        with contextlib.suppress(OSError):
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(workdir / ".lock", "a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    file.seek(0)
                    raise ValueError(
                        f"{file.read().strip() or 'another process'} trains in {workdir}; wait "
                        "for it, end it, or take another --workdir"
                    ) from None
                raise
            # For whoever is refused; a name that a process has left behind locks nothing.
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield


def refuse_lost_checkpoints(workdir: Path) -> None:
    """ValueError if a run has been in `workdir` and its checkpoints are gone: to begin anew would
    delete its metrics and samples. A run that was killed before its first checkpoint is no such."""
    traces = [name for name in ("config.json", "metrics.jsonl") if (workdir / name).exists()]
    folder = workdir / "checkpoints"
    if not traces or (folder.is_dir() and (_holds_any(folder) or not _had_saved(workdir))):
        return
    raise ValueError(
        f"{workdir} has the {' and '.join(traces)} of a run whose checkpoints are gone; put "
        f"{folder} back (is its disk mounted?), take another --workdir, or delete {workdir} to "
        "begin anew"
    )


def _holds_any(folder: Path) -> bool:
    """True if there is a step: good, set aside, or one whose save was interrupted."""
    return any(entry.name.rpartition("-")[2].isdigit() for entry in folder.iterdir())


def _had_saved(workdir: Path) -> bool:
    """True if the metrics go so far that a checkpoint must have been committed: a save is finished
    at the latest when the next one starts, and the last one before the last evaluation."""
    rows, config = read_rows(workdir / "metrics.jsonl"), workdir / "config.json"
    if not rows or not config.exists():
        return False
    e, last = from_json(read_config(config)), rows[-1]
    evaluated = any(name.startswith("eval/") for name in last)
    return last["step"] > 2 * e.checkpoint.every or (evaluated and last["step"] >= e.train.steps)
