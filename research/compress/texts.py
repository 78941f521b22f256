"""The texts of a compression: some to calibrate with, others to measure on, and no overlap."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from research.compress.measure import first_ids
from research.data.sources import open_source
from research.downloads.cache import cache_directory

_RUN = 16  # equal tokens in a row that chance does not make
_SHARED = 0.05  # of the runs of calibration; quotations stay below


@dataclass(frozen=True)
class CompressionTexts:
    """Token ids [N] to measure on, and to calibrate with or None; the sources' names and
    fingerprints."""

    heldout: np.ndarray
    calibration: np.ndarray | None
    sources: dict[str, Any]


def read_compression_texts(
    tokenizer: Any, data: str, calibration: str, tokens: int, calibration_tokens: int, seed: int
) -> CompressionTexts:
    """The first `tokens` + 1 of the held-out documents of `data`, and `calibration_tokens` (0 for
    none) of the training documents of `calibration`, in an order drawn from the seed.

    ValueError for sources with too little text, and for calibration text that is in the text that
    is measured on.
    """
    measured = open_source(data, cache_directory())
    heldout = first_ids(tokenizer, measured.heldout, tokens + 1, f"--data={data}")
    sources = {"data": {"source": data, "fingerprint": measured.fingerprint}}
    if not calibration_tokens:
        return CompressionTexts(heldout, None, sources)
    source = open_source(calibration, cache_directory())
    documents = Shuffled(source.train, seed)
    ids = first_ids(tokenizer, documents, calibration_tokens, f"--calibration={calibration}")
    if (shared := shared_runs(ids, heldout)) > _SHARED:
        raise ValueError(
            f"--calibration={calibration}: {shared:.0%} of its text is in the held-out text of "
            f"--data={data}, on which the result would be measured; give another source to one of "
            "the two"
        )
    sources["calibration"] = {
        "source": calibration,
        "fingerprint": source.fingerprint,
        "tokens": len(ids),
        "seed": seed,
    }
    return CompressionTexts(heldout, ids, sources)


@dataclass(frozen=True)
class Shuffled:
    """Documents in an order that a seed draws."""

    documents: Any
    seed: int

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Any:
        order = np.random.default_rng(self.seed).permutation(len(self.documents))
        return self.documents[int(order[index])]


def shared_runs(ids: np.ndarray, others: np.ndarray) -> float:
    """The share of the runs of 16 tokens in `ids` that `others` have too; 0 without a run."""
    runs, known = _runs(ids), set(_runs(others))
    return sum(run in known for run in runs) / max(len(runs), 1)


def _runs(ids: np.ndarray) -> list[bytes]:
    flat = np.ascontiguousarray(ids, np.int32)
    return [flat[at : at + _RUN].tobytes() for at in range(len(flat) - _RUN + 1)]
