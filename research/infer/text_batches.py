"""Whole texts in batches for an encoder: framed by its special tokens and padded."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from research.data.tokenizers import Tokenizer

_log = logging.getLogger(__name__)

ROWS = 32  # texts of a batch
STEP = 16  # lengths are rounded up to a multiple, so that few programs are compiled


def text_batches(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """(indices of some texts, their ids int32 [ROWS, T], 1 for tokens and 0 for padding [ROWS, T]).

    Each text is framed by the tokens that begin and end one, [CLS] and [SEP], and cut so that it
    has at most `longest` tokens with them, which is said in one line. Rows after the texts of a
    batch are padding.
    """
    encoded = tokenizer.encode_batch(list(texts))
    rows = [framed(tokenizer, ids, longest) for ids in encoded]
    marks = len(framed(tokenizer, [], longest))
    whole = [len(ids) + marks for ids in encoded]
    if cut := sum(size > longest for size in whole):
        _log.warning(
            f"cut {cut} of {len(texts)} texts, of up to {max(whole):,} tokens, at {longest:,}: the "
            "rest is not read"
        )
    # Texts of similar length share a batch, which needs little padding.
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for first in range(0, len(order), ROWS):
        batch = order[first : first + ROWS]
        width = min(-(-max(len(rows[n]) for n in batch) // STEP) * STEP, longest)
        # Always ROWS rows, also in the last batch: only the width asks for another program.
        tokens_BT, kept_BT = np.zeros((2, ROWS, width), np.int32)
        for at, n in enumerate(batch):
            tokens_BT[at, : len(rows[n])], kept_BT[at, : len(rows[n])] = rows[n], 1
        yield batch, tokens_BT, kept_BT


def framed(tokenizer: Tokenizer, ids: list[int], longest: int) -> list[int]:
    """The ids between the tokens that begin and end a text, [CLS] and [SEP]."""
    around = [n for n in (tokenizer.bos_id, tokenizer.eos_id) if n is not None]
    # Cut before framing, so that a long text keeps its [SEP].
    ids = ids[: longest - len(around)]
    return [*around[:1], *ids, *around[1:]] if len(around) == 2 else [*ids, *around]
