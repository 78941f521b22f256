"""What is said about which kernel serves a case: lines, each said once, since a layer is traced
many times, and the refusal of one that the config names."""

import functools
import logging
import sys


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, once for each message."""
    logging.warning(message)


@functools.cache
def tell_once(message: str) -> None:
    """Prints a note on standard error, once for each message."""
    print(f"note: {message}", file=sys.stderr)


class CannotServe(ValueError):
    """A kernel that the config names cannot serve a case: a mistake in the settings, though it is
    seen only when the first step is traced."""
