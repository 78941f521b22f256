"""A run's data: its sources, its tokenizer, and the windows that both give."""

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

# What a tokenizer is trained on; more text changes few merges.
TRAINING_CHARACTERS = 32 * 1024 * 1024


@dataclass(frozen=True)
class Corpus:
    """Sources with their weights, and the tokenizer of the run. ValueErrors of all kinds are raised
    by opening it.

    `labels` are the names of the classes, () for data without.
    """

    config: DataConfig
    sources: tuple[tuple[Source, float], ...]
    tokenizer: Tokenizer
    cache: Path
    layout: Layout = LAYOUTS["texts"]
    labels: tuple[str, ...] = ()

    @property
    def provenance(self) -> dict[str, Any]:
        """Sources, fingerprint, heldout_files, heldout_bytes and gzip_bits_per_byte, and labels
        where there are any."""
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
        """Packed windows of the train parts, to be drawn by weight."""
        parts = [
            self._windows(source.train, length, overlap, seed, progress)
            for source, _ in self.sources
        ]
        return Mixture(tuple(parts), tuple(weight for _, weight in self.sources), seed=seed)

    def heldout_windows(self, length: int, overlap: int) -> Chained:
        """Packed windows of the held-out parts, all of them and in order."""
        return Chained(
            [self._windows(source.heldout, length, overlap) for source, _ in self.sources]
        )

    def heldout_size(self) -> tuple[int, int]:
        """Bytes of UTF-8 in the held-out texts, and the tokens that a causal model predicts in
        them, ends included."""
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
    """The corpus of a config, of the layout `wanted` (`research.data.layouts.LAYOUTS`).

    The tokenizer is read from `tokenizer_folder` where a run has saved one there, and is the one
    `given` where config.tokenizer is empty. ValueError for what cannot be opened or does not fit
    together.
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
    """Loaded, or trained on the train parts and kept in the cache."""
    if not spelling.startswith(("bpe:", "sentencepiece:")):
        return load_tokenizer(spelling, cache)
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
