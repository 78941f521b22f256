"""The data of a run: its sources, its tokenizer, and the windows of tokens made from them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from research.data.config import DataConfig
from research.data.documents import Documents, UnreadableRecord, digest
from research.data.labelled import label_names
from research.data.layouts import LAYOUTS, Layout
from research.data.mixture import Mixture, mixture_provenance, open_mixture
from research.data.packing import Chained
from research.data.sources import Source
from research.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from research.data.windows import Progress, WindowOptions, Windows
from research.downloads.cache import Damaged, built, cache_directory

# A tokenizer is trained on this much text; more changes few merges.
TRAINING_CHARACTERS = 32 * 1024 * 1024


@dataclass(frozen=True)
class Corpus:
    """The data of a run, made by `open_corpus`.

    config     the section `data` of the config
    sources    (source, weight) pairs
    tokenizer  of all sources
    cache      the folder for what is computed once, such as tokens
    layout     the kind of records that the objective reads
    labels     names of the classes, () for data without classes
    """

    config: DataConfig
    sources: tuple[tuple[Source, float], ...]
    tokenizer: Tokenizer
    cache: Path
    layout: Layout = LAYOUTS["texts"]
    labels: tuple[str, ...] = ()

    @property
    def provenance(self) -> dict[str, Any]:
        """What a run records about its data, as JSON values: see `mixture_provenance`; and the
        names of the classes if there are any."""
        return mixture_provenance(list(self.sources)) | (
            {"labels": list(self.labels)} if self.labels else {}
        )

    def train_windows(
        self,
        length: int,
        overlap: int,
        seed: int,
        progress: Progress | None = None,
    ) -> Mixture:
        """Windows of `length` tokens of the train parts, mixed by weight. Tokenises the documents
        at the first call and calls `progress(done, documents)` while it does."""
        parts = [
            self._windows(source.train, length, overlap, seed, progress)
            for source, _ in self.sources
        ]
        return Mixture(tuple(parts), tuple(weight for _, weight in self.sources), seed=seed)

    def heldout_windows(self, length: int, overlap: int) -> Chained:
        """All windows of `length` tokens of the held-out parts, in order."""
        return Chained(
            [self._windows(source.heldout, length, overlap) for source, _ in self.sources]
        )

    def heldout_size(self) -> tuple[int, int]:
        """(bytes of the held-out texts in UTF-8, number of tokens that a causal model predicts for
        them: those of the texts and an eos for each). Bits per byte are computed from these."""
        options, field = self._options(0, 0), self.layout.measured
        stores = [options.tokens(source.heldout, field) for source, _ in self.sources]
        return sum(int(s.n_bytes.sum()) for s in stores), sum(len(s.ids) + len(s) for s in stores)

    def _windows(self, documents: Documents, length: int, overlap: int, *more: Any) -> Windows:
        return self.layout.windows(documents, self._options(length, overlap, *more))

    def _options(
        self,
        length: int,
        overlap: int,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> WindowOptions:
        return WindowOptions(
            tokenizer=self.tokenizer,
            cache=self.cache,
            length=length,
            overlap=overlap,
            seed=seed,
            labels=self.labels,
            max_bad_records=self.config.max_bad_records,
            progress=progress,
        )


def open_corpus(
    config: DataConfig,
    tokenizer_folder: Path | None = None,
    *,
    wanted: str = "texts",
    given: Tokenizer | None = None,
) -> Corpus:
    """The data that `config` describes. `wanted` is the layout to read, a key of
    `research.data.layouts.LAYOUTS`.

    The tokenizer is the first of these that there is: the one that a run has saved in
    `tokenizer_folder`, the one that `config.tokenizer` names, and `given`. ValueError for a source
    or tokenizer that cannot be opened, for no tokenizer, and for one without an end of text.
    """
    cache = cache_directory()
    sources = open_mixture(config.source, cache, wanted)
    if tokenizer_folder is not None and tokenizer_folder.is_dir():
        tokenizer = load_tokenizer(tokenizer_folder)
    elif config.tokenizer:
        tokenizer = _with_template(
            config, _open_tokenizer(config.tokenizer, [source for source, _ in sources], cache)
        )
    elif given is not None:
        tokenizer = _with_template(config, given)
    else:
        raise ValueError(
            "data.tokenizer is empty and config.init gives none; set config.data.tokenizer"
        )
    if tokenizer.eos_id is None:
        raise ValueError(
            f"tokenizer {config.tokenizer!r} has no token that ends a text; choose one that has"
        )
    layout, labels = LAYOUTS[wanted], ()
    # Classes are numbered by the training data alone; a held-out label beyond them is an error.
    if layout.classes:
        labels = label_names((source.train for source, _ in sources), cache, layout.classes)
    return Corpus(config, tuple(sources), tokenizer, cache, layout, labels)


def _with_template(config: DataConfig, tokenizer: Tokenizer) -> Tokenizer:
    if not config.chat_template:
        return tokenizer
    try:
        return replace(
            tokenizer, chat_template=Path(config.chat_template).expanduser().read_bytes().decode()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.chat_template={config.chat_template!r} cannot be read as text: {error}"
        ) from None


def _open_tokenizer(spelling: str, sources: list[Source], cache: Path) -> Tokenizer:
    """The tokenizer of a spelling: loaded, or trained on the train parts and cached."""
    if not spelling.startswith(("bpe:", "sentencepiece:")):
        return load_tokenizer(spelling, cache)
    # A trained tokenizer is determined by its spelling and the texts it is trained on.
    key = digest(spelling, *(source.train.fingerprint for source in sources))

    def build(folder: Path) -> None:
        train_tokenizer(spelling, _training_texts(sources)).save(folder)

    def read(folder: Path) -> Tokenizer:
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        try:
            return load_tokenizer(folder)
        except ValueError as error:
            raise Damaged(str(error)) from error

    return built(cache / "tokenizers" / key[:32], build, read)


def _training_texts(sources: list[Source]) -> Iterator[str]:
    """Texts of the train parts in a fixed random order, so that any prefix is a fair sample of
    them."""
    # Characters still to read. Random order matters, because folders are often sorted by topic or
    # language.
    left = TRAINING_CHARACTERS
    for source in sources:
        for index in np.random.default_rng(0).permutation(len(source.train)):
            try:
                document = source.train[int(index)]
            except UnreadableRecord:
                continue
            for field in source.train.fields:
                yield document[field]
                left -= len(document[field])
            if left <= 0:
                return
