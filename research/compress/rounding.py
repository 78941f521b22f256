"""How far a quantized model's weights are from the original's, for the line that says so."""

import jax.numpy as jnp
import numpy as np

from research import tree
from research.weights.quantized import is_quantized


def describe_rounding(params: tree.Tree, quantized: tree.Tree, asked: str) -> str:
    """One line: what was quantized as `asked`, with the root mean square and the largest of the
    differences over all quantized numbers, and how many parameters were left as they were.

    Methods that rescale weights (AWQ, SmoothQuant) move factors from a weight into the one before
    it, so that numbers of one weight are no longer comparable; the line then counts alone.
    """
    after = tree.paths(quantized, is_quantized)
    codes = {path: leaf for path, leaf in after.items() if is_quantized(leaf)}
    before = tree.paths(params)
    kept = sum(
        path not in codes and bool(jnp.array_equal(x, after[path])) for path, x in before.items()
    )
    rescaled = len(before) - len(codes) - kept
    if rescaled:
        return (
            f"quantized as asked: {asked}, {len(codes)} tensors; {rescaled} rescaled; {kept} kept"
        )
    squares, largest, size = 0.0, 0.0, 0
    for path, leaf in codes.items():
        error = np.abs(np.asarray(leaf.dense()) - np.asarray(before[path], np.float32))
        largest = max(largest, float(error.max()))
        # A sum of a billion squares in float32 would stop growing.
        squares += float(np.square(error, dtype=np.float64).sum())
        size += error.size
    return (
        f"quantized as asked: {asked}, {(squares / max(size, 1)) ** 0.5:.3g} rms, largest "
        f"{largest:.3g} of {len(codes)} tensors; {kept} kept"
    )
