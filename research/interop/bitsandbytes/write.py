"""Writes folders that transformers loads with bitsandbytes. Weights that are quantized already keep
their codes."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.files import write_json
from research.interop.bitsandbytes.sides import QUANTIZABLE, Slice, join_leaves, matrix_tensors
from research.interop.huggingface.families.table import describe
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.family import Family
from research.interop.storage.foreign import write_tensors
from research.interop.storage.layout import letter_sizes
from research.interop.storage.modules import Module, modules
from research.interop.storage.norm_offset import with_norm_offset
from research.interop.storage.parameter import Parameter
from research.interop.storage.safetensors import SHARD_BYTES, Parts, write_safetensors
from research.interop.storage.tensors import Tensor, as_dtype
from research.models.config import ModelConfig
from research.weights.matrices import LINEAR
from research.weights.quantized import is_quantized, quantize_array
from research.weights.rules import is_leaf


def write_bitsandbytes(
    checkpoint: Checkpoint,
    folder: Path,
    params: tree.Tree | None = None,
    format: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the weights into an existing folder.

    The weights are those of `params`, a tree of arrays and quantized leaves as `load` returns it;
    without `params` those of the checkpoint, the layers' matrices quantized one by one to `format`.
    Weights that transformers does not quantize are written dense. ValueError for a format that
    bitsandbytes does not have, and for a fused matrix that is quantized only in part.
    """
    c = checkpoint.config
    if format and format not in QUANTIZABLE:
        raise ValueError(f"bitsandbytes has no {format!r}; choose one of {', '.join(QUANTIZABLE)}")
    family, values = describe(c)
    # transformers keeps `wo` of T5 and mT5 in float32, whatever the folder says.
    known = {
        name: m
        for name, m in modules(c, family).items()
        if "t5" not in family.model_types or not name.endswith(".wo")
    }
    # Both sources answer the same two questions: a slice of a parameter, and whether it is
    # quantized.
    slices, quantized = _of_checkpoint(checkpoint, format) if params is None else _of_params(params)
    chosen = _choose(known, quantized)
    streams, kinds = _streams(checkpoint, family, chosen, slices)
    # transformers quantizes every linear layer it is not told to leave alone.
    skipped = {
        name: None for name, module in known.items() if name not in chosen and not module.embedding
    }
    # Tied heads repeat a table and are not stored, but are linear layers to transformers.
    skipped |= {name.removesuffix(".weight"): None for name, _ in family.copies}
    float_dtypes = [
        tensor.dtype for tensor, _ in streams.values() if tensor.dtype not in ("uint8", "int8")
    ]
    # The dense tensors' type, as codes have none: norms may differ, so the commonest counts.
    values |= {**checkpoint.special, "torch_dtype": max(set(float_dtypes), key=float_dtypes.count)}
    write_json(
        folder / "config.json",
        values | ({"quantization_config": _settings(kinds, list(skipped))} if kinds else {}),
    )
    write_safetensors(folder, streams, metadata={"format": "pt"}, shard_bytes=shard_bytes)


def _choose(
    known: Mapping[str, Module], quantized: Callable[[str, tuple[int, ...]], bool]
) -> dict[str, Module]:
    """The quantized modules, by name. ValueError for one that is quantized only in part."""
    chosen = {
        name: module
        for name, module in known.items()
        if all(quantized(p, module.index) for p in module.paths)
    }
    for name, module in known.items():
        if name not in chosen and any(quantized(path, module.index) for path in module.paths):
            raise ValueError(
                f"{name} holds {', '.join(module.paths)}, of which some are quantized and some are "
                "not"
            )
    return chosen


