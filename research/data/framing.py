"""The row that an encoder reads of one text, or of two: tokens between its tokenizer's marks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.data.tokenizers import Tokenizer

QUESTION_TOKENS = 64  # most of a question that is read (arXiv:1810.04805's run_squad.py)


@dataclass(frozen=True)
class Frame:
    """The marks of a tokenizer: `before` a text, `between` two and `after` the last one, such as
    [CLS], [SEP] and [SEP]; RoBERTa has two between texts."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Frame":
        """The marks of a tokenizer, () for those that it lacks."""
        begin = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        return cls(begin, end * tokenizer.separators, end)

    def start(self, first: int | None = None) -> int:
        """Where the text begins in a row, or behind a `first` text of so many tokens the second."""
        return len(self.before) + (0 if first is None else first + len(self.between))

    def room(self, length: int, first: int | None = None) -> int:
        """Tokens of the text, or of the second one, that a row of `length` holds. ValueError for
        none."""
        room = length - self.start(first) - len(self.after)
        if room < 1:
            raise ValueError(
                f"{length} tokens hold none of a text between its marks; set "
                "config.data.sequence_length higher"
            )
        return room

    def question_tokens(self, length: int) -> int:
        """Most tokens of a question in a row of `length`: half of it, and no more than 64."""
        return max(1, min(QUESTION_TOKENS, (length - self.start(0) - len(self.after)) // 2))

    def row(
        self, length: int, text: Sequence[int], second: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """int32 [length] arrays: "tokens", "segments" (1, 0 for padding), "positions" and
        "token_types", 1 from the second text on."""
        first = np.concatenate([self.before, text]).astype(np.int32)
        rest: Sequence[int] = ()
        if second is not None:
            first = np.concatenate([first, self.between]).astype(np.int32)
            rest = second
        ids = np.concatenate([first, rest, self.after]).astype(np.int32)
        tokens, segments, positions, types = np.zeros((4, length), np.int32)
        tokens[: len(ids)], segments[: len(ids)] = ids, 1
        positions[: len(ids)] = np.arange(len(ids))
        if second is not None:
            types[len(first) : len(ids)] = 1
        return {
            "tokens": tokens,
            "segments": segments,
            "positions": positions,
            "token_types": types,
        }
