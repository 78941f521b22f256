"""Lines about which kernel serves a case, each said once: a layer is traced many times."""

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
