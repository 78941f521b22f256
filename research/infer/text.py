"""Incremental decoding of a continuation: its text token by token, and how much of it is final."""

from collections.abc import Callable, Sequence

_CONTEXT = 8  # ids decoded again before the new ones: a space or letter can depend on neighbours
# New ids after which the context moves on, so that the cost of a token does not grow with the text.
_DECODED = 16
_UNFINISHED = "\ufffd"


class Continuation:
    """Text after a prompt, token by token, cut before the first stop string.

    `text` is what has been decoded so far. Its first `certain` characters can no longer change; the
    others can, because a trailing U+FFFD may become a letter with the next token, and the beginning
    of a stop string is removed once the string is complete. After `close`, or once `stopped`, all
    is certain. The prompt's text and `text` joined are the text of all ids together.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], prompt: Sequence[int], stop: Sequence[str]
    ):
        self._decode, self._stop = decode, tuple(stop)
        self._settled = ""
        self._move_context(list(prompt))
        self.text, self.certain, self.stopped = "", 0, False

    def add(self, token_id: int) -> None:
        """Adds the next token. Do not call it again once `stopped`."""
        self._ids.append(token_id)
        fresh = self._decode(self._context + self._ids)[len(self._prefix) :]
        self.text = self._settled + fresh
        # A stop string cannot begin before `certain`: its beginning would not have been certain.
        starts = [at for stop in self._stop if (at := self.text.find(stop, self.certain)) >= 0]
        if starts:
            self.text, self.stopped = self.text[: min(starts)], True
            self.certain = len(self.text)
            return
        finished = self.text.rstrip(_UNFINISHED)
        self.certain = max(self.certain, len(finished) - _begun(finished, self._stop))
        # Never in the middle of a letter, whose bytes must be decoded together.
        if len(self._ids) >= _DECODED and finished == self.text:
            self._settled = self.text
            self._move_context(self._context + self._ids)

    def close(self) -> None:
        """Ends the text: all of it is certain."""
        self.certain = len(self.text)

    def _move_context(self, ids: list[int]) -> None:
        self._context, self._ids = ids[-_CONTEXT:], []
        self._prefix = self._decode(self._context)


def _begun(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
    longest = max(map(len, stops), default=1) - 1
    return next(
        (
            n
            for n in range(min(longest, len(text)), 0, -1)
            if any(s.startswith(text[-n:]) for s in stops)
        ),
        0,
    )
