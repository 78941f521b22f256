"""Counts of documents that are left out, cut, empty, or both held out and trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.data.tokens import TokenStore

_BLOCK = 1 << 20  # records that are compared at a time


@dataclass(frozen=True)
class Census:
    """How documents fit into windows.

    kind      what a document is, in the plural: "texts", "conversations", ...
    total     documents that could be read
    length    tokens of an example
    left_out  documents without a target in the window: the first one comes after its end
    cut       documents whose end does not fit
    empty     documents without a token, which are left out
    silent    pairs whose target has no token, of which only the end is learnt
    shortened documents whose prompt has lost its beginning
    first_empty, first_left_out, first_cut  the path of the first of them, "" where it is not known
    """

    kind: str
    total: int
    length: int
    left_out: int = 0
    cut: int = 0
    empty: int = 0
    silent: int = 0
    shortened: int = 0
    first_empty: str = ""
    first_left_out: str = ""
    first_cut: str = ""

    def lines(self) -> list[str]:
        """One line for the user on what is left out or cut; no line if every document is whole.

        >>> Census("conversations", 137, 256, left_out=38, cut=38).lines()
        ['left out 38, cut 38 of 137 conversations at 256 tokens']
        """
        lines = []
        if self.empty:
            first = f", the first: {self.first_empty}" if self.first_empty else ""
            lines.append(f"left out {self.empty} empty of {self.total} {self.kind}{first}")
        if self.silent:
            lines.append(
                f"{self.silent} of {self.total} {self.kind} have an empty target: that nothing "
                "follows is what they teach"
            )
        if self.shortened:
            lines.append(
                f"left out the beginning of {self.shortened} of {self.total} prompts, by "
                "config.data.prompt_tokens"
            )
        if self.left_out or self.cut:
            losses = {"left out": self.left_out, "cut": self.cut}
            # Most kinds of documents are only ever cut; their line does not mention the other.
            named = [f"{name} {count}" for name, count in losses.items() if count or self.left_out]
            firsts = {"left out": self.first_left_out, "cut": self.first_cut}
            where = ", ".join(f"{name} {path}" for name, path in firsts.items() if path)
            line = f"{', '.join(named)} of {self.total} {self.kind} at {self.length} tokens"
            lines.append(f"{line}; the first: {where}" if where else line)
        return lines


def unmarked_bounds(
    store: TokenStore, bos_id: int | None, eos_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(first, end) index in `store.ids` of each document, int64 [documents], excluding a bos that
    the document starts with and an eos that it ends with. Packing adds these two tokens, so a text
    that contains them already would have them twice."""
    starts, stops = store.offsets[:-1].copy(), store.offsets[1:].copy()
    if len(store.ids):
        # "clip": an empty document at the end of the store has an index beyond the last token.
        if bos_id is not None:
            first = store.ids.take(starts, mode="clip")
            starts += (first == bos_id) & (stops > starts)
        if eos_id is not None:
            last = store.ids.take(stops - 1, mode="clip")
            stops -= (last == eos_id) & (stops > starts)
    return starts, stops


def count_repeated(heldout: Sequence[TokenStore], train: Sequence[Sequence[TokenStore]]) -> int:
    """The number of held-out records that also occur in the training data, equal in every field.

    `heldout` is a list with one store for each field of the records, and so is each element of
    `train`. Empty records are not counted.
    """
    wanted = _sketches(heldout, 0, len(heldout[0]))
    filled = np.diff(heldout[0].offsets) > 0
    hidden = {row: _record(heldout, row) for row in np.flatnonzero(filled).tolist()}
    unseen = set(hidden.values())
    for part in train:
        # A few numbers of each record say that most are no match; the others are compared whole.
        # In blocks, because a sketch takes more memory than some records do.
        for first in range(0, len(part[0]), _BLOCK):
            sketches = _sketches(part, first, min(first + _BLOCK, len(part[0])))
            for row in (first + np.flatnonzero(np.isin(sketches, wanted))).tolist():
                if unseen:
                    unseen.discard(_record(part, row))
    return sum(record not in unseen for record in hidden.values())


def _sketches(stores: Sequence[TokenStore], first: int, stop: int) -> np.ndarray:
    """uint64 [stop - first], equal for equal records: a hash of the length and eight tokens of each
    field of the records from `first` on."""
    sketches = np.zeros(stop - first, np.uint64)
    for store in stores:
        starts, sizes = store.offsets[first:stop], np.diff(store.offsets[first : stop + 1])
        values = [sizes]
        if len(store.ids):
            values += [
                store.ids.take(starts + sizes * part // 8, mode="clip") * (sizes > 0)
                for part in range(8)
            ]
        for value in values:
            # FNV-1a, by words instead of bytes; unsigned arithmetic wraps around.
            sketches = (sketches ^ value.astype(np.uint64)) * np.uint64(0x100000001B3)
    return sketches


def _record(stores: Sequence[TokenStore], row: int) -> bytes:
    fields = (store.ids[store.offsets[row] : store.offsets[row + 1]] for store in stores)
    return b"\0".join(np.asarray(ids, "<u4").tobytes() for ids in fields)
