"""Windows of conversations with media, and of media with captions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from research.data.census import Census
from research.data.chat_windows import PackedConversations
from research.data.documents import Documents
from research.data.media.decoded import Decoder
from research.data.media.kinds import Medium
from research.data.media.soft_tokens import SoftTokens
from research.data.media_encoder import MediaEncoder
from research.data.media_survey import Surveyed
from research.data.places import places
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class PackedMedia:
    """`PackedConversations` with their media: `[i]` has also

    images  uint8 [M, size, size, 3], those of the row in the order of their places, black behind;
            as many as a row has room for (`SoftTokens.empty`), whatever it holds
    sounds  float32 [M, frames, mels], log-mel frames likewise; each for models that read them

    A conversation that is cut loses a medium whole: the cut is moved before its places. One whose
    media are broken within has no loss, see `Decoder`.
    """

    def __init__(
        self, documents: Surveyed, store: TokenStore, options: WindowOptions, soft: SoftTokens
    ):
        ends = cut_ends(store, options.length, soft)
        self._windows = PackedConversations(store, options.length, seed=options.seed, ends=ends)
        self.stores, self.census = self._windows.stores, self._windows.census
        self.length, self._soft = options.length, soft
        self._documents, self._places = documents, places(documents, store)
        self._decoder = Decoder(soft, options.max_bad_records)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window, filled = self._windows[index], {"images": 0, "sounds": 0}
        media = self._soft.empty(self.length)
        for segment, which in enumerate(self._windows.members(index), 1):
            inside = window["segments"] == segment
            place = int(self._places[which])
            kept = self._kept(window["tokens"][inside], self._documents.media(place))
            read = self._decoder.read(kept, self._documents[place]["path"])
            for name, rows in media.items():
                own = getattr(read, name)
                rows[filled[name] : filled[name] + len(own)] = own
                filled[name] += len(own)
            if not read.whole:
                window["assistant"] = np.where(inside, 0, window["assistant"])
        return {**window, **media}

    def _kept(self, tokens: np.ndarray, media: Sequence[Medium]) -> list[Medium]:
        """Those of a record's media whose places are among the tokens: a cut loses the last."""
        left = {token: int(np.sum(tokens == token)) for token in self._soft.ids}
        kept = []
        for medium in media:
            token, count = self._soft.places(medium.kind)
            left[token] -= count
            if left[token] < 0:
                break
            kept.append(medium)
        return kept


def cut_ends(store: TokenStore, length: int, soft: SoftTokens) -> np.ndarray:
    """Where each conversation of a store is cut so that it fits and no block of places is cut in
    two, int [conversations]."""
    ends = np.minimum(store.offsets[1:], store.offsets[:-1] + length)
    for row in np.flatnonzero(ends < store.offsets[1:]):
        start, end = int(store.offsets[row]), int(ends[row])
        # Places of one medium with several blocks, too, stand or fall together.
        ids = np.asarray(store.ids[start : int(store.offsets[row + 1])])
        cut = int(ids[end - start])
        if cut in soft.ids and ids[end - start - 1] == cut:
            before = np.flatnonzero(ids[: end - start] != cut)
            ends[row] = start + (int(before[-1]) + 1 if len(before) else 0)
    return ends


def media_windows(documents: Any, options: WindowOptions) -> PackedMedia:
    """Packed windows of conversations with media. ValueError for documents without a way to them,
    and for a model that has no encoder."""
    soft, surveyed = _opened(documents, options)
    store = options.conversations(surveyed, MediaEncoder(options.tokenizer, soft))
    return PackedMedia(surveyed, store, options, soft)


class Captioned:
    """Windows of one medium with its text. `[i]` is a dict of int32 [length] arrays "tokens",
    "segments" (1 for a token, 0 for padding) and "positions", of "images", uint8 [frames, size,
    size, 3], and "whole", int [1], 0 where the medium is broken within."""

    def __init__(
        self, documents: Surveyed, store: TokenStore, options: WindowOptions, soft: SoftTokens
    ):
        self.stores, self.length = (store,), options.length
        self._documents, self._places = documents, places(documents, store)
        self._ends = (options.tokenizer.bos_id, options.tokenizer.eos_id)
        self._decoder = Decoder(soft, options.max_bad_records)
        sizes = np.diff(store.offsets)
        self._rows = np.flatnonzero(sizes > 0)
        cut = int(np.sum(sizes > options.length - len(self._marks)))
        empty = int(np.sum(sizes == 0))
        self.census = Census("captions", len(store), options.length, cut=cut, empty=empty)

    @property
    def _marks(self) -> list[int]:
        return [token for token in self._ends if token is not None]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row, [store] = int(self._rows[index]), self.stores
        first, last = self._ends
        room = self.length - len(self._marks)
        ids = store.ids[store.offsets[row] : store.offsets[row + 1]][:room].tolist()
        ids = [token for token in (first, *ids, last) if token is not None]
        tokens, segments, positions = np.zeros((3, self.length), np.int32)
        tokens[: len(ids)], segments[: len(ids)] = ids, 1
        positions[: len(ids)] = np.arange(len(ids))
        place = int(self._places[row])
        media = self._documents.media(place)[:1]
        read = self._decoder.read(media, self._documents[place]["path"])
        window = {"tokens": tokens, "segments": segments, "positions": positions}
        return {**window, "images": read.images, "whole": np.array([read.whole], np.int32)}


def caption_windows(documents: Any, options: WindowOptions) -> Captioned:
    """One window for each captioned medium, in the order of the documents."""
    # Sounds have no vector beside texts.
    pictures = options.soft and replace(options.soft, sound=None)
    soft, surveyed = _opened(documents, replace(options, soft=pictures))
    return Captioned(surveyed, options.tokens(surveyed, "text"), options, soft)


def _opened(documents: Documents, options: WindowOptions) -> tuple[SoftTokens, Surveyed]:
    if options.soft is None or not options.soft.ids:
        raise ValueError(
            "the data have media and the model has no encoder for them; set config.model.image, or "
            "config.model.sound for sounds"
        )
    if not hasattr(documents, "media"):
        raise ValueError("the source has no media; name a file, a folder or a shard with some")
    return options.soft, Surveyed(documents, Path(options.cache), options.soft)
