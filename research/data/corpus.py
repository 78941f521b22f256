"""The data of a run: its sources, its tokenizer, and the windows of tokens made from them."""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from research.data.census import Census, count_repeated
from research.data.config import DataConfig
from research.data.documents import Documents, UnreadableRecord, digest
from research.data.infill import refuse_without_gaps
from research.data.labelled import label_names, named_labels
from research.data.layouts import LAYOUTS, Layout
from research.data.media.soft_tokens import SoftTokens
from research.data.mixture import Mixture, mixture_provenance, open_mixture
from research.data.packing import Chained, packed_bounds
from research.data.sources import Source
from research.data.template_variables import parse_variables, with_variables
from research.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from research.data.tokens import TokenStore
from research.data.windows import Progress, WindowOptions, Windows
from research.downloads.cache import Damaged, built, cache_directory, remembered
from research.files import read_json

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
    soft       the encoder of images of the model, None without one
    """

    config: DataConfig
    sources: tuple[tuple[Source, float], ...]
    tokenizer: Tokenizer
    cache: Path
    layout: Layout = LAYOUTS["texts"]
    labels: tuple[str, ...] = ()
    soft: SoftTokens | None = None
    # Tokens of the train parts once windows are made of them, to compare held-out records with.
    _train_stores: list[Sequence[TokenStore]] = field(default_factory=list, repr=False)

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
        at the first call and calls `progress(done, documents)` while it does. Logs a line on what
        of them is left out or cut."""
        parts = [
            self._windows(source.train, length, overlap, seed, progress)
            for source, _ in self.sources
        ]
        self._train_stores[:] = [_stores(part) for part in parts]
        self._tell_losses(parts, "")
        return Mixture(tuple(parts), tuple(weight for _, weight in self.sources), seed=seed)

    def heldout_windows(self, length: int, overlap: int) -> Chained:
        """All windows of `length` tokens of the held-out parts, in order. Logs a line on what of
        them is left out or cut, and one on records that are in the train parts too."""
        try:
            parts = [self._windows(source.heldout, length, overlap) for source, _ in self.sources]
        except ValueError as error:
            raise ValueError(f"the part that is held out for evaluation: {error}") from None
        self._tell_losses(parts, "held out: ")
        self._tell_repeated(parts)
        return Chained(parts)

    def heldout_size(self) -> tuple[int, int]:
        """(bytes of the held-out texts in UTF-8, number of tokens that a causal model predicts for
        them: those of the texts and an eos for each). Bits per byte are computed from these."""
        options, measured = self._options(0, 0), self.layout.measured
        size, tokens = 0, 0
        for source, _ in self.sources:
            # The same bounds as in the windows, so that no text counts that is not predicted.
            store = options.tokens(source.heldout, measured)
            starts, stops = packed_bounds(source.heldout, store, self.tokenizer)
            size += int(store.n_bytes.sum())
            tokens += int(np.sum(stops - starts)) + len(starts)
        return size, tokens

    def _tell_losses(self, parts: Sequence[Windows], where: str) -> None:
        for (source, _), part in zip(self.sources, parts):
            # A layout from outside need not count its losses.
            census: Census | None = getattr(part, "census", None)
            lines = census.lines() if census else []
            bad = _stores(part)[0].bad_records if _stores(part) else ()
            if bad:
                lines.append(f"left out {len(bad)} unreadable records, the first: {bad[0]}")
            name = f" ({source.name})" if len(self.sources) > 1 else ""
            for line in lines:
                logging.warning("%s%s%s", where, line, name)

    def _tell_repeated(self, parts: Sequence[Windows]) -> None:
        # Without `train_windows` before it there is nothing to compare with, as in an evaluation.
        # Equal words about other media are no repetition.
        train = [stores for stores in self._train_stores if stores and not self.layout.media]
        for part in parts:
            heldout = _stores(part)
            if not heldout or not train:
                continue
            # Comparing touches every document, so the count is kept for later starts of the run.
            key = digest(*(one.fingerprint for stores in (heldout, *train) for one in stores))
            count = remembered(
                self.cache / "repeated" / f"{key[:32]}.json",
                functools.partial(count_repeated, heldout, train),
            )
            if count:
                logging.warning(
                    "%d of %d held-out records are in the training data too, word for word",
                    count,
                    len(heldout[0]),
                )

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
            # Data that have numbers for names keep them; the names are for those who read them.
            labels=tuple(map(str, range(len(self.labels))))
            if self.config.label_names
            else self.labels,
            # Held-out texts, which no seed permutes, are the same windows for either.
            packing=self.config.packing or seed is None,
            prompt_tokens=self.config.prompt_tokens,
            soft=self.soft,
            max_bad_records=self.config.max_bad_records,
            progress=progress,
        )


