"""Warnings for cases that a kernel does not support."""

import functools
import logging


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, once for each message: a layer is traced many times."""
    logging.warning(message)
