"""What all commands share: flags, exit codes, and one line on standard error for a user's error.

0    done
2    refused: a mistake of the user, found before the first step (one line)
1    a bug (with its traceback), or data that turned out bad in mid-run (one line)
42   try again: storage or another process failed, or the job was preempted
130  Ctrl-C
"""

import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags

DONE, BUG, REFUSED, RETRY, INTERRUPTED = 0, 1, 2, 42, 130


HELP = flags.DEFINE_bool("help", False, "print this and do nothing", short_name="h")
HELPFULL = flags.DEFINE_bool("helpfull", False, "as --help, with the flags of libraries")


class Stop(Exception):
    """Raised to end the program with an exit code and one line on standard error."""

    def __init__(self, code: int, line: str):
        super().__init__(line)
        self.code = code


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main` and exits the process with the code for how it ended. Does not return.

    Flags are parsed first; `main` gets the arguments that are not flags. A ValueError of `main` is
    taken for a mistake of the user that was found before the first step. A loop that has begun
    raises `Stop` for what it finds.

        if __name__ == "__main__":
            command.run(main)
    """
    code = _guarded(main)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if code not in (DONE, REFUSED):
        # Interpreter exit would wait for the other processes of a job (minutes) and for data
        # threads.
        os._exit(code)
    sys.exit(code)


def _guarded(main: Callable[[list[str]], int | None]) -> int:
    try:
        arguments = _parse(sys.argv)
        if HELP.value or HELPFULL.value:
            # Imported late: only this needs it, and most commands want to answer at once.
            from research.usage import help_text

            print(help_text(main, full=HELPFULL.value))
            return DONE
        return main(arguments) or DONE
    # Order matters: `Stop` names its own code; ValueError is how all checks of settings and data
    # refuse, in words that need no traceback.
    except Stop as stop:
        return _say(stop.code, str(stop))
    except ValueError as error:
        return _say(REFUSED, str(error))
    except KeyboardInterrupt:
        return _say(INTERRUPTED, "interrupted")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else DONE
    except BaseException as error:
        traceback.print_exc()
        return RETRY if peer_or_storage_failed(error) else BUG


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are not flags. ValueError for a config that cannot be loaded, or a field
    of it that cannot be set."""
    try:
        return flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and not any(
            word.startswith("--config=") for word in argv
        ):
            raise ValueError(
                f"--{error.flagname} overrides a config and there is none; add --config=FILE"
            ) from None
        raise ValueError(str(error)) from None
    except flags.Error as error:
        raise ValueError(_last_line(error)) from None
    except (AttributeError, KeyError) as error:
        # ConfigDict's words for an unknown field end in: Did you mean "steps" instead of "stpes"?
        near = re.search(r'Did you mean "(.+)" instead of "(.+)"', str(error))
        if near:
            raise ValueError(
                f"the config has no field {near[2]!r}; the nearest is {near[1]!r}"
            ) from None
        if "does not exist" in str(error):
            raise ValueError(
                f"the config has no such field: {' '.join(str(error).split())}"
            ) from None
        raise


def read_config(flag: flags.FlagHolder) -> Any:
    """The ConfigDict of a config flag. ValueError if the flag or its file is missing."""
    if flag.value is None:
        raise ValueError("give --config=FILE, such as --config=configs/quickstart.py")
    try:
        flag.value.to_dict()
    except OSError as error:
        raise ValueError(f"the config file cannot be loaded: {_last_line(error)}") from None
    return flag.value


def _last_line(error: Exception) -> str:
    """The last line of an error's text. The text ends in a traceback where a config file has raised
    the error."""
    line = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    return line.removeprefix("ValueError: ")


def peer_or_storage_failed(error: BaseException) -> bool:
    """True for errors after which another attempt may succeed: another process was lost, or storage
    is full or away."""
    # jaxlib raises one class for all of these; the text has the name of the gRPC status, or of
    # Gloo, which carries collectives between CPUs.
    text = f"{type(error).__name__}: {error}"
    lost = (
        "Gloo",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "coordination service",
        "heartbeat",
        "Connection reset",
    )
    return (
        isinstance(error, OSError)
        # A missing file would be missing again.
        and not isinstance(error, FileNotFoundError)
        or any(word in text for word in lost)
    )


class StopRequest:
    """A context manager that turns the first Ctrl-C or SIGTERM into a request to stop, which a loop
    reads from `received`. A second one interrupts at once.

        with StopRequest() as request:
            while request.received is None: ...

    With `distributed` SIGTERM is left to jax.distributed, whose notifier makes all processes stop
    at the same step. Outside the main thread no signal is handled.
    """

    def __init__(self, distributed: bool = False):
        self.received: int | None = None
        self._signals = [signal.SIGINT] if distributed else [signal.SIGINT, signal.SIGTERM]
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python sets signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 42 after SIGTERM: a preempted job is to be started again."""
        return INTERRUPTED if self.received == signal.SIGINT else RETRY

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            # A loop that hangs would never read the request.
            raise KeyboardInterrupt
        self.received = number


def _say(code: int, line: str) -> int:
    print(f"error: {line}" if code != INTERRUPTED else line, file=sys.stderr)
    return code
