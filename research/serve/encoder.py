"""An encoder, such as BERT, behind a server: it writes no texts and has vectors of them."""

from collections.abc import Sequence

import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.prompts import Prompt, check_ids
from research.infer.sentences import SentenceSettings, pooled
from research.infer.text_batches import framed
from research.models.model import Model
from research.serve.counts import Counts
from research.serve.pages import Pages
from research.serve.request import Request
from research.tree import Tree

_LEAST = 32  # tokens that texts are padded to, or twice as many, and so on


class Encoder:
    """Stands where a server has an engine: as one that never has a text, whose every prompt is
    refused. Vectors are as `settings` say, which a checkpoint has for the one it was trained to
    give (`research.infer.sentences`)."""

    running, waiting = 0, 0

    def __init__(
        self, model: Model, params: Tree, tokenizer: Tokenizer, settings: SentenceSettings
    ):
        self.model, self.params, self.tokenizer, self.settings = model, params, tokenizer, settings
        self.length = min(settings.max_tokens, model.config.max_length)
        self.pages, self.counts = Pages(1, 1), Counts()

    def prompt_ids(self, request: Request) -> list[int]:
        """ValueError: there is nothing that continues a prompt."""
        raise ValueError("the model is an encoder and writes no text; ask /v1/embeddings")

    def submit(self, request: Request) -> None:
        """As `prompt_ids`, before which no server asks."""
        self.prompt_ids(request)

    def cancel(self, text: object) -> None:
        """Nothing: there is no text."""

    def step(self) -> list:
        """Nothing."""
        return []

    def ids(self, text: Prompt) -> list[int]:
        """The tokens of a text between those that begin and end one; ids as they are. ValueError
        for a text that the model cannot read whole, and ids outside its vocabulary."""
        ids = list(text)
        if isinstance(text, str):
            ids = framed(self.tokenizer, self.tokenizer.encode(text), len(text.encode()) + 8)
        check_ids(self.model.config, 0, text, ids)
        if len(ids) > self.length:
            raise ValueError(
                f"the text has {len(ids):,} tokens, and the model reads at most {self.length:,}; "
                "shorten it"
            )
        return ids

    def vector(self, ids: Sequence[int], adapter: str = "") -> np.ndarray:
        """The vector of a text with these tokens, float32 [D]."""
        tokens_BT, kept_BT = padded(ids, self.length)
        how = {"model": self.model, "settings": self.settings}
        return np.asarray(pooled(self.params, tokens_BT, kept_BT, **how))[0]


def padded(ids: Sequence[int], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """(a text's tokens, 1 for each and 0 for padding), int32 [1, T] each, with T one of few."""
    length = _LEAST
    while length < len(ids):
        length *= 2
    tokens_BT, kept_BT = np.zeros((2, 1, min(length, longest)), np.int32)
    tokens_BT[0, : len(ids)], kept_BT[0, : len(ids)] = ids, 1
    return tokens_BT, kept_BT
