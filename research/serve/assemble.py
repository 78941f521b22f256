"""The row of a step, put together on the host from the texts whose turn it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from research.infer.sampling import SamplingConfig
from research.serve.adapters import NONE
from research.serve.draw import Draws, settings
from research.serve.penalties import blank
from research.serve.runner import Runner
from research.serve.shapes import Shape, Shapes
from research.serve.step import Row
from research.serve.text import Text

_NOBODY = SamplingConfig(temperature=0.0)  # of rows without a text: nothing is drawn for them


@dataclass(frozen=True)
class Turn:
    """Whose turn it is in a step: the texts that go on, the texts that are read with how many
    tokens of each, and the tokens that are guessed ahead for some of the former, by number."""

    singles: Sequence[Text] = ()
    chunks: Sequence[tuple[Text, int]] = ()
    drafts: dict[int, list[int]] = field(default_factory=dict)

    @property
    def texts(self) -> list[Text]:
        """All of them."""
        return [*self.singles, *(text for text, _ in self.chunks)]

    def shape(self, shapes: Shapes) -> Shape:
        """The smallest shape for them."""
        pages = max(len(text.pages) for text in self.texts)
        scored = any(text.scored for text, _ in self.chunks)
        tokens = [tokens for _, tokens in self.chunks]
        return shapes.fit(len(self.singles), tokens, pages, scored, bool(self.drafts))


def assemble(turn: Turn, shape: Shape, page_size: int, runner: Runner) -> Row:
    """The row of a step in this shape, for what runs it."""
    c = runner.model.config
    row = _blank(shape, page_size, -(-c.vocab_size // 32))
    if c.image.in_texts or c.sound.layers:
        row = _with_soft(row, c.d_model, c.image.in_texts and c.image.attention != "causal")
    samplings = [_NOBODY] * shape.drawn
    for index, text in enumerate(turn.singles):
        drafts = turn.drafts.get(text.number, [])
        _put(row, text, index, index * shape.each, [text.ids[-1], *drafts], runner)
        for ahead in range(len(drafts) + 1):
            at = index * shape.each + ahead
            _draw(row, text, at, drafts[:ahead])
            # What a draft model guesses is not known yet, see `allow`.
            if not ahead or runner.draft is None:
                _allow(row, text, at, drafts[:ahead])
            samplings[at] = text.request.sampling
            row.last_M[at] = at
    for index, (text, tokens) in enumerate(turn.chunks):
        at, first = shape.unread + index, shape.unread + index * shape.chunk
        read = text.ids[text.cached : text.cached + tokens]
        _put(row, text, shape.singles + index, first, read, runner)
        follows = text.ids[text.cached + 1 : text.cached + tokens + 1]
        row.follows_T[first : first + len(follows)] = follows
        _draw(row, text, at, ())
        _allow(row, text, at, ())
        samplings[at] = text.request.sampling
        row.last_M[at] = first + tokens - 1
    row.draws.settings_M1.update(settings(samplings))
    row.draws.top[...] = any(text.request.alternatives for text in turn.texts)
    return row


def allow(turn: Turn, shape: Shape, row: Row, inputs_T: np.ndarray) -> None:
    """Sets what grammars allow behind the tokens that a draft model has guessed, which are in
    `inputs_T`, the tokens of the row."""
    for index, text in enumerate(turn.singles):
        first = index * shape.each
        for ahead in range(1, len(turn.drafts.get(text.number, [])) + 1):
            _allow(row, text, first + ahead, inputs_T[first + 1 : first + 1 + ahead].tolist())


def _blank(shape: Shape, page_size: int, words: int) -> Row:
    """A row of padding, with so many words for the bits of tokens."""
    T, M = shape.tokens, shape.drawn
    draws = Draws(
        {},
        np.zeros(M, np.uint32),
        np.zeros((M, 2), np.uint32),
        np.zeros(M, np.int32),
        np.zeros((), bool),
        np.zeros((M, 1), bool),
        np.zeros((M, words), np.uint32),
        blank(M),
    )
    return Row(
        np.zeros(T, np.int32),
        np.zeros(T, np.int32),
        np.zeros(T, np.int32),
        np.zeros((shape.texts, shape.pages), np.int32),
        np.zeros(shape.texts, np.int32),
        np.minimum(np.arange(M, dtype=np.int32), T - 1),
        np.full((M, shape.pages * page_size), -1, np.int32),
        draws,
        np.zeros(T, np.int32),
        np.full(T, NONE, np.int32),
    )


def _with_soft(row: Row, width: int, blocks: bool) -> Row:
    """The row with room for vectors of this width in the places of its tokens, and, if they can be
    in blocks, for the spans of these."""
    T = len(row.inputs_T)
    spans_T2 = np.zeros((T, 2), np.int32) if blocks else None
    vectors_TD = np.zeros((T, width), np.float32)
    return replace(row, soft_TD=vectors_TD, soft_at_T=np.full(T, -1, "i4"), spans_T2=spans_T2)


def _put(row: Row, text: Text, index: int, first: int, ids: Sequence[int], runner: Runner) -> None:
    """Puts tokens of a text, those behind what is in its pages, into the row from `first` on, with
    the vectors of media in whose places they are, and its pages into row `index` of the table."""
    here = slice(first, first + len(ids))
    row.inputs_T[here] = ids
    row.positions_T[here] = np.arange(text.cached, text.cached + len(ids))
    if row.soft_TD is not None and row.soft_at_T is not None:
        encode = partial(runner.encode, adapter=text.adapter)
        for places, vectors in text.soft.vectors(text.cached, text.cached + len(ids), encode):
            at = places - text.cached + first
            row.soft_TD[at], row.soft_at_T[at] = vectors, at
    if row.spans_T2 is not None:
        row.spans_T2[here] = text.soft.spans(text.cached, text.cached + len(ids))
    row.segments_T[here] = 1
    row.adapters_T[here] = text.adapter
    row.table_RC[index, : len(text.pages)] = text.pages
    row.slot_R[index] = text.slot


def _draw(row: Row, text: Text, at: int, ahead: Sequence[int]) -> None:
    """Lets the token be drawn that follows a text's tokens and those that are guessed `ahead`."""
    # Of a text that is read in several steps a part, for which nothing is drawn.
    seen = [*text.ids, *ahead][: row.texts_MS.shape[1]]
    row.texts_MS[at, : len(seen)] = seen
    row.draws.seed_M[at] = text.request.sampling.seed
    row.draws.stream_M2[at] = text.stream
    row.draws.position_M[at] = len(text.ids) + len(ahead) - 1
    row.draws.penalties.put(at, text.request.penalties, len(text.prompt))


def _allow(row: Row, text: Text, at: int, ahead: Sequence[int]) -> None:
    """Keeps to a text's grammar, if it has one, behind tokens that are guessed `ahead`."""
    if text.guide is not None:
        row.draws.guided_M1[at] = True
        # A model may have more rows in its table than its tokenizer has tokens, or fewer.
        allowed = text.guide.mask(text.left - len(ahead), ahead)[: row.draws.allowed_MW.shape[1]]
        row.draws.allowed_MW[at, : len(allowed)] = allowed
