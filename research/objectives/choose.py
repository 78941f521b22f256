"""From an objective's name and a tokenizer to the objective."""

from dataclasses import dataclass

from research.data.tokenizers import Tokenizer
from research.objectives.causal_lm import CausalLM
from research.objectives.chat import Chat
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.objectives.seq2seq import SpanCorruption, Translation

# By name: the kind of model that it trains, and what it reads (`wanted` of
# research.data.sources.open_source).
NAMES = {
    "causal_lm": ("decoder", "texts"),
    "chat": ("decoder", "conversations"),
    "masked_lm": ("encoder", "texts"),
    "classification": ("encoder", "labels"),
    "span_corruption": ("encoder_decoder", "texts"),
    "translation": ("encoder_decoder", "texts"),
}
Objective = CausalLM | Chat | MaskedLM | Classification | SpanCorruption | Translation


@dataclass(frozen=True)
class ObjectiveConfig:
    """`share` of the tokens is masked or corrupted (0: 15%, as both papers do), by `whole_words` or
    in spans of `mean_span`; `label_smoothing` and `z_loss` weigh two additions to the loss."""

    name: str = "causal_lm"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    share: float = 0.15
    whole_words: bool = False
    mean_span: float = 3.0

    @property
    def trains(self) -> str:
        """The kind of model."""
        return NAMES[self.name][0]

    @property
    def reads(self) -> str:
        """The kind of data."""
        return NAMES[self.name][1]

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"objective.name={self.name!r}; choose one of {', '.join(NAMES)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing} must lie in [0, 1)")
        if not 0 < self.share < 1:
            raise ValueError(f"objective.share={self.share} must lie in (0, 1)")
        if self.mean_span < 1:
            raise ValueError(f"objective.mean_span={self.mean_span} must be at least 1")
        if self.whole_words and self.name != "masked_lm":
            raise ValueError(
                f"objective.whole_words is for masked_lm, objective.name={self.name!r}"
            )
        if self.z_loss and self.name == "classification":
            raise ValueError(
                "objective.z_loss is for losses over a vocabulary; set it to 0 for classification"
            )


def make_objective(c: ObjectiveConfig, tokenizer: Tokenizer) -> Objective:
    """The objective; ValueError where the tokenizer lacks a token that it needs."""
    losses = {"label_smoothing": c.label_smoothing, "z_loss": c.z_loss}
    start_id = (
        tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    )  # T5 starts its decoder with padding
    if c.name == "causal_lm":
        return CausalLM(**losses)
    if c.name == "chat":
        return Chat(**losses)
    if c.name == "classification":
        return Classification(c.label_smoothing)
    if c.name == "masked_lm":
        if tokenizer.mask_id is None:
            raise ValueError(
                "objective masked_lm needs a tokenizer with a mask token, such as bpe:8192"
            )
        roles = (
            tokenizer.bos_id,
            tokenizer.eos_id,
            tokenizer.pad_id,
            tokenizer.mask_id,
            *tokenizer.sentinel_ids,
        )
        return MaskedLM(
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=tuple(i for i in roles if i is not None),
            share=c.share,
            word_starts=tuple(map(bool, tokenizer.word_starts)) if c.whole_words else None,
            **losses,
        )
    if c.name == "span_corruption":
        if not tokenizer.sentinel_ids:
            raise ValueError(
                "objective span_corruption needs a tokenizer with sentinels, such as bpe:8192"
            )
        return SpanCorruption(
            start_id,
            tokenizer.eos_id,
            tokenizer.sentinel_ids,
            share=c.share,
            mean_span=c.mean_span,
            **losses,
        )
    return Translation(start_id, **losses)
