"""`WindowOptions`: what every layout needs to make windows of tokens from documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from research.data import tokens
from research.data.documents import Documents
from research.data.media.soft_tokens import SoftTokens
from research.data.tokenizers import Tokenizer
from research.data.tokens import Encoder, TokenStore

# Windows by random access, each a dict of arrays whose names depend on the layout. An objective
# makes one example of one window.
Windows = Sequence[dict[str, np.ndarray]]
Progress = Callable[[int, int], None]  # called with (documents done, documents in all)


@dataclass(frozen=True)
class WindowOptions:
    """How to make windows.

    tokenizer        for the texts
    cache            folder in which tokens are kept
    length           tokens of a window
    overlap          tokens that two neighbouring windows of a text share
    seed             permutes the documents once; None keeps their order
    labels           names of the classes, () without
    packing          whether windows of texts hold several of them
    prompt_tokens    most tokens of a prompt that has answers, 0 for no limit
    soft             the encoder of images of the model, None without one
    max_bad_records  unreadable records that are left out, each with a warning, before an error
    progress         called while documents are tokenised
    told             warnings of records that were left out; each is given once, however many fields
                     of a record have a store
    """

    tokenizer: Tokenizer
    cache: Path
    length: int
    overlap: int = 0
    seed: int | None = None
    labels: tuple[str, ...] = ()
    packing: bool = True
    prompt_tokens: int = 0
    soft: SoftTokens | None = None
    max_bad_records: int = 0
    progress: Progress | None = None
    told: set[str] = field(default_factory=set, compare=False, repr=False)

    def tokens(
        self, documents: Documents, field: str, encoder: tokens.Tokenizer | None = None
    ) -> TokenStore:
        """The token store of one field of the documents; `encoder` takes the tokenizer's place."""
        return tokens.tokenize(
            documents,
            encoder or self.tokenizer,
            self.cache,
            field=field,
            max_bad_records=self.max_bad_records,
            progress=self.progress,
            told=self.told,
        )

    def conversations(
        self, documents: Documents, encoder: Encoder, field: str = "conversation"
    ) -> TokenStore:
        """The token store of one field of conversations of the documents."""
        return tokens.tokenize_conversations(
            documents,
            encoder,
            self.cache,
            field=field,
            max_bad_records=self.max_bad_records,
            progress=self.progress,
            told=self.told,
        )
