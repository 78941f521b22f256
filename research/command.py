"""What all commands share: flags, exit codes, and one line on standard error for a user's error.

0    done
2    refused: a mistake of the user, found before the first step (one line)
1    a bug (with its traceback), or data that turned out bad in mid-run (one line)
42   try again: storage or another process failed, or training was asked to stop before its end, by
     SIGTERM, Ctrl-C or its watchdog
130  Ctrl-C in all other commands
141  whatever read the output has left, as `head` does
"""

import contextlib
import difflib
import errno
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags

from research import shipped
from research.files import flatten
from research.stopping import Interrupted

DONE, BUG, REFUSED, RETRY, INTERRUPTED, UNREAD = 0, 1, 2, 42, 130, 141

# Called with the exit code before a process ends in any other way than well.
AT_FAILURE: list[Callable[[int], None]] = []

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
    # Here, as Orbax's import sets a form of its own where there is none ("WARNING:root:").
    logging.basicConfig(format="%(levelname)s %(message)s")
    code = _guarded(main)
    if code != DONE:
        tell_failure(code)
    logging.shutdown()
    if _output_is_closed():
        code = UNREAD if code == DONE else code
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    if code not in (DONE, REFUSED) or (code == REFUSED and _one_of_several()):
        # Interpreter exit would wait for data threads, and for the other processes of a job, which
        # wait for this one: five minutes, until the barrier of jax.distributed gives up.
        os._exit(code)
    sys.exit(code)


def tell_failure(code: int) -> None:
    """Calls all of AT_FAILURE; what fails in there changes nothing any more."""
    for tell in AT_FAILURE:
        with contextlib.suppress(Exception):
            tell(code)


def _output_is_closed() -> bool:
    """True if nobody reads standard output any more. What is kept for it is then dropped, so that
    the interpreter's own exit does not fail over it."""
    if sys.stdout is None:  # closed by whoever started the program
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # 0: errors alone
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _one_of_several() -> bool:
    """True in a process of a job of several. This file does not import JAX, which takes a second,
    and a process that has not imported it is alone."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


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
        if stop.__cause__ is not None:
            traceback.print_exception(stop.__cause__)
        return _say(stop.code, str(stop))
    except ValueError as error:
        # A collective whose other processes are gone raises one too.
        return _say(RETRY if collective_failed(error) else REFUSED, str(error))
    except Interrupted as stop:
        return _say(RETRY, f"{stop}; the same command goes on from the last checkpoint")
    except KeyboardInterrupt:
        return _say(INTERRUPTED, "interrupted")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else DONE
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return UNREAD
        if no_space_left(error):
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            return _say(
                RETRY,
                f"no space left on the disk: {reason}; what was saved before is intact: free some "
                "space and start the same command again",
            )
        traceback.print_exc()
        return RETRY if peer_or_storage_failed(error) else BUG


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are not flags. ValueError for a config that cannot be loaded, or a field
    of it that cannot be set."""
    # ml_collections reads sys.argv beside the words that it is given.
    sys.argv[:] = argv = shipped.with_files(argv)
    for word, following in zip(argv, [*argv[1:], ""]):
        name, given, value = word.partition("=")
        if name.startswith("--"):
            _refuse_store(name, value if given else following)
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
    except (AttributeError, KeyError, TypeError):
        # ml_collections raises these for a field that a config lacks, and config files for mistakes
        # of their own. The config without the overrides tells them apart.
        overrides = [word for word in argv[1:] if word.startswith("--config.")]
        flags.FLAGS.unparse_flags()
        # ml_collections looks for the overrides in sys.argv itself.
        before, sys.argv = sys.argv, [word for word in argv if word not in overrides]
        try:
            flags.FLAGS(sys.argv)
        finally:
            sys.argv = before
        for word in overrides:
            _refuse_unknown_field(flags.FLAGS["config"].value, word.partition("=")[0])
        raise


def _refuse_unknown_field(config: Any, flag: str) -> None:
    """ValueError, with the nearest names, if `--config.SECTION.FIELD` is not in the config."""
    node, path = config, flag.removeprefix("--").split(".")
    for depth, name in enumerate(path[1:], 1):
        where = ".".join(path[:depth])
        if not hasattr(node, "keys"):
            raise ValueError(f"{where} is a value and no section, so {flag} cannot be set")
        if name not in node:
            near = difflib.get_close_matches(name, list(node), n=3, cutoff=0.0)
            raise ValueError(f"{where} has no field {name!r}; the nearest are {', '.join(near)}")
        node = node[name]


def read_config(flag: flags.FlagHolder) -> Any:
    """The ConfigDict of a config flag. ValueError if the flag or its file is missing."""
    if flag.value is None:
        raise ValueError("give --config=FILE, such as --config=configs/quickstart.py")
    try:
        for name, value in flatten(flag.value.to_dict()).items():
            _refuse_store(f"config.{name}", value)
    except OSError as error:
        # ml_collections' words, before it gives the errors of the paths that it tried.
        named = re.search(r"Attempted \[[^]]*\]:\s+(.+)", str(error))
        near = shipped.nearest_file(named[1]) if named else ""
        raise ValueError(
            f"the config file cannot be loaded: {_last_line(error)}"
            + (f"; the nearest is {near}" if near else "")
        ) from None
    return flag.value


def _refuse_store(name: str, value: Any) -> None:
    """ValueError for the address of an object store, which as a path would be a local folder of
    that name."""
    # In a text, such as a prompt, it is no path; a path of several may have it behind a comma.
    found = isinstance(value, str) and re.fullmatch(
        r"(?:\S*,)?((gs|gcs|s3|r2|az|abfss?|hdfs)://[^\s,]*)(?:,\S*)?", value
    )
    if found:
        place = f"/mnt/{found[2]}/{found[1].rstrip('/').rpartition('/')[2]}"
        raise ValueError(
            f"{name}: {found[1]} is an address in an object store, and files are read and written "
            f"in mounted file systems; mount it (gcsfuse for gs, s3fs for s3) and give the path, "
            f"such as {place}"
        )


def _last_line(error: Exception) -> str:
    """The last line of an error's text. The text ends in a traceback where a config file has raised
    the error."""
    line = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    return line.removeprefix("ValueError: ")


# As errors of XLA begin: a status of gRPC, then Gloo or NCCL, which carry collectives of CPUs and
# cards.
_COLLECTIVE = re.compile(
    r"^(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|CANCELLED): .*"
    r"(gloo|nccl|socket|connection|peer|coordination|timed out)",
    re.IGNORECASE | re.DOTALL,
)


def collective_failed(error: BaseException) -> bool:
    """True for the error of an operation of several processes of which one was lost."""
    return bool(_COLLECTIVE.search(str(error)))


def peer_or_storage_failed(error: BaseException) -> bool:
    """True for errors after which another attempt may succeed: another process was lost, or storage
    is full or away."""
    # jaxlib raises one class for all of these; the text has the name of the gRPC status.
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
        # A missing file would be missing again, and a file in the place of a folder be one again.
        and not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
        or collective_failed(error)
        or any(word in text for word in lost)
    )


def no_space_left(error: BaseException | None) -> bool:
    """True if an error, or one that has caused it, is that of a full disk or an exhausted quota."""
    while error is not None:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # Libraries in C++ pass on the words of the system without its number.
        if full or "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(code: int, line: str) -> int:
    print(f"error: {line}" if code != INTERRUPTED else line, file=sys.stderr)
    return code
