"""The index of a million passages: its memory against what is predicted, what it finds of what an
exact search finds, and the time of a query."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.retrieval.index import Exact, make_index, predicted_bytes
from research.retrieval.vector_file import VectorFile

SIZE = 384  # of MiniLM
_BLOCK = 16_384
_QUERIES, _NEAREST = 200, 10
_SPREAD = 0.6


def write(count: int, file: Path, real_ND: np.ndarray | None = None, size: int = SIZE) -> None:
    """Vectors of length 1 in a file, float32 [count, D]: the given ones, and others beside them or
    beside 20,000 drawn ones, as far from them as neighbours among texts are. Vectors of texts lie
    in clusters; those that are drawn alone lie nowhere near each other, and no index finds their
    neighbours."""
    rng = np.random.default_rng(0)
    if real_ND is None:
        # Of few directions, as those of texts are: 32 of them hold most of the variance.
        mixed = rng.standard_normal((20_000, 32)) @ rng.standard_normal((32, size))
        real_ND = _unit(mixed + 0.5 * rng.standard_normal((20_000, size)))
    with open(file, "wb") as out:
        out.write(np.ascontiguousarray(real_ND[:count], np.float32).tobytes())
        for first in range(len(real_ND), count, _BLOCK):
            out.write(_beside(real_ND, min(_BLOCK, count - first), rng).tobytes())


def queries(vectors: VectorFile, count: int = _QUERIES) -> np.ndarray:
    """Vectors of length 1 beside some of the given ones, which are none of them."""
    rng = np.random.default_rng(1)
    chosen = np.sort(rng.choice(len(vectors), count, replace=False))
    return _beside(vectors.take(chosen), count, rng)


def measure(count: int, file: Path, size: int = SIZE) -> dict[str, Any]:
    """Builds the index of the vectors of a file and asks it: predicted_bytes, peak_bytes (the rise
    of this process's memory), build_seconds, recall (share of
    the 10 nearest that are found, over 200 queries), p50_ms and p95_ms of a query."""
    vectors = VectorFile(file, size, count)
    asked_QD = queries(vectors)
    before, start = _memory("VmRSS"), time.perf_counter()
    index = make_index(vectors)
    build = time.perf_counter() - start
    times, found = [], []
    for query_D in asked_QD:
        start = time.perf_counter()
        found.append(index.search(query_D[None], _NEAREST)[1][0])
        times.append(time.perf_counter() - start)
    peak = _memory("VmHWM") - before
    exact_QN = Exact(vectors).search(asked_QD, _NEAREST)[1]
    shared = sum(len(set(some) & set(every)) for some, every in zip(found, exact_QN))
    p50, p95 = np.percentile(times, (50, 95)) * 1000
    return {
        "vectors": count,
        "predicted_bytes": predicted_bytes(count, size),
        "peak_bytes": peak,
        "build_seconds": build,
        "recall": shared / exact_QN.size,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
    }


def compare(count: int, folder: Path | None = None) -> dict[str, Any]:
    """`measure` in a process of its own, whose memory is that of the index alone. The vectors are
    written into `folder`, by default a temporary one. ValueError where the process fails."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place, "vectors.f32")
        write(count, file)
        command = [sys.executable, "-m", "research.bench.vectors", str(count), str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["?"]
        raise ValueError(f"the index of {count:,} vectors was not made: {last[0]}")
    return json.loads(done.stdout)


def table(row: dict[str, Any]) -> str:
    """The numbers as lines for a person."""
    return "\n".join(
        [
            f"vectors         {row['vectors']:,}",
            f"memory          {row['peak_bytes'] / 1e6:,.0f} MB of {_mb(row)} MB predicted",
            f"build           {row['build_seconds']:.1f} s",
            f"recall@10       {row['recall']:.3f} of an exact search's",
            f"query           {row['p50_ms']:.1f} ms (median), {row['p95_ms']:.1f} ms (95%)",
        ]
    )


def _mb(row: dict[str, Any]) -> str:
    return f"{row['predicted_bytes'] / 1e6:,.0f}"


def _beside(vectors_ND: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.integers(len(vectors_ND), size=count)
    noise = rng.standard_normal((count, vectors_ND.shape[1]), np.float32)
    noise *= _SPREAD / vectors_ND.shape[1] ** 0.5
    return _unit(vectors_ND[chosen] + noise)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


def _memory(name: str) -> int:
    """The memory of this process in bytes, "VmRSS" now or "VmHWM" at its peak. Not that of
    `getrusage`, where a child begins with the peak of its parent. ValueError beside Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise ValueError("this system does not say how much memory a process has; run it on Linux")
    [line] = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def _main(arguments: Sequence[str]) -> None:
    count, file = arguments
    print(json.dumps(measure(int(count), Path(file))))


if __name__ == "__main__":
    _main(sys.argv[1:])
