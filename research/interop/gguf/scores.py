"""Conversion between the two ways to say what BPE merges first: sentencepiece's score of each
piece, as GGUF stores it, and the ordered list of merges in a tokenizer.json.
"""

from collections.abc import Mapping

import numpy as np

NORMAL = 1  # the type of an ordinary token, as ggml's docs/gguf.md numbers types


def merges_from_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges, in order, that do what sentencepiece does with these scores by piece.

    sentencepiece joins, of all neighbouring pairs, the one whose joined piece scores best; so every
    pair that joins to a piece is a merge, best piece first. Of the pairs that make the same piece,
    the one with the longest left part comes first, as in transformers' converted files.

        merges_from_scores({"a": -3, "b": -2, "ab": -1}) == [("a", "b")]
    """
    ranked = []
    for piece, score in scores.items():
        # All ways to cut a piece in two; only cuts into two known pieces can ever be joined.
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in scores and piece[cut:] in scores:
                ranked.append((-score, -cut, cut - len(piece), piece[:cut], piece[cut:]))
    # By the three numbers alone: equal ones stay in the order of the vocabulary.
    ranked.sort(key=lambda pair: pair[:3])
    return [pair[3:] for pair in ranked]


def scores_from_merges(
    tokens: list[str], types: list[int], pairs: list[tuple[str, ...]]
) -> np.ndarray:
    """Scores, float32 [V] by token id, from which `merges_from_scores` gives the merges `pairs`.

    ValueError where there are none: sentencepiece ranks pieces, not pairs, so an order of merges in
    which two pairs of one piece are far apart cannot be expressed.
    """
    pieces = [token for token, kind in zip(tokens, types) if kind == NORMAL]
    known = set(pieces)
    # Merges that involve special or byte tokens never happen in sentencepiece.
    pairs = [pair for pair in pairs if "".join(pair) in known and known.issuperset(pair)]
    joined = ["".join(pair) for pair in pairs]
    # A later pair overwrites an earlier one: the last place at which each piece is made.
    last = {piece: n for n, piece in enumerate(joined)}
    # A new score begins where no piece of the earlier merges is made again later. Pieces whose
    # pairs alternate in the list share one score, as runs of spaces do in LLaMA's vocabulary.
    scores, starts, end = {}, [], -1
    for n, piece in enumerate(joined):
        if n > end:
            starts.append(n)
        end = max(end, last[piece])
        scores[piece] = -float(len(starts))
    # Pieces that no merge makes, such as single characters, rank after all others.
    scores = {
        piece: scores.get(piece, -float(len(starts) + n)) for n, piece in enumerate(pieces, 1)
    }
    # Proved by the way back. Within one score the order may differ only among pairs that all make
    # one and the same piece.
    again = merges_from_scores(scores)
    same = len(again) == len(pairs) and all(
        again[a:b] == pairs[a:b]
        or (len(set(joined[a:b])) == 1 and set(again[a:b]) == set(pairs[a:b]))
        for a, b in zip(starts, [*starts[1:], len(pairs)])
    )
    if not same:
        raise ValueError(
            "its merges are not what a sentencepiece model's scores give, so that a GGUF file "
            "cannot hold them; "
            "use the tokenizer.model"
        )
    return np.array(
        [scores[token] if kind == NORMAL else 0.0 for token, kind in zip(tokens, types)], np.float32
    )
