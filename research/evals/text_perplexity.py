"""How well a model predicts the text of a file, as an evaluation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.perplexity import Score, score_windows, text_ids
from research.files import read_text


@dataclass(frozen=True)
class TextPerplexityConfig:
    """`text` is a UTF-8 file. The model sees `window` tokens at once (0: those that it was trained
    on), and a window starts every `stride` tokens (0: every `window`)."""

    text: str = ""
    window: int = 0
    stride: int = 0

    def __post_init__(self):
        if not self.text:
            raise ValueError("text is not set; set it to a UTF-8 file to score")
        if self.window < 0 or self.stride < 0:
            raise ValueError(f"window={self.window} and stride={self.stride} must not be negative")


@dataclass(frozen=True)
class TextPerplexity(Evaluation):
    """The negative log-likelihood of every token of a text, or of ids [N] but the first. An item is
    a window.

    >>> TextPerplexity("Some text").run(opened)["nll"]  # doctest: +SKIP
    (31.4, 9)
    """

    content: str | np.ndarray
    window: int = 0
    stride: int = 0

    config = TextPerplexityConfig
    main = "nll_per_token"
    lower_is_better = True

    @classmethod
    def make(cls, config: TextPerplexityConfig, data: RunData) -> "TextPerplexity":
        """ValueError for a file that cannot be read, and a run whose model does not predict a text
        from its past."""
        # Refused here and not in `run`, so that a run learns of it before its first step.
        kind = data.model_kind
        if kind != "decoder":
            other = '; take kind "pairs"' if kind == "encoder_decoder" else ""
            raise ValueError(
                f"the model is an {kind}, and only a decoder has the perplexity of a text{other}"
            )
        return cls(read_text(Path(config.text), "text"), config.window, config.stride)

    def items(self, opened: Opened) -> Iterator[Item]:
        """ "nll": (nats, tokens), and for a text "bits_per_byte": (bits, bytes of UTF-8), by
        window. ValueError for a text without a tokenizer, and a window beyond the model's
        positions."""
        # Ids have no bytes, hence no bits per byte.
        content = self.content
        if isinstance(content, str):
            if opened.tokenizer is None:
                raise ValueError(
                    "the model has no tokenizer; put its tokenizer.json into the folder, or give "
                    "ids"
                )
            ids, size = text_ids(opened.tokenizer, content), len(content.encode())
        else:
            ids, size = content, 0
        # Longer windows than in training would measure positions that the model has never seen.
        window, stride = self.window or opened.window, self.stride or None
        done = 0
        for number, score in enumerate(
            score_windows(opened.model, opened.params, ids, window, stride)
        ):
            totals: Totals = {"nll": (score.nll, score.tokens)}
            if size:
                # A token may end within a character, so the bytes of a window are its share of all.
                ends = [size * n // (len(ids) - 1) for n in (done, done + score.tokens)]
                totals["bits_per_byte"] = (score.nll / math.log(2), ends[1] - ends[0])
            done += score.tokens
            yield Item(f"window {number}", totals)

    def values(self, totals: Totals) -> dict[str, float]:
        """Nats per token, their exponential, and bits per byte."""
        nats, tokens = totals["nll"]
        score = Score(nats, int(tokens), None)
        values = {"nll_per_token": score.nll_per_token, "perplexity": score.perplexity}
        if "bits_per_byte" in totals:
            # The total is in bits already, as its count is in bytes.
            bits, n_bytes = totals["bits_per_byte"]
            values["bits_per_byte"] = bits / n_bytes
        return values