def open_corpus(
    config: DataConfig,
    tokenizer_folder: Path | None = None,
    *,
    wanted: str = "texts",
    given: Tokenizer | None = None,
    soft: SoftTokens | None = None,
) -> Corpus:
    """The data that `config` describes. `wanted` is the layout to read, a key of
    `research.data.layouts.LAYOUTS`, `soft` the encoder of images of the model that reads it.

    The tokenizer is the first of these that there is: the one that a run has saved in
    `tokenizer_folder`, the one that `config.tokenizer` names, and `given`. ValueError for a source
    or tokenizer that cannot be opened, for no tokenizer, and for one without an end of text.
    """
    cache = cache_directory()
    # Sources first: a trained tokenizer needs their texts.
    sources = open_mixture(config.source, cache, wanted, _recorded(tokenizer_folder))
    if tokenizer_folder is not None and has_tokenizer(tokenizer_folder):
        # Whatever config.tokenizer names may have changed since the run began.
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
    refuse_without_gaps(config.source, tokenizer)
    layout, labels = LAYOUTS[wanted], ()
    # Classes are numbered by the training data alone; a held-out label beyond them is an error.
    if layout.classes:
        parts = [source.train for source, _ in sources]
        if layout.names_of:
            # One rare name of many must not end a run.
            parts += [source.heldout for source, _ in sources]
        labels = label_names(parts, cache, layout.classes, layout.names_of)
        labels = named_labels(labels, config.label_names)
    return Corpus(config, tuple(sources), tokenizer, cache, layout, labels, soft)


def has_tokenizer(folder: Path | None) -> bool:
    """True if a run has saved its tokenizer in `folder`. Without a checkpoint beside it a damaged
    one, such as a full disk leaves, counts as none: the run has not begun, and writes it anew."""
    if folder is None or not folder.is_dir():
        return False
    # With a checkpoint its ids are in trained weights, so no other tokenizer may take its place.
    if any((folder.parent / "checkpoints").glob("[0-9]*")):
        return True
    try:
        load_tokenizer(folder)
    except ValueError as error:
        logging.warning("%s; the run has no checkpoint yet, so it is written anew", error)
        return False
    return True


def _stores(windows: Windows) -> Sequence[TokenStore]:
    """The tokens that windows are made of, a store a field; () where they do not say."""
    return getattr(windows, "stores", ())


def _recorded(tokenizer_folder: Path | None) -> dict[str, Any]:
    """What the run that has saved its tokenizer there records about its data, {} without."""
    file = tokenizer_folder.parent / "provenance.json" if tokenizer_folder is not None else None
    return read_json(file).get("dataset", {}) if file is not None and file.is_file() else {}


def _with_template(config: DataConfig, tokenizer: Tokenizer) -> Tokenizer:
    if not config.chat_template:
        return with_variables(tokenizer, parse_variables(config.template_variables))
    try:
        source = Path(config.chat_template).expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.chat_template={config.chat_template!r} cannot be read as text: {error}"
        ) from None
    # It is meant for all conversations, those with tools as well.
    one = replace(tokenizer, chat_template=source, templates={})
    return with_variables(one, parse_variables(config.template_variables))


def _open_tokenizer(spelling: str, sources: list[Source], cache: Path) -> Tokenizer:
    """The tokenizer of a spelling: loaded, or trained on the train parts and cached."""
    if not spelling.startswith(("bpe:", "sentencepiece:")):
        return load_tokenizer(spelling, cache)
    # Training takes minutes and is done once: the spelling and the texts determine the tokenizer.
    key = digest(spelling, *(source.train.fingerprint for source in sources))

    def _build(folder: Path) -> None:
        train_tokenizer(spelling, _training_texts(sources)).save(folder)

    def _read(folder: Path) -> Tokenizer:
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        # The cache rebuilds what is damaged, where a folder of the user's would be an error.
        try:
            return load_tokenizer(folder)
        except ValueError as error:
            raise Damaged(str(error)) from error

    return built(cache / "tokenizers" / key[:32], _build, _read)


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
            for name in source.train.fields:
                yield document[name]
                left -= len(document[name])
            if left <= 0:
                return
