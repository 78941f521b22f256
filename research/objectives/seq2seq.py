"""Sequence to sequence for encoder-decoders: teacher forcing on pairs, and span corruption of plain
text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from research.models.model import Model
from research.objectives.tokens import Totals, token_loss
from research.tree import Tree


@dataclass(frozen=True)
class SpanCorruption:
    """Spans of a text are replaced by sentinels, and the sentinels with their spans are predicted.

    arXiv:1910.10683, section 3.1.4: 15% of the tokens in spans of 3 on average. Documents of a
    packed window are corrupted one by one, so neither encoder nor decoder looks across them.
    """

    start_id: int
    eos_id: int
    sentinel_ids: tuple[int, ...]
    share: float = 0.15
    mean_span: float = 3.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    kind = "encoder_decoder"
    overlap = 0

    def window_length(self, sequence_length: int) -> int:
        """S tokens, which corruption only shortens."""
        return sequence_length

    def target_length(self, sequence_length: int) -> int:
        """Room for noise, sentinels and ends, a multiple of 8; 512 gives 120 (T5's 114 and a few
        more documents)."""
        noise = sequence_length * self.share * (1 + 1 / self.mean_span)
        return 8 * math.ceil((noise + 12) / 8)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """encoder_inputs and the like [S], inputs, targets and the like [T]; what exceeds T is not
        predicted."""
        source, target = [], []
        for segment in range(1, int(window["segments"].max(initial=0)) + 1):
            tokens = window["tokens"][window["segments"] == segment]
            kept, noise = self._corrupt(tokens, rng)
            source.append(kept)
            target.append(np.append(noise, self.eos_id))
        length = len(window["tokens"])
        return pair_example(source, target, length, self.target_length(length), self.start_id)

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of nats over the decoder's tokens, their count, further totals."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)

    def _corrupt(
        self, tokens: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The text with sentinels for its spans, and the sentinels each followed by its span."""
        noise = int(round(len(tokens) * self.share))
        spans = min(
            int(round(noise / self.mean_span)) or int(noise > 0),
            len(self.sentinel_ids),
            len(tokens) - noise,
        )
        if spans < 1:
            return tokens, tokens[:0]
        lengths = np.stack(
            [_parts(len(tokens) - noise, spans, rng), _parts(noise, spans, rng)], axis=1
        )
        edges = np.concatenate([[0], np.cumsum(lengths.reshape(-1))])
        kept, noised = [], []
        for span in range(spans):
            clean, start, end = edges[2 * span], edges[2 * span + 1], edges[2 * span + 2]
            sentinel = [self.sentinel_ids[span]]
            kept += [tokens[clean:start], sentinel]
            noised += [sentinel, tokens[start:end]]
        return np.concatenate(kept), np.concatenate(noised)


@dataclass(frozen=True)
class Translation:
    """Teacher forcing (arXiv:1706.03762): the target text is predicted from the source text and its
    own past.

    A window holds one or more pairs, as `research.data.pairs.PackedPairs` lays them out.
    """

    start_id: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    kind = "encoder_decoder"
    overlap = 0

    def window_length(self, sequence_length: int) -> int:
        """S tokens of source and as many of target."""
        return sequence_length

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """encoder_inputs and the like [S], inputs, targets and the like [T]."""
        segments = range(1, int(window["targets_segments"].max(initial=0)) + 1)
        source, target = (
            [window[side][window[f"{side}_segments"] == segment] for segment in segments]
            for side in ("inputs", "targets")
        )
        return pair_example(
            source, target, len(window["inputs"]), len(window["targets"]), self.start_id
        )

    loss = SpanCorruption.loss


def pair_example(
    source: list[np.ndarray],
    target: list[np.ndarray],
    source_length: int,
    target_length: int,
    start_id: int,
) -> dict[str, np.ndarray]:
    """Pairs packed side by side: pair i is segment i + 1 in the encoder and in the decoder, cut at
    the lengths."""
    inputs = [np.concatenate([[start_id], row[:-1]]) for row in target]
    encoder = _packed(source, source_length)
    return {
        "encoder_inputs": encoder[0],
        "encoder_segments": encoder[1],
        "encoder_positions": encoder[2],
        "inputs": _packed(inputs, target_length)[0],
        "targets": _packed(target, target_length)[0],
        "segments": _packed(target, target_length)[1],
        "positions": _packed(target, target_length)[2],
        "weights": (_packed(target, target_length)[1] > 0).astype(np.float32),
    }


def _packed(rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segments and positions of rows laid end to end, int32 [length], zeros behind."""
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


def _parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `parts` positive numbers, all ways alike."""
    cuts = (
        np.sort(rng.choice(np.arange(1, total), parts - 1, replace=False))
        if parts > 1
        else np.array([], int)
    )
    return np.diff(np.concatenate([[0], cuts, [total]]))
