"""The row of a step, put together on the host from the texts whose turn it is."""

from collections.abc import Sequence

import numpy as np

from research.infer.sampling import SamplingConfig
from research.serve.draw import Draws, settings
from research.serve.shapes import Shape, Shapes
from research.serve.step import Row
from research.serve.text import Text

_NOBODY = SamplingConfig(temperature=0.0)  # of rows without a text: nothing is drawn for them


def assemble(
    singles: Sequence[Text],
    chunk: tuple[Text, int] | None,
    shapes: Shapes,
    virtual: int,
    shape: Shape | None = None,
    *,
    vocab_size: int,
) -> tuple[Shape, Row]:
    """(the shape, the row) of a step with the next token of each of `singles`, and so many tokens
    of the text of `chunk`. Positions start behind `virtual` tokens. A `shape` is taken instead of
    the smallest; `vocab_size` is how many tokens a grammar may forbid."""
    texts = [*singles, *([chunk[0]] if chunk else [])]
    if shape is None:
        pages = max(len(text.pages) for text in texts)
        scored = chunk is not None and chunk[0].scored
        shape = shapes.fit(len(singles), chunk[1] if chunk else 0, pages, scored)
    row = _blank(shape, shapes.page_size, -(-vocab_size // 32))
    for index, text in enumerate(singles):
        _put(row, text, index, index, 1, virtual)
    if chunk is not None:
        _put(row, chunk[0], shape.singles, shape.singles, chunk[1], virtual)
    samplings = [_NOBODY] * shape.texts
    for index, text in zip(_places(singles, chunk, shape), texts):
        samplings[index] = text.request.sampling
        row.draws.seed_M[index] = text.request.sampling.seed
        row.draws.stream_M2[index] = text.stream
    row.draws.settings_M1.update(settings(samplings))
    row.draws.top[...] = any(text.request.alternatives for text in texts)
    return shape, row


def _places(singles: Sequence[Text], chunk: tuple | None, shape: Shape) -> list[int]:
    """The row of the table of each text."""
    return [*range(len(singles)), *([shape.singles] if chunk else [])]


def _blank(shape: Shape, page_size: int, words: int) -> Row:
    """A row of padding, and bits in so many words for a grammar's tokens."""
    T, R = shape.tokens, shape.texts
    draws = Draws(
        {},
        np.zeros(R, np.uint32),
        np.zeros((R, 2), np.uint32),
        np.zeros(R, np.int32),
        np.zeros((), bool),
        np.zeros((R, 1), bool),
        np.zeros((R, words), np.uint32),
    )
    return Row(
        np.zeros(T, np.int32),
        np.zeros(T, np.int32),
        np.zeros(T, np.int32),
        np.zeros((R, shape.pages), np.int32),
        np.minimum(np.arange(R, dtype=np.int32), T - 1),
        np.full((R, shape.pages * page_size), -1, np.int32),
        draws,
        np.zeros(T, np.int32),
    )


def _put(row: Row, text: Text, index: int, first: int, tokens: int, virtual: int) -> None:
    """Puts the next tokens of a text into the row from `first` on, and the text into row `index` of
    the table."""
    start, stop = text.cached, text.cached + tokens
    here = slice(first, first + tokens)
    row.inputs_T[here] = text.ids[start:stop]
    row.positions_T[here] = np.arange(start, stop) + virtual
    row.segments_T[here] = 1
    follows = text.ids[start + 1 : stop + 1]
    row.follows_T[first : first + len(follows)] = follows
    row.table_RC[index, : len(text.pages)] = text.pages
    # Of a text that is read in several steps a part, for which nothing is drawn.
    seen = text.ids[: row.texts_MS.shape[1]]
    row.texts_MS[index, : len(seen)] = seen
    row.last_M[index] = first + tokens - 1
    row.draws.position_M[index] = stop - 1
    if text.guide is not None and stop == len(text.ids):
        row.draws.guided_M1[index] = True
        # A model may have more rows in its table than its tokenizer has tokens, or fewer.
        allowed = text.guide.mask(text.left)[: row.draws.allowed_MW.shape[1]]
        row.draws.allowed_MW[index, : len(allowed)] = allowed
