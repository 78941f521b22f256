"""Texts that may harm, as samples and reports show them."""

import re

_WORD = re.compile(r"\w+")


def mask(text: str) -> str:
    """Every word with dots for all letters but its first, so that a reader sees how long and of
    what form a text is, and no more.

    >>> mask("Pick the lock, now!")
    'P••• t•• l•••, n••!'
    """
    return _WORD.sub(lambda word: word[0][0] + "•" * (len(word[0]) - 1), text)
