"""How well an encoder-decoder predicts the targets of a file of pairs, as an evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.pair_perplexity import read_pairs, score_each_pair
from research.evals.perplexity import Score


@dataclass(frozen=True)
class PairPerplexityConfig:
    """`text` is a .jsonl file of {"inputs": ..., "targets": ...}."""

    text: str = ""

    def __post_init__(self):
        if not self.text:
            raise ValueError('text is not set; set it to a file of {"inputs", "targets"} a line')


@dataclass(frozen=True)
class PairPerplexity(Evaluation):
    """The negative log-likelihood of every token of the targets, given their sources.

    >>> PairPerplexity([("one cat", "un chat")]).run(opened)["nll"]  # doctest: +SKIP
    (12.3, 8)
    """

    pairs: Sequence[tuple[str, str]]

    config = PairPerplexityConfig
    main = "nll_per_token"
    lower_is_better = True

    @classmethod
    def make(cls, config: PairPerplexityConfig, data: RunData) -> "PairPerplexity":
        """ValueError for a file that has no pairs, and a run of another model than an
        encoder-decoder."""
        kind = data.model_kind
        if kind != "encoder_decoder":
            raise ValueError(f'a {kind} reads no pairs; take kind "perplexity"')
        pairs = read_pairs(Path(config.text), "text")
        # Before the first step, and not after it as in `run`.
        if not pairs:
            raise ValueError(f"text={config.text} has no pair")
        return cls(pairs)

    def items(self, opened: Opened) -> Iterator[Item]:
        """ "nll": (nats, tokens of the target with its end) of each pair. ValueError without a
        tokenizer."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        scores = score_each_pair(opened.model, opened.params, opened.tokenizer, self.pairs)
        for number, ((source, target), score) in enumerate(zip(self.pairs, scores)):
            totals: Totals = {"nll": (score.nll, score.tokens)}
            yield Item(str(number), totals, {"prompt": source, "answer": target})

    def values(self, totals: Totals) -> dict[str, float]:
        """Nats per token and their exponential."""
        nats, tokens = totals["nll"]
        score = Score(nats, int(tokens), None)
        return {"nll_per_token": score.nll_per_token, "perplexity": score.perplexity}
