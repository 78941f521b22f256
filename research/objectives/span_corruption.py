"""Span corruption: T5's objective on plain texts (arXiv:1910.10683, section 3.1.4)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.data.mixture import first_windows
from research.data.tokenizers.special import decoder_start
from research.data.windows import Windows
from research.models.model import Model
from research.objectives.config import TokenLossConfig, refuse_share
from research.objectives.objective import Objective, Totals
from research.objectives.pairs import pair_example
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class SpanCorruptionConfig(TokenLossConfig):
    """Settings of span corruption.

    share      fraction of the tokens of a text that are removed; 0.15 in T5
    mean_span  average number of tokens of a removed span; 3 in T5
    """

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
    """Replaces random spans of a text by sentinel tokens; the decoder predicts each sentinel
    followed by the tokens it stands for.

    "Thank you for inviting me to your party" may become the input "Thank you <0> to your party"
    and the target "<0> for inviting me <eos>". Documents of a packed window are corrupted one by
    one, so neither encoder nor decoder looks across them.
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
    overlap = 0  # each token is in one window, read or predicted once
    begins_texts = True
    answers_chats = False
    classifies = False
    reports = ()
    bits_per_byte = False  # the loss is on a share of the tokens

    @classmethod
    def make(cls, config: SpanCorruptionConfig, tokenizer: Any) -> "SpanCorruption":
        """The objective for this tokenizer. ValueError for one without sentinel tokens."""
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
        """S tokens. Corruption never lengthens a text, since a sentinel stands for at least one
        token."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """All positions of the decoder, `target_length`."""
        return float(self.target_length(sequence_length))

    def target_length(self, sequence_length: int) -> int:
        """Positions of the decoder for `sequence_length` tokens of text, a multiple of 8: the
        removed tokens, a sentinel for each span, and 12 ends of documents. 512 gives 120, where T5
        has 114 for one document."""
        # 12 is the allowance for ends of documents; shapes in multiples of 8 suit matrix units.
        noise = sequence_length * self.share * (1 + 1 / self.mean_span)
        # A multiple of 8, which kernels and devices split more evenly than odd lengths.
        return 8 * math.ceil((noise + 12) / 8)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """encoder_inputs and the other encoder fields [S]; inputs, targets, weights and the other
        decoder fields [T]. Targets beyond T are cut off."""
        # Document by document: a span that crossed into the next one would have to be predicted
        # from a text that it does not belong to.
        source, target = [], []
        # Each document ends with eos of its own, since it is decoded apart from its neighbours.
        for segment in range(1, int(window["segments"].max(initial=0)) + 1):
            tokens = window["tokens"][window["segments"] == segment]
            kept, noise = self._corrupt(tokens, rng)
            source.append(kept)
            target.append(np.append(noise, self.eos_id))
        length = len(window["tokens"])
        return pair_example(source, target, length, self.target_length(length), self.start_id)

    def shortfalls(self, windows: Windows) -> list[str]:
        """How many texts of the first windows are too short to lose a token, and how many of these
        windows have more targets than the decoder has room for. Both depend on lengths alone."""
        count, texts, short, overfull = 0, 0, 0, 0
        for count, window in enumerate(first_windows(windows), 1):
            sizes = np.bincount(window["segments"])[1:].tolist()
            counts = [self._noise(size) for size in sizes]
            texts += len(sizes)
            short += sum(not spans for _, spans in counts)
            # Each text's target is its noise, a sentinel for each span, and eos.
            length = sum(noise * bool(spans) + spans + 1 for noise, spans in counts)
            overfull += length > self.target_length(len(window["segments"]))
        losses = []
        if short:
            losses.append(f"{short} of {texts} texts are too short to lose a span")
        if overfull:
            losses.append(f"the targets of {overfull} windows are cut, for they hold many texts")
        return [f"of the first {count} windows {', '.join(losses)}"] if losses else []

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """(sum of the loss over the decoder's tokens in nats, their number, further totals)."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)

    def _corrupt(
        self, tokens: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(the text with a sentinel for each span, the sentinels each followed by its span)."""
        noise, spans = self._noise(len(tokens))
        if spans < 1:
            # Too short to lose a token: the text is read whole and its target is eos alone.
            return tokens, tokens[:0]
        # Kept and removed stretches take turns, the first is kept.
        kept_lengths = _random_composition(len(tokens) - noise, spans, rng)
        noise_lengths = _random_composition(noise, spans, rng)
        lengths = np.stack([kept_lengths, noise_lengths], axis=1)
        # Stretch k is tokens[edges[k]:edges[k + 1]]; the even ones are kept.
        edges = np.concatenate([[0], np.cumsum(lengths.reshape(-1))])
        kept: list[Any] = []
        noised: list[Any] = []
        # Sentinel i stands for span i on both sides; its order is the link between them.
        for span in range(spans):
            clean, start, end = edges[2 * span], edges[2 * span + 1], edges[2 * span + 2]
            sentinel = [self.sentinel_ids[span]]
            kept += [tokens[clean:start], sentinel]
            noised += [sentinel, tokens[start:end]]
        return np.concatenate(kept), np.concatenate(noised)

    def _noise(self, size: int) -> tuple[int, int]:
        """(tokens to remove from a text of `size` tokens, spans that they form)."""
        # Like T5's random_spans_noise_mask: the number of tokens first, then that of spans, at
        # least one if anything is removed. Each span needs a sentinel and a kept token before it.
        noise = int(round(size * self.share))
        spans = min(
            int(round(noise / self.mean_span)) or int(noise > 0),
            len(self.sentinel_ids),
            size - noise,
        )
        return noise, max(spans, 0)


def _random_composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """int [parts], positive and with the sum `total`; every such vector is equally likely."""
    # Cut a line of `total` tokens at parts - 1 different places.
    cuts = (
        np.sort(rng.choice(np.arange(1, total), parts - 1, replace=False))
        if parts > 1
        else np.array([], int)
    )
    return np.diff(np.concatenate([[0], cuts, [total]]))
