"""Pairs of texts as examples for an encoder-decoder."""

import numpy as np


def pair_example(
    source: list[np.ndarray],
    target: list[np.ndarray],
    source_length: int,
    target_length: int,
    start_id: int,
) -> dict[str, np.ndarray]:
    """One example of several pairs, laid end to end in the encoder [S] and in the decoder [T].

    Pair i is segment i + 1 on both sides, so that the decoder looks at its own source only. What
    exceeds `source_length` (S) or `target_length` (T) is cut off at the end.
    """
    # The decoder reads each target one token late, behind the start token.
    inputs = [np.concatenate([[start_id], row[:-1]]) for row in target]
    # A pair that is cut on one side keeps its segment number on the other; what remains of the
    # target is still predicted, from less source.
    encoder = _packed(source, source_length)
    return {
        "encoder_inputs": encoder[0],
        "encoder_segments": encoder[1],
        "encoder_positions": encoder[2],
        "inputs": _packed(inputs, target_length)[0],
        "targets": _packed(target, target_length)[0],
        "segments": _packed(target, target_length)[1],
        "positions": _packed(target, target_length)[2],
        # Padding has segment 0, so it has no weight.
        "weights": (_packed(target, target_length)[1] > 0).astype(np.float32),
    }


def _packed(rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segments and positions of rows laid end to end, int32 [length], zeros behind."""
    # Positions begin at 0 in every text, as they would if it were alone in its row.
    out = np.zeros((3, length), np.int32)
    if rows:
        flat = np.stack(
            [
                np.concatenate(rows),
                np.concatenate([np.full(len(row), i + 1) for i, row in enumerate(rows)]),
                np.concatenate([np.arange(len(row)) for row in rows]),
            ]
        )[:, :length]
        out[:, : flat.shape[1]] = flat
    return out[0], out[1], out[2]
