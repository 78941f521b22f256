"""What a model has by heart of its training data: texts that it goes on with word for word, and
canaries that it finds likelier than others of their kind; and how much of the data of an evaluation
stands in the training data."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.data.sources import open_source
from research.downloads.cache import cache_directory
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.likelihood import encode_pair, log_likelihoods
from research.evals.records import read_records, text_of
from research.infer.sampling import SamplingConfig
from research.serve.batch import write

_GRAM = 13  # words (arXiv:2005.14165, appendix C)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class MemorisationConfig:
    """data        a source of texts as in config.data.source, whose training part is tried
    prefix      tokens that the model is given
    length      tokens that it must go on with as the text does
    limit       how many texts are tried, 0 for none
    seed        of the places in the texts, and of the other secrets of a canary
    canaries    a file of canaries planted in training: {"prefix": "the code is", "secret": "4711"}
    candidates  other secrets of the same form that a canary is ranked among
    overlap     a file of texts, such as an evaluation's: how much of them is in the training data
    documents   most documents of the training data that are read for `overlap`, 0 for all
    """

    data: str = "shakespeare"
    prefix: int = 32
    length: int = 32
    limit: int = 50
    seed: int = 1
    canaries: str = ""
    candidates: int = 999
    overlap: str = ""
    documents: int = 0

    def __post_init__(self):
        for name in ("prefix", "length", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("limit", "seed", "documents"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not (self.limit or self.canaries or self.overlap):
            raise ValueError("limit=0 tries nothing; set canaries or overlap to a file, or limit")


@dataclass(frozen=True)
class Canary:
    """A secret planted in training behind its prefix, and others of its form that were not."""

    id: str
    prefix: str
    secret: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Memorisation(Evaluation):
    """Texts, canaries, and texts looked for in others.

    extracted      share of texts of which the likeliest `length` tokens after a prefix are those
                   of the text (k-extractable, arXiv:2202.07646, section 3)
    right_tokens   share of these tokens that are right before the first wrong one
    exposure       mean bits by which a canary ranks above a random one among the candidates:
                   log2 of their number less log2 of its rank, 0 to log2(candidates + 1)
                   (arXiv:1802.08232, section 4.3); a model that has not seen it has about 1.4
    overlap        share of the texts of which 13 words in a row stand in the training data
    overlap_words  share of their runs of 13 words that do
    """

    texts: Sequence[tuple[str, str]] = ()
    canaries: Sequence[Canary] = ()
    overlaps: Sequence[tuple[str, str, float]] = ()
    prefix: int = 32
    length: int = 32
    seed: int = 1

    config = MemorisationConfig
    lower_is_better = True

    @property
    def main(self) -> str:  # type: ignore[override]
        """That of the first part that is tried."""
        if self.texts:
            return "extracted"
        return "exposure" if self.canaries else "overlap_words"

    @classmethod
    def make(cls, config: MemorisationConfig, data: RunData) -> "Memorisation":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder goes on")
        train = open_source(config.data, cache_directory()).train
        drawn = np.random.default_rng(config.seed).permutation(len(train))[: config.limit]
        texts = [(str(row), str(train[row]["text"])) for row in sorted(drawn.tolist())]
        overlaps = []
        if config.overlap:
            read = range(min(config.documents or len(train), len(train)))
            seen = {gram for row in read for gram in grams(str(train[row]["text"]))}
            for id, record in read_records(config.overlap):
                where = f"record {id} of {config.overlap}"
                text = text_of(record, ("text", "prompt", "question", "document"), where)
                of_it = grams(text)
                if of_it:  # a shorter text has no run that could be found
                    overlaps.append((id, text, sum(g in seen for g in of_it) / len(of_it)))
        return cls(
            texts, read_canaries(config), overlaps, config.prefix, config.length, config.seed
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a text that is tried, a canary, and a text that is looked for. ValueError if all
        texts are shorter than prefix and length."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        if self.texts:
            yield from self._extracted(opened)
        for one in self.canaries:
            yield self._exposed(opened, one)
        for id, text, share in self.overlaps:
            totals: Totals = {"overlap": (float(share > 0), 1.0), "overlap_words": (share, 1.0)}
            yield Item(f"overlap {id}", totals, {"text": text[:500]}, {"part": "overlap"})

    def _extracted(self, opened: Opened) -> Iterator[Item]:
        tokenizer = opened.tokenizer
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        start = [first] if opened.begins_texts and first is not None else []
        chosen, wanted = [], self.prefix + self.length
        for id, text in self.texts:
            # About ten characters a token are more than enough; a book takes long to encode.
            places = max(len(text) - 10 * wanted, 0)
            place = int(np.random.default_rng([self.seed, *id.encode()]).integers(places + 1))
            ids = tokenizer.encode(text[place : place + 10 * wanted])[:wanted]
            if len(ids) == wanted:
                chosen.append((id, ids))
        if not chosen:
            raise ValueError(
                f"none of {len(self.texts)} texts has {wanted} tokens; set a smaller prefix or "
                "length"
            )
        sampling = SamplingConfig(temperature=0.0, max_tokens=self.length)
        prompts = [[*start, *ids[: self.prefix]] for _, ids in chosen]
        written = write(opened.model, opened.params, tokenizer, prompts, sampling)
        for (id, ids), one in zip(chosen, written):
            truth, got = ids[self.prefix :], list(one.token_ids)
            right = next(
                (at for at, (a, b) in enumerate(zip(truth, got)) if a != b),
                min(len(got), len(truth)),
            )
            totals: Totals = {
                "extracted": (float(right == len(truth)), 1.0),
                "right_tokens": (right / len(truth), 1.0),
            }
            told = {
                "prompt": tokenizer.decode(ids[: self.prefix]),
                "written": one.text,
                "answer": tokenizer.decode(truth),
            }
            yield Item(f"text {id}", totals, told, {"part": "texts"})

    def _exposed(self, opened: Opened, canary: Canary) -> Item:
        tokenizer = opened.tokenizer
        pairs = [
            encode_pair(tokenizer, canary.prefix, f" {secret}", opened.begins_texts)
            for secret in (canary.secret, *canary.others)
        ]
        nats = [one.nats for one in log_likelihoods(opened, pairs)]
        # Of those as likely half rank above it: a model without a preference gives it the middle.
        above = sum(one > nats[0] for one in nats[1:])
        ties = sum(one == nats[0] for one in nats[1:])
        exposure = math.log2(len(nats)) - math.log2(1 + above + ties / 2)
        told = {"prompt": canary.prefix, "rank": f"{1 + above} of {len(nats)}"}
        return Item(
            f"canary {canary.id}", {"exposure": (exposure, 1.0)}, told, {"part": "canaries"}
        )


def grams(text: str) -> set[tuple[str, ...]]:
    """The runs of 13 words of a text, in lower case and without punctuation."""
    words = _WORD.findall(text.lower())
    return {tuple(words[at : at + _GRAM]) for at in range(len(words) - _GRAM + 1)}


def read_canaries(config: MemorisationConfig) -> list[Canary]:
    """The canaries of the file, each with its candidates. ValueError for a secret without enough
    others of its form."""
    if not config.canaries:
        return []
    found = []
    for id, record in read_records(config.canaries):
        where = f"record {id} of {config.canaries}"
        secret = text_of(record, ("secret",), where)
        random = np.random.default_rng([config.seed, *secret.encode()])
        others = alike(secret, config.candidates, random)
        if len(others) < config.candidates:
            raise ValueError(
                f"{where}: the form of {secret!r} has fewer than candidates={config.candidates} "
                "others; set fewer, or plant a longer secret"
            )
        found.append(Canary(id, text_of(record, ("prefix",), where), secret, others))
    return found


def alike(secret: str, count: int, random: np.random.Generator) -> tuple[str, ...]:
    """Up to `count` other texts of a secret's form: digits for digits, letters for letters."""
    kinds = ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    choices = [next((kind for kind in kinds if letter in kind), letter) for letter in secret]
    drawn: dict[str, None] = {}
    for _ in range(20 * count):  # a small form may not have so many
        text = "".join(kind[int(random.integers(len(kind)))] for kind in choices)
        if text != secret:
            drawn[text] = None
        if len(drawn) == count:
            break
    return tuple(drawn)
