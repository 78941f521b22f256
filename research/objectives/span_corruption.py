"""Span corruption: T5's objective on plain texts (arXiv:1910.10683, section 3.1.4)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import TokenLossConfig, refuse_share
from research.objectives.objective import Objective, Totals
from research.objectives.pairs import decoder_start, pair_example
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class SpanCorruptionConfig(TokenLossConfig):
    """`share` of the tokens is corrupted, in spans of `mean_span` tokens on average."""

    name: str = field(default="span_corruption", init=False)
    share: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        refuse_share(self.share)
        if not 1 <= self.mean_span < math.inf:
            raise ValueError(f"objective.mean_span={self.mean_span} must be at least 1")


@dataclass(frozen=True)
class SpanCorruption(Objective):
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

    name = "span_corruption"
    config = SpanCorruptionConfig
    model_kind = "encoder_decoder"
    reads = "texts"
    overlap = 0
    begins_texts = True
    answers_chats = False
    classifies = False
    reports = ()
    bits_per_byte = False

    @classmethod
    def make(cls, config: SpanCorruptionConfig, tokenizer: Any) -> "SpanCorruption":
        """ValueError for a tokenizer without sentinels."""
        if not tokenizer.sentinel_ids:
            raise ValueError(
                "objective span_corruption needs a tokenizer with sentinels, such as bpe:8192"
            )
        return cls(
            decoder_start(tokenizer),
            tokenizer.eos_id,
            tokenizer.sentinel_ids,
            share=config.share,
            mean_span=config.mean_span,
            label_smoothing=config.label_smoothing,
            z_loss=config.z_loss,
        )

    def window_length(self, sequence_length: int) -> int:
        """S tokens, which corruption only shortens."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """All positions of the decoder."""
        return float(self.target_length(sequence_length))

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
        kept: list[Any] = []
        noised: list[Any] = []
        for span in range(spans):
            clean, start, end = edges[2 * span], edges[2 * span + 1], edges[2 * span + 2]
            sentinel = [self.sentinel_ids[span]]
            kept += [tokens[clean:start], sentinel]
            noised += [sentinel, tokens[start:end]]
        return np.concatenate(kept), np.concatenate(noised)


def _parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `parts` positive numbers, all ways alike."""
    cuts = (
        np.sort(rng.choice(np.arange(1, total), parts - 1, replace=False))
        if parts > 1
        else np.array([], int)
    )
    return np.diff(np.concatenate([[0], cuts, [total]]))
