"""A conversation on an engine: what was said stays in its pages, so that each turn is read once.

The loop of `research.infer.decode` reads all of a conversation again for each answer, and is what
answers where no engine can (`research.serve.batch.fits`).
"""

from collections.abc import Iterator, Mapping

import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.decode import stream
from research.infer.padding import bucket, row_count
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.serve.batch import PAGE_SIZE, fits, longest, pieces
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.soft import NONE as NO_MEDIA
from research.tree import Tree

_CHUNK = 128  # tokens that are read in one step


class Dialogue:
    """Answers the turns of one conversation after the other, each with all that was said before it
    as its prompt. The texts are those of `research.infer.decode.stream`."""

    def __init__(self, model: Model, params: Tree, tokenizer: Tokenizer):
        self._inputs = model, params, tokenizer
        self._engine: Engine | None = None

    def answer(
        self, ids: list[int], config: SamplingConfig, media: Mapping[str, np.ndarray] = NO_MEDIA
    ) -> Iterator[str]:
        """The pieces of the answer to a prompt, as soon as they can no longer change; `media` are
        those in its places, as of a `Request`."""
        model, params, tokenizer = self._inputs
        if not fits(model, params, [ids], config, media):
            given = [media.get("images")], [media.get("sounds")]
            written = stream(model, params, tokenizer, [ids], config, *given)
            yield from (piece for _, piece in written)
            return
        try:
            request = Request(ids, config, media=media)
            engine = self._room(len(ids) + config.max_tokens)
            yield from (piece for _, piece in pieces(engine, [request]))
        except BaseException:
            # Ctrl-C may have come in the midst of a step, which has taken the pages and not given
            # them back.
            self._engine = None
            raise

    def _room(self, tokens: int) -> Engine:
        """An engine for a text of so many tokens: the one that there is, or one with room for twice
        as many, which reads the conversation again."""
        model, params, tokenizer = self._inputs
        if self._engine is None or self._engine.length < tokens:
            length = min(bucket(2 * tokens), longest(model, params))
            pages, rows = -(-length // PAGE_SIZE), row_count(1, model)
            sizes = {"pages": pages, "page_size": PAGE_SIZE, "rows": rows, "chunk": _CHUNK}
            # One table of pages for all lengths: a longer one costs a small model less than to
            # compile its programs again as the conversation grows.
            self._engine = Engine(model, params, tokenizer, length=length, few=True, **sizes)
        return self._engine
