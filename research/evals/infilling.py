"""Gaps in held-out files, which a model fills: exact match of single lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.data.infill import Gap, gap_at_line, gap_ids, sentinels_of, stretches
from research.data.sources import open_source
from research.downloads.cache import cache_directory
from research.evals.evaluation import Evaluation, Item, Opened, RunData
from research.infer.sampling import SamplingConfig
from research.serve.batch import write

ORDERS = ("psm", "spm", "prefix")


@dataclass(frozen=True)
class InfillingConfig:
    """data        a source of texts as in config.data.source, whose held-out documents have gaps
    limit       how many gaps, each in a document of its own as far as there are so many
    seed        of the gaps
    order       "psm" reads the prefix first, "spm" the suffix; "prefix" reads no suffix, as a model
                does that was not trained to fill gaps
    max_tokens  most tokens of a line
    """

    data: str = "stdlib"
    limit: int = 200
    seed: int = 1
    order: str = "psm"
    max_tokens: int = 32

    def __post_init__(self):
        if self.limit < 1 or self.seed < 0:
            raise ValueError(f"limit={self.limit} must be positive and seed={self.seed} not below")
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r}; choose one of {', '.join(ORDERS)}")
        SamplingConfig(temperature=0.0, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Infilling(Evaluation):
    """Single lines that are hidden in files (arXiv:2207.14255, section 4.1).

    exact_match  share of the gaps whose line is written as it was, but for spaces at its ends
    begun        share whose first word is right
    """

    gaps: Sequence[tuple[str, Gap]]
    order: str = "psm"
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_tokens=32, stop=("\n",))

    config = InfillingConfig
    main = "exact_match"

    @classmethod
    def make(cls, config: InfillingConfig, data: RunData) -> "Infilling":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder goes on")
        sampling = SamplingConfig(temperature=0.0, max_tokens=config.max_tokens, stop=("\n",))
        return cls(made_gaps(config.data, config.limit, config.seed), config.order, sampling)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a gap. ValueError for a tokenizer without tokens for gaps."""
        tokenizer = opened.tokenizer
        if tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        sentinels = sentinels_of(tokenizer)
        if not sentinels and self.order != "prefix":
            raise ValueError(
                "the tokenizer has no tokens for gaps; train with tokenizer bpe:VOCAB+fim, or set "
                "order='prefix'"
            )
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        start = [first] if opened.begins_texts and first is not None else []
        room = max(16, opened.window - self.sampling.max_tokens - 4)
        prompts = []
        for _, gap in self.gaps:
            if self.order == "prefix":
                ids = tokenizer.encode(gap.before)[-room:]
            else:
                ids, _ = gap_ids(
                    tokenizer, sentinels, gap.before, gap.behind, room, self.order == "spm"
                )
            prompts.append([*start, *ids] or tokenizer.encode("\n"))
        sampling = SamplingConfig(
            temperature=0.0,
            max_tokens=self.sampling.max_tokens,
            stop=self.sampling.stop,
            stop_ids=opened.stop_ids,
        )
        written = write(opened.model, opened.params, tokenizer, prompts, sampling)
        for (id, gap), one in zip(self.gaps, written):
            yield _item(id, gap, one.text)


def made_gaps(source: str, limit: int, seed: int) -> list[tuple[str, Gap]]:
    """(id, gap) of `limit` gaps of a line in stretches of the held-out documents of a source,
    chosen by `seed`. ValueError for a source that cannot be opened."""
    documents = open_source(source, cache_directory()).heldout
    rng = np.random.default_rng(seed)
    found: list[tuple[str, Gap]] = []
    for turn in range(limit):
        # Each document once before any twice, in one order whatever the limit.
        for index in np.random.default_rng([seed, turn]).permutation(len(documents)):
            document = documents[int(index)]
            places = stretches(document["text"])
            if not places:
                continue
            begin, end = places[int(rng.integers(len(places)))]
            gap = gap_at_line(document["text"][begin:end], rng)
            if gap is not None:
                found.append((f"{document['path']}:{begin}:{len(gap.before)}:{turn}", gap))
            if len(found) == limit:
                return found
    return found


def _item(id: str, gap: Gap, text: str) -> Item:
    written, wanted = text.strip(), gap.middle.strip()
    totals = {
        "exact_match": (float(written == wanted), 1.0),
        "begun": (float(written.split()[:1] == wanted.split()[:1]), 1.0),
    }
    told = {"prompt": f"{gap.before[-200:]}...{gap.behind[:100]}", "written": written}
    return Item(id, totals, {**told, "answer": wanted})
