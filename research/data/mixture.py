"""Mixtures: an endless stream of windows, from one data set or from several by weight."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import digest
from research.data.sources import Source, open_source
from research.data.windows import Windows


class Mixture:
    """An endless stream of windows by random access: `[i]` for any i >= 0, the same for the same
    seed.

    Of the first n windows each part has its share of n by `weights` to within the number of parts,
    so the weights need not sum to 1 and count windows. A part's windows come in epochs, permuted by
    (seed, part, epoch); re-weighting changes neither their order nor what is cached, only how far a
    part gets. ValueError for an empty part or no weight.
    """

    def __init__(self, parts: Sequence[Windows], weights: Sequence[float] = (1.0,), *, seed: int):
        if not parts or len(parts) != len(weights) or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"{len(parts)} part(s) with the weights {tuple(weights)}; each needs one above 0"
            )
        if not all(len(part) for part in parts):
            raise ValueError("a part of the data has no windows; give more text")
        self._parts, self._seed = parts, seed
        # Integers, for exact floors at any index.
        self._weights = [max(1, round(weight / max(weights) * 2**32)) for weight in weights]
        # Two epochs are in use while threads read across the border, of each part.
        self._order = functools.lru_cache(maxsize=2 * len(parts))(self._permutation)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        part, index = self.locate(index)
        epoch, index = divmod(index, len(self._parts[part]))
        return self._parts[part][int(self._order(part, epoch)[index])]

    def locate(self, index: int) -> tuple[int, int]:
        """The part that gives window `index`, and how many that part has given before."""
        total = sum(self._weights)
        for part, weight in enumerate(self._weights[:-1]):
            rest = total - weight
            past = (
                index * rest // total
            )  # of the windows before this one, those left to the parts that follow
            if past == (index + 1) * rest // total:
                return part, index - past
            index, total = past, rest
        return len(self._weights) - 1, index

    def _permutation(self, part: int, epoch: int) -> np.ndarray:
        # Not grain's shuffle: its seed for epoch 1 is that of epoch 0 under seed + 1, and an index
        # of a set of 50 windows takes it a millisecond.
        return np.random.default_rng([self._seed, part, epoch]).permutation(len(self._parts[part]))


def parse_mixture(spelling: str) -> list[tuple[str, float]]:
    """Names and weights of "stdlib:0.7,shakespeare:0.3"; a name without a weight, as in "stdlib" or
    "tfds:lm1b", has 1.

    ValueError for a spelling without names, a weight not above 0, or a name given twice.
    """
    if spelling and Path(spelling).exists():  # whatever commas and colons it has
        return [(spelling, 1.0)]
    parts = []
    for item in spelling.split(","):
        name, _, weight = item.strip().rpartition(":")
        try:
            parts.append((name, float(weight)))
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


def open_mixture(
    spelling: str, cache_dir: Path, wanted: str = "texts"
) -> list[tuple[Source, float]]:
    """The sources of a mixture with their weights. ValueError as parse_mixture and open_source
    raise it."""
    return [
        (open_source(name, cache_dir, wanted), weight) for name, weight in parse_mixture(spelling)
    ]


def mixture_provenance(parts: list[tuple[Source, float]]) -> dict[str, Any]:
    """One source's provenance as it is; of several, each under "sources" with its weight, and over
    all held-out parts fingerprint, heldout_bytes, heldout_files, and gzip_bits_per_byte, in which
    each part is compressed alone."""
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
