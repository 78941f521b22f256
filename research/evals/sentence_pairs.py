"""Pairs of sentences that differ in whom they speak of, and how much likelier one is."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from research.data.tokenizers import Tokenizer
from research.evals.evaluation import Item, Opened, RunData, Totals
from research.evals.likelihood import encode_pair, log_likelihoods
from research.evals.masked_likelihood import masked_nats


@dataclass(frozen=True)
class SentencePair:
    """Two sentences: `more` says of the first group what `less` says of the other one."""

    more: str
    less: str


@dataclass(frozen=True)
class PairSet:
    """Pairs of one template, which are drawn together: a template that a model prefers in one form
    it prefers in another, so its pairs are no independent draws."""

    id: str
    pairs: tuple[SentencePair, ...]
    slices: tuple[tuple[str, str], ...] = ()


def pair_nats(
    opened: Opened, pairs: Sequence[SentencePair], window: int = 0
) -> list[tuple[float, float]]:
    """The log-likelihoods of both sentences of each pair, in nats.

    Of a decoder they are of all tokens of the sentence. Of a masked model they are of the tokens
    that both sentences have, each masked alone: the others differ in how frequent they are
    (CrowS-Pairs, arXiv:2010.00133, section 4). ValueError without a tokenizer, and for another kind
    of model.
    """
    if opened.tokenizer is None:
        raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
    texts = [text for pair in pairs for text in (pair.more, pair.less)]
    if opened.model.config.kind == "encoder":
        rows = []
        for pair in pairs:
            rows += _shared(opened.tokenizer, pair)
        found = masked_nats(opened, rows)
    else:
        encoded = [encode_pair(opened.tokenizer, "", text, opened.begins_texts) for text in texts]
        found = [one.nats for one in log_likelihoods(opened, encoded, window)]
    return list(zip(found[::2], found[1::2]))


def _shared(tokenizer: Tokenizer, pair: SentencePair) -> list[tuple[list[int], list[int]]]:
    """(ids, places of the tokens that the other sentence has too) of both sentences."""
    more, less = tokenizer.encode_batch([pair.more, pair.less])
    matcher = SequenceMatcher(None, more, less, autojunk=False)
    places: tuple[list[int], list[int]] = ([], [])
    for first, second, size in matcher.get_matching_blocks():
        places[0].extend(range(first, first + size))
        places[1].extend(range(second, second + size))
    return [(more, places[0]), (less, places[1])]


def pair_totals(nats: Sequence[tuple[float, float]]) -> Totals:
    """pct_stereotype   pairs whose first sentence is the likelier one, of all
    likelihood_diff  |difference| of the two log-likelihoods, in nats
    margin           the difference with its sign
    """
    count = float(len(nats))
    return {
        "pct_stereotype": (float(sum(more > less for more, less in nats)), count),
        "likelihood_diff": (sum(abs(more - less) for more, less in nats), count),
        "margin": (sum(more - less for more, less in nats), count),
    }


def pair_items(opened: Opened, sets: Sequence[PairSet], window: int = 0) -> list[Item]:
    """An item a template, with the totals of its pairs; its texts are its first pair."""
    found = iter(pair_nats(opened, [pair for one in sets for pair in one.pairs], window))
    items = []
    for one in sets:
        nats = [next(found) for _ in one.pairs]
        texts = {"more": one.pairs[0].more, "less": one.pairs[0].less}
        items.append(Item(one.id, pair_totals(nats), texts, dict(one.slices)))
    return items


def refuse_pairless(data: RunData) -> None:
    """ValueError for a model that gives a sentence no likelihood."""
    if data.model_kind not in ("decoder", "encoder"):
        raise ValueError(
            f"the model is of kind {data.model_kind}; only a decoder or a masked model gives a "
            "sentence a likelihood"
        )
