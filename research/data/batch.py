"""`Batch`: the arrays that objectives make, and that models and losses read."""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np


class Batch(TypedDict, total=False):
    """Arrays by name with B rows each. An example is one row, without the axis B.

    Of a causal model, `targets` are `inputs` shifted by one token. Of a classifier, a row is one
    text: `targets` and `weights` are [B, 1], of its tokens [B, T], and of an answer's ends [B, 2],
    the places of its first and its last token. An encoder-decoder reads the `encoder_` fields, of S
    tokens, and predicts the others. Arrays are NumPy's until they are placed on devices.
    """

    inputs: Any  # int32 [B, T], tokens that are read
    targets: Any  # int32 [B, T], tokens to predict, or their classes; [B, 1], the class of the text
    weights: Any  # float32 [B, T], 1 where the target counts, 0 where it does not; [B, 1]
    segments: Any  # int32 [B, T], 1, 2, ... for the texts of a row, 0 for padding
    positions: Any  # int32 [B, T], from 0 in each text
    token_types: Any  # int32 [B, T], BERT's first or second text; without it all are 0
    sampled: Any  # float32 [B, T], log-probability that the target was sampled with, in nats
    advantages: Any  # float32 [B, T], how much better the target's text is than others; 1 or -1
    margins: Any  # float32 [B, T], how much better than the other the answer of the text's pair is
    reference: Any  # float32 [B, T], log p of the target under the reference model, in nats
    shares: Any  # float32 [B, T], what the target counts in the mean of the loss
    images: Any  # uint8 [B, M, h, w, 3], in the order of their places in the row; unused ones are 0
    sounds: Any  # float32 [B, M, frames, mels], log-mel frames likewise
    blocks: Any  # int32 [B, T], equal for tokens that see each other whole, see models/soft.py
    encoder_inputs: Any  # int32 [B, S]
    encoder_segments: Any  # int32 [B, S], segment i is what segment i of the decoder looks at
    encoder_positions: Any  # int32 [B, S]


def check_documents(batch: Mapping[str, Any], most: int) -> None:
    """ValueError where a row of a batch of NumPy arrays holds more documents than `most`; 0 allows
    any number."""
    if not most:
        return
    for name in (name for name in batch if name.endswith("segments")):
        segments = np.asarray(batch[name])
        begins = (segments[..., 1:] != segments[..., :-1]) & (segments[..., 1:] > 0)
        found = int((begins.sum(-1) + (segments[..., 0] > 0)).max(initial=0))
        if found > most:
            raise ValueError(
                f"a row holds {found} documents and config.execution.documents={most}; "
                f"set it to {found} or more, or to 0"
            )
