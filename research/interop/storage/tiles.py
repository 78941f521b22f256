"""Parts of a tensor that are read on their own, each with its place in a parameter: what lets
several threads read a checkpoint into its arrays, a few megabytes at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from research.interop.storage.layout import BAR, parse, rearrange, shape, shared, source_shape

TILE_BYTES = 2 * 2**20  # enough for a disk, and what fits a cache, as measured
Bounds = tuple[tuple[int, int], ...]


class Source(NamedTuple):
    """A stored tensor: the file, the first byte there and the type of its elements. `fill` reads
    bytes from an element on into uint8 memory, until it is full."""

    file: str
    offset: int
    dtype: np.dtype
    fill: Callable[[int, np.ndarray], None]


class Tile(NamedTuple):
    """A run of bytes of a file that is a part of a parameter's slice.

    source     (file, first byte): tiles sorted by it are in the order of the files
    at         (start, stop) on each axis of the slice
    nbytes     its size in the file
    read       fills uint8 memory of that size, and returns it as the part `at` in our order of axes
    in_order   True if that order and the type are the file's: then the memory may be the array's
    """

    source: tuple[str, int]
    at: Bounds
    nbytes: int
    read: Callable[[np.ndarray], np.ndarray]
    in_order: bool


def find_run(
    pattern: str, part: int | None, index: Sequence[int], sizes: Mapping[str, int]
) -> tuple[int, str] | None:
    """Where in a tensor the slice `[part, *index]` of what a pattern makes of it lies: (its first
    element, the pattern from there), None if it is no single run of elements. `part` is None where
    the tensor is one parameter's."""
    start = 0
    if BAR in pattern:
        patterns = pattern.split(BAR)
        # Parts that lie side by side within each head, say, are no runs.
        if shared([one.split(" -> ")[0] for one in patterns], sizes) > 1:
            return None
        start = sum(math.prod(source_shape(one, sizes)) for one in patterns[:part])
        pattern, part = patterns[part or 0], None
    for i in index if part is None else (part, *index):
        left, right = parse(pattern)
        # The outermost letter of the file must be an axis of ours, and the outermost as well.
        if right[0] != (left[0][0],):
            return None
        rest = [left[0][1:], *left[1:]] if left[0][1:] else left[1:]
        start += i * math.prod(shape(rest, sizes))
        pattern = " -> ".join(_spell(side) for side in (rest, right[1:]))
    return start, pattern


def cut(
    source: Source, start: int, pattern: str, sizes: Mapping[str, int], dtype: np.dtype
) -> Iterator[Tile]:
    """The tiles of the run of elements from `start` of a tensor that a pattern turns into a slice
    of type `dtype`."""
    left, right = parse(pattern)
    bounds = [(0, size) for size in shape(right, sizes)]
    whole = dict(sizes)
    elements = math.prod(shape(left, sizes))
    letter, axis = _outermost(left, right)
    if axis is None:
        yield _tile(source, start, pattern, whole, bounds, dtype)
        return
    count = sizes[letter]
    # Elements, and places on our axis, for each step of the outermost letter.
    step, width = elements // max(count, 1), bounds[axis][1] // max(count, 1)
    steps = max(1, TILE_BYTES // max(step * source.dtype.itemsize, 1))
    for n in range(0, count, steps):
        stop = min(n + steps, count)
        bounds[axis] = (n * width, stop * width)
        tile_sizes = whole | {letter: stop - n}
        yield _tile(source, start + n * step, pattern, tile_sizes, bounds, dtype)


def _tile(
    source: Source,
    start: int,
    pattern: str,
    sizes: Mapping[str, int],
    bounds: Sequence[tuple[int, int]],
    dtype: np.dtype,
) -> Tile:
    left, right = ([letter for group in side for letter in group] for side in parse(pattern))
    itemsize = source.dtype.itemsize
    return Tile(
        (source.file, source.offset + start * itemsize),
        tuple(bounds),
        math.prod(shape(parse(pattern)[0], sizes)) * itemsize,
        partial(_read, source, start, pattern, sizes, dtype),
        left == right and source.dtype == dtype,
    )


def _read(
    source: Source,
    start: int,
    pattern: str,
    sizes: Mapping[str, int],
    dtype: np.dtype,
    memory: np.ndarray,
) -> np.ndarray:
    source.fill(start, memory)
    values = memory.view(source.dtype).reshape(shape(parse(pattern)[0], sizes))
    return rearrange(values, pattern, sizes).astype(dtype, copy=False)


def _outermost(left: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> tuple:
    """(the outermost letter of a file's rows, the axis of ours that is cut with it), (letter, None)
    where no axis is, for the letter is no size of a model or not the outermost of its axis."""
    letter = left[0][0] if left else ""
    if letter.isdigit():
        return letter, None
    return letter, next((n for n, group in enumerate(right) if group[:1] == (letter,)), None)


def _spell(groups: Sequence[Sequence[str]]) -> str:
    return " ".join(f"({' '.join(group)})" if len(group) > 1 else group[0] for group in groups)
