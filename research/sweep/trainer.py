"""The process that trains cells, one after another: `python -m research.sweep.trainer`.

It reads the folder of a cell from each line of standard input, behind the step at which to leave
off (0 for none), trains as `research.train` does and
answers with a line; what takes seconds at the start of a process is then done once. A run that does
not end well ends the process, with the exit code and the last words of `research.train`. So does
the end of the process that asks, which closes standard input.
"""

import os
import queue
import sys
import threading
from pathlib import Path

from research import command
from research.experiment.config import from_json
from research.files import read_json
from research.fit.at_hand import predict
from research.run.loop import train


def main(_: list[str]) -> int:
    """Trains what standard input names. The exit code is that of the run that ended the process."""
    # Answers go where standard output went; what a run prints goes to the log of its cell.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    asked: queue.Queue[tuple[int, Path] | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(asked, busy), daemon=True).start()
    while (job := asked.get()) is not None:
        until, cell = job
        _print_to(cell / "output.log")
        experiment = from_json(read_json(cell / "config.json"))
        result = train(experiment, cell / "run", live=False, predict=predict, until=until)
        if result.exit_code:
            return result.exit_code
        busy.clear()
        print("done", file=answers, flush=True)
    return command.DONE


def _listen(asked: queue.Queue[tuple[int, Path] | None], busy: threading.Event) -> None:
    """Passes on the lines of standard input, and None at its end."""
    for line in sys.stdin:
        busy.set()
        until, _, folder = line.rstrip("\n").partition(" ")
        asked.put((int(until), Path(folder)))
    if busy.is_set():
        # Nobody waits for the run any more, and the next attempt must find its folder free.
        os._exit(command.RETRY)
    asked.put(None)


def _print_to(log: Path) -> None:
    """Appends everything that this process prints from now on to a file."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    command.run(main)
