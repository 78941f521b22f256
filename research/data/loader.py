"""The loader: batches of numpy arrays by global step, which is the data position; there is no other
state to save."""

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

# enough to ride over a checkpoint's burst of disk traffic, little enough memory at any batch size
PREFETCH_BATCHES = 8


class TrainBatches:
    """Iterator over (step, batch); close it, or use it in a `with`, to end its threads."""

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
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
) -> TrainBatches:
    """Endless (step, batch) from `start_step` on, read ahead by `threads` (0: each made when asked
    for).

    Row r of step s is window i = s * global_batch + r of the stream: `windows` itself if it is a
    Mixture, else its epochs, each permuted by (seed, epoch). `example(window, rng)` makes the row,
    with a generator that depends on (seed, i) alone, so a step has the same bits after a resume.
    This process gets rows [p, p + 1) * global_batch / process_count: the global batch is the same
    for any number of processes. The batch has the keys that `example` returns, each stacked along a
    new first axis B. ValueError for a batch that does not divide among the processes.
    """
    rows = _rows_per_process(global_batch, process_index, process_count)
    stream = windows if isinstance(windows, Mixture) else Mixture((windows,), seed=seed)
    batches = _Batches(stream, example, seed, global_batch, process_index * rows, rows)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=PREFETCH_BATCHES if threads else 0
    )
    return TrainBatches(
        iter(grain.MapDataset.source(batches)[start_step:].to_iter_dataset(options)), start_step
    )


@dataclass(frozen=True)
class _Batches:
    """This process's part of each step's batch, by step."""

    stream: Mixture
    example: Example
    seed: int
    global_batch: int
    first_row: int
    rows: int

    def __len__(self) -> int:
        return sys.maxsize // self.global_batch

    def __getitem__(self, step: int) -> Batch:
        first = step * self.global_batch + self.first_row
        return _stack([self._row(index) for index in range(first, first + self.rows)])

    def _row(self, index: int) -> Batch:
        return self.example(self.stream[index], np.random.default_rng([self.seed, index]))


def heldout_batches(
    windows: Sequence[Window],
    example: Example,
    *,
    batch: int,
    limit: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """All windows once and in order, at most `limit` batches, the same at every call; `example`'s
    generator depends on the window's index alone. Every batch has `batch` rows over all processes:
    the last is filled up with copies of its first row whose "weights" are 0. ValueError where an
    example has no "weights" to mark that with.
    """
    rows = _rows_per_process(batch, process_index, process_count)
    count = -(-len(windows) // batch)
    for step in range(count if limit is None else min(limit, count)):
        start = step * batch + process_index * rows
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


def _rows_per_process(batch: int, process_index: int, process_count: int) -> int:
    if batch < 1 or batch % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch} must be a multiple of {process_count} process(es), this one's "
            f"index being "
            f"{process_index}; set config.data.batch_size"
        )
    return batch // process_count
