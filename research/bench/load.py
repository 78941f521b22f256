"""Seconds in which a checkpoint of generated weights is in memory as a model, and how many of them
reading its files takes."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from research.bench.turns import take_fresh_turns, take_turns
from research.interop.huggingface.folder import write_folder
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig
from research.models.presets.llama import llama

READ, KEPT, LOAD = "read", "kept", "graft"
_SHARD_BYTES = 2**30


def generated(gib: float) -> ModelConfig:
    """A model of LLaMA's kind with about so many GiB of weights in bfloat16."""
    # TinyLlama's layers (arXiv:2401.02385) and tables, of 0.08 and 0.24 GiB.
    return llama(32000, max(1, round((gib - 0.24) / 0.082)), 2048, 32, 4, 5632, 2048)


def write(c: ModelConfig, folder: Path, shard_bytes: int = _SHARD_BYTES) -> int:
    """Writes a folder of Hugging Face's with random weights in bfloat16, in shards; the bytes of
    its largest tensor."""
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(ml_dtypes.bfloat16)
    parameters = {
        path: Parameter(
            spec.shape,
            "bfloat16",
            stacked_axes(spec),
            lambda index, shape=spec.shape: np.resize(noise, shape[len(index) :]),
        )
        for path, spec in specs_by_path(c).items()
    }
    write_folder(Checkpoint(folder, "generated", c, parameters), folder, shard_bytes)
    # Pages that are not yet on the disk could not be dropped from memory.
    os.sync()
    slices = [np.prod(p.shape[p.stack :], dtype=np.int64) for p in parameters.values()]
    return 2 * int(max(slices))


def files(folder: Path) -> list[Path]:
    """The files with weights of a folder."""
    return sorted(folder.glob("*.safetensors"))


def forget(paths: Sequence[Path]) -> None:
    """Drops files from the system's memory, so that the next one to read them waits for the disk.
    ValueError where the system cannot."""
    if not hasattr(os, "posix_fadvise"):
        raise ValueError("this system cannot drop files from its memory; run it on Linux")
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(
    gib: float, rounds: int, folder: Path | None = None, fresh: bool = False
) -> list[dict[str, Any]]:
    """A row for a plain read of the files, one for a read into memory of their size, and one for
    `load` in the stored type, each with a cold cache, in turns: seconds (the median), all_seconds,
    gb_per_second, ratio (seconds over those of the plain read, by the medians of one run),
    peak_bytes, and for `load` `beyond`, the memory at its peak beyond the model's and the reader's,
    in sizes of the largest tensor. With `fresh` each turn has a process of its own.

    The weights are written into `folder`, by default a temporary one. ValueError on a system that
    cannot drop files from its memory.
    """
    forget([])
    with tempfile.TemporaryDirectory(dir=folder) as place:
        largest = write(generated(gib), Path(place))
        paths = files(Path(place))
        size = sum(path.stat().st_size for path in paths)
        names = {kind: f"{kind}:{place}" for kind in (READ, KEPT, LOAD)}
        take = take_fresh_turns if fresh else take_turns
        timed = take(
            "research.bench.load_contender",
            list(names.values()),
            rounds,
            # Programs start without settings of the allocator, and so do these.
            allocator="",
            before=lambda: forget(paths),
        )
    return list(rows({kind: timed[name] for kind, name in names.items()}, size, largest))


def rows(timed: dict[str, Any], size: int, largest: int) -> Iterator[dict[str, Any]]:
    """The rows of `compare`, of what was timed of each kind, the bytes of the files and of their
    largest tensor."""
    read = timed[READ]
    for kind, one in timed.items():
        # Both have imported the same, so the reader's peak is what a process without a model has.
        beyond = (one["peak_bytes"] - read["peak_bytes"] - size) / largest
        yield {
            "contender": kind,
            **one,
            "gb_per_second": size / one["seconds"] / 1e9,
            "ratio": one["seconds"] / read["seconds"],
            "beyond": beyond if kind == LOAD else None,
        }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    lines = [
        f"{'contender':10} {'seconds':>8} {'GB/s':>6} {'ratio':>6} {'peak MB':>8} {'beyond':>7}"
    ]
    for row in results:
        beyond = "" if row["beyond"] is None else f"{row['beyond']:.2f}"
        lines.append(
            f"{row['contender']:10} {row['seconds']:8.2f} {row['gb_per_second']:6.2f} "
            f"{row['ratio']:6.2f} {row['peak_bytes'] / 1e6:8.0f} {beyond:>7}"
        )
    lines.append("ratio: seconds over those of a plain read of the files, in the same run")
    lines.append("kept: the same read into memory of that size, which the system first has to give")
    lines.append("beyond: peak memory beyond the model's, in sizes of its largest tensor")
    return "\n".join(lines)
