"""sentencepiece's scores and the merges of a BPE vocabulary, each made from the other."""

from collections.abc import Mapping

import numpy as np

NORMAL = 1  # a token's type, ggml's docs/gguf.md


def merges_from_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, best score first: what sentencepiece does, said
    as merges.

    Of the pairs that make one piece, the longest left part comes first, as in transformers'
    converted files.
    """
    found = []
    for piece, score in scores.items():
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in scores and piece[cut:] in scores:
                found.append((-score, -cut, cut - len(piece), piece[:cut], piece[cut:]))
    found.sort(key=lambda pair: pair[:3])
    return [pair[3:] for pair in found]


def scores_from_merges(
    tokens: list[str], types: list[int], pairs: list[tuple[str, ...]]
) -> np.ndarray:
    """float32 [V] that bring the merges back; ValueError where none do, as sentencepiece knows no
    order of pairs."""
    pieces = [token for token, kind in zip(tokens, types) if kind == NORMAL]
    known = set(pieces)
    pairs = [pair for pair in pairs if "".join(pair) in known and known.issuperset(pair)]
    made = ["".join(pair) for pair in pairs]
    last = {piece: n for n, piece in enumerate(made)}
    # Pieces whose pairs lie in among each other's have one score: runs of spaces have in LLaMA's
    # vocabulary.
    scores, starts, end = {}, [], -1
    for n, piece in enumerate(made):
        if n > end:
            starts.append(n)
        end = max(end, last[piece])
        scores[piece] = -float(len(starts))
    scores = {
        piece: scores.get(piece, -float(len(starts) + n)) for n, piece in enumerate(pieces, 1)
    }
    again = merges_from_scores(scores)
    same = len(again) == len(pairs) and all(
        again[a:b] == pairs[a:b]
        or (len(set(made[a:b])) == 1 and set(again[a:b]) == set(pairs[a:b]))
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
