"""What windows of tokens are made with, whatever the layout of the documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.data import tokens
from research.data.documents import Documents
from research.data.tokenizers import Tokenizer
from research.data.tokens import TokenStore

# Windows by random access. An objective makes an example of one; its arrays are a layout's own.
Windows = Sequence[dict[str, np.ndarray]]
Progress = Callable[[int, int], None]  # of documents done, and of all


@dataclass(frozen=True)
class WindowOptions:
    """Windows of `length` tokens, of which neighbours in a text share `overlap`.

    seed             permutes the documents once; None keeps their order
    labels           names of the classes, () without
    max_bad_records  records that may be unreadable, each left out with a warning
    """

    tokenizer: Tokenizer
    cache: Path
    length: int
    overlap: int = 0
    seed: int | None = None
    labels: tuple[str, ...] = ()
    max_bad_records: int = 0
    progress: Progress | None = None

    def tokens(
        self, documents: Documents, field: str, encoder: tokens.Tokenizer | None = None
    ) -> TokenStore:
        """The tokens of a field of the documents, by the tokenizer or another `encoder`."""
        return tokens.tokenize(
            documents,
            encoder or self.tokenizer,
            self.cache,
            field=field,
            max_bad_records=self.max_bad_records,
            progress=self.progress,
        )
