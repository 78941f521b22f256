"""Mixtures: endless streams of windows from one or several data sets with weights."""

import copy
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import digest
from research.data.sources import Source, open_source
from research.data.windows import Windows


class Mixture:
    """An endless stream of windows with random access: `[i]` is defined for every i >= 0 and
    depends on `seed` and i alone.

    `weights` are the relative numbers of windows of the parts and need not sum to 1. Among the
    first n windows the number from each part differs from its share of n by less than the number
    of parts. A part is read in epochs, each permuted by (seed, part, epoch). Changing the weights
    changes how fast a part is read, not the order of its windows. ValueError for an empty part,
    and for a weight that is not positive.
    """

    def __init__(self, parts: Sequence[Windows], weights: Sequence[float] = (1.0,), *, seed: int):
        if not parts or len(parts) != len(weights) or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"{len(parts)} part(s) with the weights {tuple(weights)}; each needs one above 0"
            )
        if not all(len(part) for part in parts):
            raise ValueError("a part of the data has no windows; give more text")
        self.parts, self._seed = tuple(parts), seed
        # Integers, so that the divisions of `locate` are exact at any index.
        self._weights = [max(1, round(weight / max(weights) * 2**32)) for weight in weights]
        # Permutations of two epochs of each part: threads read ahead across the end of an epoch.
        self._order = functools.lru_cache(maxsize=2 * len(parts))(self._permutation)

    def __len__(self) -> int:
        return sys.maxsize

    def over(self, parts: Sequence[Windows]) -> "Mixture":
        """The same stream over other windows, of which each part has as many. ValueError if not."""
        if tuple(map(len, parts)) != self.sizes:
            raise ValueError(f"parts of {tuple(map(len, parts))} windows, wanted {self.sizes}")
        other = copy.copy(self)
        other.parts = tuple(parts)
        return other

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of windows of each part, which are one epoch of it."""
        return tuple(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        part, index = self.locate(index)
        epoch, index = divmod(index, len(self.parts[part]))
        return self.parts[part][int(self._order(part, epoch)[index])]

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the part that window `index` comes from, how many earlier windows came from
        that part)."""
        # Part by part: this one takes its share of the windows. The remaining windows are numbered
        # anew, and the same question is asked about them and the remaining parts.
        total = sum(self._weights)
        for part, weight in enumerate(self._weights[:-1]):
            rest = total - weight
            # Of the `index` windows before this one, how many the parts after this one have given.
            past = index * rest // total
            if past == (index + 1) * rest // total:
                return part, index - past
            index, total = past, rest
        return len(self._weights) - 1, index

    def _permutation(self, part: int, epoch: int) -> np.ndarray:
        # Not grain's shuffle, whose epoch 1 is epoch 0 of seed + 1, and which takes a millisecond
        # an index for a set of 50 windows.
        return np.random.default_rng([self._seed, part, epoch]).permutation(len(self.parts[part]))


def first_windows(windows: Windows, limit: int = 1000) -> Iterator[dict[str, np.ndarray]]:
    """The windows of a first epoch, at most `limit` of them: enough to judge the rest by."""
    size = sum(map(len, windows.parts)) if isinstance(windows, Mixture) else len(windows)
    return (windows[index] for index in range(min(limit, size)))


def parse_mixture(spelling: str) -> list[tuple[str, float]]:
    """[(name of a source, weight)] from the value of config.data.source. A name without a weight,
    as in "stdlib" or "tfds:lm1b", has weight 1. A comma or colon in the path of a file that exists
    belongs to the path.

    ValueError for an empty name, a weight that is not above 0, and a name that occurs twice.

    >>> parse_mixture("stdlib:0.7,shakespeare:0.3")
    [('stdlib', 0.7), ('shakespeare', 0.3)]
    """
    parts = []
    for item in _items(spelling):
        name, _, weight = item.strip().rpartition(":")
        try:
            # A path may contain a colon, too.
            is_whole = "?" not in item and _exists(item)
            parts.append((item.strip(), 1.0) if is_whole else (name, float(weight)))
        except ValueError:
            parts.append((item.strip(), 1.0))
        if not parts[-1][0] or not 0 < parts[-1][1] < float("inf"):
            raise ValueError(
                f"data {spelling!r}: {item!r} must be NAME or NAME:WEIGHT with a weight above 0"
            )
    names = [name for name, _ in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"data {spelling!r} names a source twice; add its weights up")
    return parts


def _items(spelling: str) -> Iterator[str]:
    """The spelling cut at commas, save those in the path of a file that exists."""
    pieces = spelling.split(",")
    while pieces:
        counts = range(len(pieces), 1, -1)
        joined = ((count, ",".join(pieces[:count])) for count in counts)
        count, item = next((one for one in joined if _is_path(one[1])), (1, pieces[0]))
        pieces = pieces[count:]
        yield item


def _is_path(item: str) -> bool:
    """True for the path of a file that exists, with a weight or without."""
    name, _, weight = item.rpartition(":")
    if "," in item.partition("?")[2]:  # a query has none, so this is the end of an item
        return False
    return _exists(item) or _exists(name) and bool(re.fullmatch(r"[\d.eE+-]+", weight.strip()))


def _exists(item: str) -> bool:
    names = (item.strip(), item.strip().partition("?")[0])  # a path may have question marks, too
    try:
        return any(name and Path(name).expanduser().exists() for name in names)
    except (OSError, RuntimeError):  # too long for a name, or the home of an unknown user
        return False


def open_mixture(
    spelling: str,
    cache_dir: Path,
    wanted: str = "texts",
    recorded: Mapping[str, Any] | None = None,
) -> list[tuple[Source, float]]:
    """[(source, weight)] for the value of config.data.source. `wanted` is the layout to read,
    `recorded` the `mixture_provenance` of the run that goes on with these data. ValueError as in
    `parse_mixture` and `open_source`."""
    recorded = recorded or {}
    prints = {
        one.get("source"): one.get("fingerprint", "") for one in recorded.get("sources", [recorded])
    }
    return [
        (open_source(name, cache_dir, wanted, prints.get(name, "")), weight)
        for name, weight in parse_mixture(spelling)
    ]


def mixture_provenance(parts: list[tuple[Source, float]]) -> dict[str, Any]:
    """What a run records about its data. For one source its own provenance. For several: "sources"
    with the provenance and weight of each, and over all held-out parts "fingerprint",
    "heldout_bytes", "heldout_files" and "gzip_bits_per_byte" (each part compressed alone)."""
    if len(parts) == 1:
        return parts[0][0].provenance
    each = [source.provenance | {"weight": weight} for source, weight in parts]
    size = sum(one["heldout_bytes"] for one in each)
    return {
        "sources": each,
        "fingerprint": digest(*(one["fingerprint"] for one in each)),
        "heldout_bytes": size,
        "heldout_files": [
            f"{one['source']}/{path}" for one in each for path in one["heldout_files"]
        ],
        "gzip_bits_per_byte": sum(one["gzip_bits_per_byte"] * one["heldout_bytes"] for one in each)
        / size,
    }
