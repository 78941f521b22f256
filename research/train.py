"""Trains the model that a config describes.

    python -m research.train --config=configs/quickstart.py --workdir=runs/quickstart

A run is four hops: config -> experiment -> training/step.py (model + objective) -> run directory.
This file reads the flags; the loop is in `research/run/loop.py`. A workdir that holds a run resumes
it.
"""

from research import allocator

if __name__ == "__main__":
    allocator.restart_keeping_memory()  # before JAX is imported

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from research import command
from research.fit.at_hand import predict
from research.parallel.processes import start_processes
from research.run.loop import Result, train
from research.run.resolve import from_config
from research.run.workdir import refuse_addresses

__all__ = ["Result", "main", "train"]

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides"
)
WORKDIR = flags.DEFINE_string("workdir", None, "the run directory; one that holds a run resumes it")
ALLOW_CHANGED = flags.DEFINE_bool(
    "allow_changed_config", False, "resume although the config differs"
)
PROFILE = flags.DEFINE_string(
    "profile", "", "START:STOP, the steps to trace with the profiler, for xprof"
)

# A recipe always has steps, so that both are set can be seen in the flags alone.
LENGTHS = ("steps", "epochs")


def main(arguments: list[str]) -> int:
    """Reads the flags, trains, and returns the exit code (`research.command`)."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; "
            "flags are --config, --workdir and --config.FIELD=VALUE"
        )
    # Settings first: a mistake in a flag should not wait for the other processes of a job.
    config = command.read_config(CONFIG)
    if not WORKDIR.value:
        raise ValueError("give --workdir=FOLDER, such as --workdir=runs/quickstart")
    refuse_addresses(WORKDIR.value)
    if all(any(w.startswith(f"--config.train.{n}=") for w in sys.argv) for n in LENGTHS):
        raise ValueError(
            "--config.train.steps and --config.train.epochs are both given; choose one"
        )
    start_processes()
    result = train(
        from_config(config),
        Path(WORKDIR.value),
        allow_changed=ALLOW_CHANGED.value,
        profile=_profile_steps(PROFILE.value),
        predict=predict,
    )
    return result.exit_code


def _profile_steps(text: str) -> range:
    start, _, stop = text.partition(":")
    if text and not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise ValueError(f"--profile={text!r} must be START:STOP, two steps, such as 10:15")
    return range(int(start), int(stop)) if text else range(0)


if __name__ == "__main__":
    command.run(main)
