"""Logits of a base with two adapters, compared: what an exported adapter computes."""

import os
from pathlib import Path

import numpy as np

from research.interop.load import load
from research.interop.loaded import Loaded

TOKENS = 16  # of the compared text; a wrong use of an adapter shows at the first of them
# Difference of logits, as a share of the largest, above which two programs of equal numbers do not
# compute the same: float32 rounding is a hundred times less.
_TOLERANCE = 1e-3


def compare_logits(
    base: str, run: Path, folder: Path, nbytes: int
) -> tuple[float | None, list[str]]:
    """(largest difference of the logits with the adapters of a run and of a folder, the line that
    says it), with one model in memory at a time; (None, why) if this machine cannot hold `nbytes`
    twice. ValueError if the difference is more than rounding."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * nbytes > memory:
        return None, [
            f"logits are not compared: the base takes {nbytes / 1e9:.0f} GB in float32 and this "
            f"machine has {memory / 1e9:.0f}"
        ]
    ours, theirs = (_outputs(load(base, adapter=adapter)) for adapter in (run, folder))
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    if not difference <= _TOLERANCE * largest:
        raise ValueError(
            f"with the folder the base computes logits that differ by {difference:.3g} from the "
            f"run's (largest {largest:.3g}); convert the run with --to=hf, which merges the adapter"
        )
    return difference, [f"logits of {TOKENS} ids differ from the run's by at most {difference:.3g}"]


def _outputs(loaded: Loaded) -> np.ndarray:
    """Logits of fixed random ids: of words, of classes, or of encoders without a head the last
    states."""
    c = loaded.config
    ids = np.random.default_rng(0).integers(0, c.vocab_size, (1, min(TOKENS, c.max_length)))
    if c.kind == "encoder_decoder":
        return np.asarray(loaded.logits(ids, decoder_tokens=ids))
    if c.labels:
        return np.asarray(loaded.model.class_logits(loaded.params, loaded.hidden(ids)))
    if c.kind == "encoder" and not c.mlm_head:
        return np.asarray(loaded.hidden(ids))
    return np.asarray(loaded.logits(ids))