def _streams(
    checkpoint: Checkpoint, family: Family, chosen: Mapping[str, Module], slices: Slice
) -> tuple[dict[str, tuple[Tensor, Parts]], set[tuple[str, bool]]]:
    """(tensors of the file, kinds): each kind is (format, True if scales are doubly quantized)."""
    c = checkpoint.config
    # Dense weights keep the type that they had in the checkpoint.
    dtypes = {path: parameter.dtype for path, parameter in checkpoint.parameters.items()}
    parameters = {
        path: Parameter(
            spec.shape,
            dtypes[path],
            stacked_axes(spec),
            partial(_dense, slices, path, dtypes[path]),
        )
        for path, spec in specs_by_path(c).items()
    }
    streams: dict[str, tuple[Tensor, Parts]] = {}
    kinds = set()
    # Weights in memory have our offset, the family's files theirs.
    plain = with_norm_offset(replace(checkpoint, parameters=parameters), family.norm_offset)
    for name, (tensor, make) in write_tensors(c, family.rules(c), plain.parameters).items():
        module = chosen.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if module is None:
            streams[name] = (tensor, lambda make=make: [make()])
        else:
            # Made now and held until written: the codes of all matrices are in memory then, a
            # quarter (4 bits) or half (8 bits) of bfloat16.
            side = join_leaves(module, slices, letter_sizes(c))
            kinds.add((side.format, side.double))
            tensors = matrix_tensors(
                name, side, tensor.shape[::-1] if module.conv else tensor.shape, tensor.dtype
            )
            streams |= {
                key: (Tensor(x.shape, str(x.dtype)), lambda x=x: [x]) for key, x in tensors.items()
            }
    return streams, kinds


def _of_params(params: tree.Tree) -> tuple[Slice, Callable[[str, tuple[int, ...]], bool]]:
    """(slice, is_quantized) of the parameters of a tree, by path and index."""
    leaves = tree.paths(params, is_leaf)

    def _find(path: str, index: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        if path in leaves:
            return leaves[path], index
        # Layers of different forms are a tuple of trees and not one stack.
        return leaves[path.replace("layers/", f"layers/{index[0]}/", 1)], index[1:]

    def _slice(path: str, index: tuple[int, ...]) -> Any:
        leaf, rest = _find(path, index)
        return jax.tree.map(lambda x: np.asarray(x[rest]), leaf)

    return _slice, lambda path, index: is_quantized(_find(path, index)[0])


def _of_checkpoint(
    checkpoint: Checkpoint, format: str
) -> tuple[Slice, Callable[[str, tuple[int, ...]], bool]]:
    specs = specs_by_path(checkpoint.config)
    linear = {path for path in specs if _is_linear(path, checkpoint.config)} if format else set()

    def _slice(path: str, index: tuple[int, ...]) -> Any:
        values = checkpoint.parameters[path].read(index)
        if path not in linear:
            return values
        try:
            leaf = quantize_array(
                jnp.asarray(values.astype(np.float32)), format, inputs=specs[path].inputs
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return jax.tree.map(np.asarray, leaf)

    return _slice, lambda path, index: path in linear


def _is_linear(path: str, c: ModelConfig) -> bool:
    # transformers keeps experts in stacked parameters, which bitsandbytes does not quantize.
    stacked = c.experts and "/mlp/" in path and "/shared/" not in path
    return re.fullmatch(LINEAR, path) is not None and not stacked


def _dense(slices: Slice, path: str, dtype: str, index: tuple[int, ...]) -> np.ndarray:
    values = slices(path, index)
    if is_quantized(values):
        values = np.asarray(jax.tree.map(jnp.asarray, values).dense()).astype(as_dtype(dtype))
    return values


def _settings(kinds: Iterable[tuple[str, bool]], skipped: list[str]) -> dict[str, Any]:
    """The quantization_config of config.json. ValueError if weights are in several formats."""
    formats = {format for format, _ in kinds}
    if len(formats) > 1:
        raise ValueError(
            f"the weights are {' and '.join(sorted(formats))}; bitsandbytes' folders have one "
            "format"
        )
    # transformers reads two flags, of which exactly one is set.
    eight = formats == {"int8"}
    settings: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": eight,
        "load_in_4bit": not eight,
    }
    if not eight:
        settings |= {
            "bnb_4bit_quant_type": formats.pop(),
            "bnb_4bit_use_double_quant": any(double for _, double in kinds),
            # The type of the products when transformers loads it: the most exact one.
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
        }
    return settings | {"llm_int8_skip_modules": skipped, "llm_int8_threshold": 6.0}
