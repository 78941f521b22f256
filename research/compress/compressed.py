"""A recipe applied to an opened model, its export, and the receipt of the export."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import tree
from research.compress import depth, width
from research.compress.calibration import calibrate
from research.compress.prune import PRUNERS
from research.compress.pruned import prune
from research.compress.recipe import Recipe
from research.evals.perplexity import Score
from research.evals.receipt import Comparison, compare
from research.files import building, write_json
from research.interop.formats import FLOATS, FORMATS, check_target
from research.interop.load import Loaded, load
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.finite import cast, checked
from research.interop.storage.parameter import Parameter
from research.interop.storage.tensors import as_dtype
from research.models.config import ModelConfig
from research.models.model import Batch
from research.weights import rules
from research.weights.matrices import LINEAR
from research.weights.quantized import is_quantized
from research.weights.sparse import Sparse, count_nonzero


def apply_recipe(
    loaded: Loaded, recipe: Recipe, batches: Sequence[Batch], group: int | None = None
) -> tuple[ModelConfig, tree.Tree]:
    """(config, parameters) of the model with the matrices of its layers compressed: `Sparse` and
    `Quantized` leaves, or arrays where the model is smaller. ValueError as the methods have them.
    """
    model, params = loaded.model, loaded.params
    if recipe.method == "depth":
        influence_L = depth.block_influence(model, params, batches)
        dropped = depth.least_influential(influence_L, recipe.layers)
        return depth.drop_layers(model.config, params, dropped)
    if recipe.method == "width":
        used = width.importance(model, params, batches)
        return width.cut(
            model.config,
            params,
            channels_LF=width.best(used.channels_LF, recipe.share),
            groups_LK=width.best(used.groups_LK, recipe.share),
        )
    if recipe.method in PRUNERS:
        pruned_by = [(LINEAR, recipe.pruning), (".*", None)]
        pruned = prune(model, params, pruned_by, recipe.method, batches, group)
        return model.config, pruned
    chosen = [(LINEAR, recipe.format), (".*", None)]
    if recipe.method == "rtn":
        return model.config, rules.quantize(params, model.specs(), chosen, group)
    return model.config, calibrate(model, params, chosen, batches, recipe.method, group)


def export(
    checkpoint: Checkpoint,
    config: ModelConfig,
    params: tree.Tree,
    target: str | Path,
    to: str,
    dtype: str,
    receipt: dict[str, Any],
) -> None:
    """Writes the model as a new folder in a format of `research.interop.formats.FORMATS`, with
    `receipt` as compression.json. Codes are written as the numbers that they stand for. ValueError
    for a format that cannot hold the model."""
    check_target(to, dtype)
    made = checked(_as_checkpoint(checkpoint, config, params))
    compressed = cast(made, _type(checkpoint, dtype))
    with building(target) as folder:
        FORMATS[to].writes(compressed, folder, dtype if dtype not in FLOATS else "")
        write_json(folder / "compression.json", receipt)


def check_zeros(params: tree.Tree, written: tree.Tree) -> None:
    """ValueError unless what was sparse in `params` has its zeros in what was written."""
    leaves = tree.paths(params, rules.is_leaf)
    for path, w in tree.paths(written).items():
        if isinstance(leaves[path], Sparse):
            kept, found = count_nonzero(leaves[path]), count_nonzero(w)
            # Fewer where the type of the files has no number so small.
            if found > kept:
                raise ValueError(
                    f"{path} has {found:,} numbers that are not zero in the export, {kept:,} "
                    "before; write it with --to=hf"
                )


def measure_export(
    original: Loaded, source: str | Path, ids: np.ndarray, window: int
) -> tuple[Score, Comparison, Loaded]:
    """(the original's score, the export's comparison with it, the export), computed in float32 from
    the files."""
    reloaded = load(source, "float32")
    score, compared = compare(
        original.model,
        original.params,
        {"export": reloaded.params},
        ids,
        window,
        {"export": reloaded.model},
    )
    return score, compared["export"], reloaded


def counts(params: tree.Tree) -> dict[str, int]:
    """ "parameters" and how many of them are "nonzero"."""
    arrays = jax.tree.leaves(params)
    return {
        "parameters": sum(math.prod(w.shape) for w in arrays),
        "nonzero": sum(count_nonzero(w) for w in arrays),
    }


def bits_of(params: tree.Tree, dtype: str) -> float:
    """Bits of storage a weight of the layers' matrices: of codes their own, of other weights those
    of the type in which they are written. Zeros are stored like any other number."""
    leaves = tree.paths(params, rules.is_leaf)
    linear = tree.match(LINEAR, leaves)
    bits = sum(_bits(leaves[path], as_dtype(dtype).itemsize * 8) for path in linear)
    return bits / sum(math.prod(leaves[path].shape) for path in linear)


def _bits(w: Any, of_number: int) -> int:
    codes = w.base if isinstance(w, Sparse) else w
    return codes.nbits() if is_quantized(codes) else math.prod(w.shape) * of_number


def stored_type(checkpoint: Checkpoint, dtype: str) -> str:
    """The type of the numbers in an export, "" standing for the checkpoint's own."""
    return _type(checkpoint, dtype).name


def _type(checkpoint: Checkpoint, dtype: str) -> np.dtype:
    if dtype in FLOATS:
        return as_dtype(dtype)
    # A type that quantizes is the writer's business, which takes numbers of any type.
    own = next(iter(checkpoint.parameters.values())).dtype
    return as_dtype("float32" if dtype or checkpoint.quantized else own)


def _as_checkpoint(checkpoint: Checkpoint, config: ModelConfig, params: tree.Tree) -> Checkpoint:
    specs, leaves = specs_by_path(config), tree.paths(params, rules.is_leaf)
    parameters = {}
    for path, spec in specs.items():
        w = leaves[path]
        values = np.asarray(w if isinstance(w, jax.Array) else w.dense())
        parameters[path] = Parameter(
            values.shape, values.dtype.name, stacked_axes(spec), values.__getitem__
        )
    return replace(
        checkpoint, config=config, parameters=parameters, original=None, codes={}, quantized=False
    )
