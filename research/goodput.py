"""Says where the time of a run went: python -m research.goodput RUN

    python -m research.goodput runs/quickstart
    python -m research.goodput runs/quickstart --json

The time from the start of the first process to the last event of the run is divided among training
steps that count, start, compilation, waiting for data, evaluation, samples, checkpoints, steps that
were lost with a process, and downtime between processes. `report.html` has the same as a picture.
"""

import json
from pathlib import Path

from absl import flags

from research import command
from research.training.events import EVENTS, read_events
from research.training.goodput import goodput
from research.training.progress import clock_time
from research.training.time_chart import time_lines

JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        raise ValueError(
            "give one run directory, such as python -m research.goodput runs/quickstart"
        )
    folder = Path(arguments[0])
    events = read_events(folder)
    if not events:
        raise ValueError(
            f"{folder} has no {EVENTS}; give the --workdir of a training run that was made by this "
            "version or a newer one"
        )
    spent = goodput(events)
    if JSON.value:
        print(
            json.dumps(
                {
                    "goodput": spent.share,
                    "total": spent.total,
                    "processes": spent.processes,
                    "seconds": dict(spent.seconds),
                }
            )
        )
        return command.DONE
    print(
        f"{spent.share:.1%} of {clock_time(spent.total)} were steps that count, in "
        f"{spent.processes} process{'es' * (spent.processes > 1)}\n"
    )
    print("\n".join(time_lines(spent)))
    return command.DONE


if __name__ == "__main__":
    command.run(main)
