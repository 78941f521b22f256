"""The loader: batches of NumPy arrays. A batch depends on its step alone, so the step is the whole
state that a checkpoint has to save."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from research.data.mixture import Mixture

Window = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]
Example = Callable[[Any, np.random.Generator], Batch]

# Batches read ahead: enough to bridge the disk traffic of a checkpoint, few enough for memory.
PREFETCH_BATCHES = 8


class TrainBatches:
    """Iterator over (step, batch), made by `train_batches`. Its reading threads end at `close` or
    at the end of a `with` block."""

    def __init__(self, batches: grain.DatasetIterator, start_step: int):
        self._batches, self._step = batches, start_step

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> tuple[int, Batch]:
        batch = next(self._batches)
        self._step += 1
        return self._step - 1, batch

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def train_batches(
    windows: Sequence[Window],
    example: Example,
    *,
    seed: int,
    global_batch: int,
    start_step: int = 0,
    part: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> TrainBatches:
    """Endless iterator over (step, batch) that starts at `start_step`. `threads` threads read
    batches ahead; with 0 each is made when it is asked for.

    Row r of step s is made from window i = s * global_batch + r of the stream. The stream is
    `windows` itself if that is a Mixture, else its epochs, each permuted by (seed, epoch).
    `example(window, rng)` makes the row; `rng` depends on (seed, i) only, so a step has the same
    bits after a resume. Part (p, n), what a process reads, is rows p * B to (p + 1) * B with B =
    global_batch / n, so the global batch does not depend on n. A batch has the fields of `example`,
    each [B, ...]. ValueError for a batch that cannot be divided into n parts.
    """
    rows = _rows_of(global_batch, part)
    # A single set of windows is a mixture of one part, so both are shuffled by the same rule.
    stream = windows if isinstance(windows, Mixture) else Mixture((windows,), seed=seed)
    batches = _Batches(stream, example, seed, global_batch, part[0] * rows, rows)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=PREFETCH_BATCHES if threads else 0
    )
    return TrainBatches(
        iter(grain.MapDataset.source(batches)[start_step:].to_iter_dataset(options)), start_step
    )


@dataclass(frozen=True)
class _Batches:
    """This process's rows of each batch, with random access by step."""

    stream: Mixture
    example: Example
    seed: int
    global_batch: int
    first_row: int
    rows: int

    def __len__(self) -> int:
        # Endless in practice; grain needs a length.
        return sys.maxsize // self.global_batch

    def __getitem__(self, step: int) -> Batch:
        first = step * self.global_batch + self.first_row
        return _stack([self._row(index) for index in range(first, first + self.rows)])

    def _row(self, index: int) -> Batch:
        # A generator for each row and none for the batch: threads and resumed runs then draw the
        # same numbers.
        return self.example(self.stream[index], np.random.default_rng([self.seed, index]))


def heldout_batches(
    windows: Sequence[Window],
    example: Example,
    *,
    batch: int,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches of all windows in order, each window once; with `limit` the first so many batches.
    The same at every call, since the generator of `example` depends on the window's index only.

    Every batch has `batch` rows over all processes, so that one compiled program serves for all; of
    them `part` is made, as of `train_batches`. The last one is filled up with copies of its first
    row whose "weights" are 0. ValueError for an example without "weights".
    """
    rows = _rows_of(batch, part)
    count = -(-len(windows) // batch)
    # Each process makes its own rows of every batch; the windows are the same on all.
    for step in range(count if limit is None else min(limit, count)):
        start = step * batch + part[0] * rows
        yield _stack(
            [
                _heldout_row(windows, example, index, step * batch)
                for index in range(start, start + rows)
            ]
        )


def _heldout_row(windows: Sequence[Window], example: Example, index: int, spare: int) -> Batch:
    real = index < len(windows)
    row = example(windows[index if real else spare], np.random.default_rng(index))
    if "weights" not in row:
        raise ValueError(
            f"an example has the fields {', '.join(row)}; evaluation wants weights among them"
        )
    return row if real else row | {"weights": np.zeros_like(row["weights"])}


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _rows_of(batch: int, part: tuple[int, int]) -> int:
    index, count = part
    if batch < 1 or batch % count or not 0 <= index < count:
        raise ValueError(
            f"batch_size={batch} must be a multiple of {count} process(es), this one's index being "
            f"{index}; set config.data.batch_size"
        )
    return batch // count
