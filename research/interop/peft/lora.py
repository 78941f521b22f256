"""LoRA, rsLoRA and DoRA in peft's format. peft has tensors module by module, our leaves are stacked
over layers as the weights are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research import tree
from research.interop.peft.experts import refuse_single
from research.interop.peft.kinds import LORA
from research.interop.peft.tensors import Arrays, Found
from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.layout import (
    BAR,
    fused,
    inverse,
    letter_sizes,
    parse,
    rearrange,
    shape,
)
from research.interop.storage.modules import Module, arranged, check_known, suffixes
from research.models.config import ModelConfig
from research.weights.lora import LoraAdapter


def read_lora(found: Found, known: Mapping[str, Module], c: ModelConfig) -> tree.Tree:
    """The adapters by path of our tree, as numpy arrays. ValueError for tensors that are not
    LoRA's, or that have another shape or rank than the model and the config want."""
    # First one adapter for each layer, as peft has it, with a rank of its own; then they are
    # stacked.
    by_layer: dict[str, dict[tuple[int, ...], LoraAdapter]] = {}
    for name, parts in found.parts.items():
        module = known[name]
        for path, adapter in zip(
            module.paths, _adapters(module, parts, found, letter_sizes(c)), strict=True
        ):
            by_layer.setdefault(path, {})[module.index] = adapter
    specs = specs_by_path(c)
    stacks = {path: specs[path].shape[: stacked_axes(specs[path])] for path in by_layer}
    return tree.unflatten(
        {path: _stacked(path, layers, stacks[path]) for path, layers in by_layer.items()}
    )


def _adapters(
    module: Module, parts: Mapping[str, np.ndarray], found: Found, sizes: Mapping[str, int]
) -> list[LoraAdapter]:
    """The adapters of the weights that a module holds."""
    by_rows = "lora_embedding_A" in parts
    pair = ("lora_embedding_B", "lora_embedding_A") if by_rows else ("lora_A", "lora_B")
    if not set(pair) <= parts.keys():
        raise ValueError(f"{module.name} has {', '.join(parts)}; wanted {' and '.join(pair)}")
    # peft's embedding goes from V to D, while our table has inputs D and outputs V, as a head uses
    # it: peft's B [D, R] is our a, its A [R, V] our b, both transposed.
    a, b = (parts[part].T if by_rows else parts[part] for part in pair)
    rank, config = found.rank(module.name), found.config
    # alpha / rank is computed from the config's rank, so it must be the tensors'.
    if a.shape[0] != rank:
        raise ValueError(f"{module.name} has rank {a.shape[0]}, its config says {rank}")
    if config.dora and by_rows:
        raise ValueError(
            f"use_dora=True on the table {module.name} is not supported; train it with "
            "use_dora=False"
        )
    if by_rows != module.embedding:
        raise ValueError(f"{module.name} has {', '.join(parts)}, which is not how it is used")
    sizes, several = {**sizes, "R": rank}, len(module.paths)
    # A's axes are the weight's inputs, B's its outputs, in the weight's own order.
    inner = arranged(a, module.a, sizes, module.name)
    outer = arranged(b, module.b, sizes, module.name)
    magnitude = parts.get("lora_magnitude_vector") if config.dora else None
    gains = None if magnitude is None else arranged(magnitude, module.outputs, sizes, module.name)
    scale, adapters = found.scale(module.name), []
    # One vector for each weight that the module holds; a single weight is all of it.
    per_part = gains if gains is None or several > 1 else gains[None]
    # Adapters of separate weights may have been joined into one by `interop.peft.write`: each then
    # keeps its own ranks.
    for part, ranks in enumerate(_own_ranks(outer) if several > 1 else [slice(None)]):
        adapters.append(
            LoraAdapter(
                inner[..., ranks],
                (outer[part] if several > 1 else outer)[ranks],
                scale,
                None if per_part is None else per_part[part],
                module.table,
                config.dropout,
            )
        )
    return adapters


def _own_ranks(outer: Sequence[np.ndarray]) -> list[slice]:
    """The ranks that each weight of a fused module uses, from the B [R, ...] of each.

    Usually all of them. An adapter that joins those of separate weights (`interop.peft.write`) has
    a block of ranks for each, and zeros elsewhere; then the blocks, so that a round trip returns
    the separate adapters.
    """
    several, rank = len(outer), len(outer[0])
    width = rank // several
    # [weights, R]: whether a weight's B uses this rank at all.
    uses = np.stack([np.abs(one.reshape(rank, -1)).max(-1) > 0 for one in outer])
    blocks = [slice(part * width, (part + 1) * width) for part in range(several)]
    outside = [np.delete(uses[part], blocks[part]).any() for part in range(several)]
    inside = any(uses[part, blocks[part]].any() for part in range(several))
    return [slice(None)] * several if rank % several or not inside or any(outside) else blocks


def _stacked(
    path: str, layers: Mapping[tuple[int, ...], LoraAdapter], stack: tuple[int, ...]
) -> LoraAdapter:
    """The adapters of the layers of one weight as one stack, padded with zeros to the highest rank;
    layers without an adapter are all zeros."""
    rank = max(layer.a.shape[-1] for layer in layers.values())
    first = next(iter(layers.values()))
    # Columns of zeros in both factors add nothing to a b, and a scale of 0 nothing either.
    a = np.zeros((*stack, *first.a.shape[:-1], rank), np.float32)
    b = np.zeros((*stack, rank, *first.b.shape[1:]), np.float32)
    scale = np.zeros(stack, np.float32)
    magnitude = (
        None if first.magnitude is None else np.zeros((*stack, *first.magnitude.shape), np.float32)
    )
    # A magnitude of 0 would erase a layer without adapter, and its column norms are not known here.
    if magnitude is not None and len(layers) < scale.size:
        raise ValueError(
            f"use_dora=True on {len(layers)} of the {scale.size} layers of {path} is not supported"
        )
    for index, layer in layers.items():
        layer_rank = layer.a.shape[-1]
        a[index][..., :layer_rank], b[index][:layer_rank] = layer.a, layer.b
        scale[index] = layer.scale
        if magnitude is not None:
            magnitude[index] = layer.magnitude
    return LoraAdapter(a, b, scale, magnitude, first.table, first.dropout)


def write_lora(
    adapters: Mapping[str, LoraAdapter], known: Mapping[str, Module], c: ModelConfig
) -> tuple[dict[str, Any], Arrays]:
    """(fields of adapter_config.json, tensors by name) of low-rank adapters by path of our tree.

    ValueError for a path that is no matrix of the model, for DoRA on some adapters only, for
    adapters that are all zero, and for weights of one module that peft cannot hold together.
    """
    arrays: Arrays = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    decomposed = {adapter.magnitude is not None for adapter in adapters.values()}
    if len(decomposed) > 1:
        raise ValueError(
            "some adapters have a magnitude and some have none; peft's use_dora is for all or none"
        )
    check_known(adapters, known)
    for name, module in known.items():
        pair = _pair(module, adapters, letter_sizes(c))
        if pair is None:
            continue
        a, b, scale, magnitude = pair
        rank = a.shape[-1]
        sizes = letter_sizes(c) | {"R": rank}
        a, b = rearrange(a, inverse(module.a), sizes), rearrange(b, inverse(module.b), sizes)
        # peft names the factors of an embedding otherwise, without `.weight`.
        names = (
            ("lora_embedding_B", "lora_embedding_A")
            if module.embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        for part, x in zip(names, (a.T, b.T) if module.embedding else (a, b)):
            arrays[f"{name}.{part}"] = np.ascontiguousarray(x)
        if magnitude is not None:
            arrays[f"{name}.lora_magnitude_vector"] = rearrange(
                magnitude, inverse(module.outputs), sizes
            )
        # Whatever made the scale (rsLoRA, a rule), alpha = scale * rank gives it back as alpha / r.
        ranks[name], alphas[name] = rank, _as_json_number(float(scale) * rank)
    if not ranks:
        raise ValueError("every adapter is zero; there is nothing to write")
    return _fields(ranks, alphas, next(iter(adapters.values())), known), arrays


def _fields(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    adapter: LoraAdapter,
    known: Mapping[str, Module],
) -> dict[str, Any]:
    """LoRA's fields of adapter_config.json for the ranks and alphas of modules by name; `adapter`
    is any of them."""
    targets = suffixes(set(ranks), known)
    refuse_single(targets)
    # The commonest numbers become the config's own, so that the patterns name only exceptions.
    rank, alpha = (Counter(numbers.values()).most_common(1)[0][0] for numbers in (ranks, alphas))
    return {
        "peft_type": LORA,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        # rsLoRA's root is part of each alpha already, see above.
        "use_rslora": False,
        "use_dora": adapter.magnitude is not None,
        "fan_in_fan_out": any(known[name].conv for name in ranks),
        "target_modules": targets,
        # Whole names: peft matches a pattern with the end of a name behind a dot.
        "rank_pattern": {name: other for name, other in ranks.items() if other != rank},
        "alpha_pattern": {name: other for name, other in alphas.items() if other != alpha},
    }


def _pair(
    module: Module, adapters: Mapping[str, LoraAdapter], sizes: Mapping[str, int]
) -> tuple[np.ndarray, Any, np.float32, Any] | None:
    """(a, b, scale, magnitude) of a module in our axes; b and magnitude have a leading axis over
    the weights of a fused module, or are lists where these differ in size. None for a module
    without an adapter.

    The weights of a fused module share one A in peft. If ours differ, it gets all of them one after
    the other, and each weight's B is zero for the ranks of the others.
    """
    layers = [_layer(adapters.get(path), module.index) for path in module.paths]
    given = [one for one in layers if one is not None]
    if not given:
        return None
    if len(module.paths) == 1:
        return given[0]
    a, b, scale, magnitude = given[0]
    if len(given) < len(layers) and magnitude is not None:
        raise ValueError(
            f"{module.name} has DoRA on {len(given)} of the {len(layers)} weights that it holds; "
            "adapt all"
        )
    # B could absorb a different scale, but a round trip would not give the same adapters back.
    if any(one[2] != scale for one in given):
        raise ValueError(
            f"the weights of {module.name} have adapters of different scale; peft has one for all "
            "of them"
        )
    # A weight without an adapter gets B = 0, which leaves it unchanged whatever A is.
    zeros = [(a, _no_update(module, n, b, sizes), scale, None) for n in range(len(layers))]
    filled = [zero if one is None else one for zero, one in zip(zeros, layers)]
    # Equal A's (an adapter that was read from a fused module) need no blocks.
    if any(one[0].shape != a.shape or (one[0] != a).any() for one in filled):
        wide = sum(one[0].shape[-1] for one in filled)
        starts = np.cumsum([0] + [one[0].shape[-1] for one in filled])
        b_of = [np.zeros((wide, *one[1].shape[1:]), np.float32) for one in filled]
        for wide_b, one, start in zip(b_of, filled, starts):
            wide_b[start : start + len(one[1])] = one[1]
        a = np.concatenate([one[0] for one in filled], axis=-1)
    else:
        b_of = [one[1] for one in filled]
    return (
        a,
        fused(b_of, module.b),
        scale,
        None if magnitude is None else fused([one[3] for one in filled], module.b),
    )


def _no_update(module: Module, part: int, b: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """A B of zeros for one of the weights of a fused module, of the rank of `b`."""
    if BAR not in module.b:
        return np.zeros_like(b)
    _, ours = parse(module.b.split(BAR)[part])
    return np.zeros(shape(ours, {**sizes, "R": len(b)}), b.dtype)


def _layer(
    adapter: LoraAdapter | None, index: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.float32, Any] | None:
    """One layer of an adapter, without the last ranks that are zero in both factors: padding of a
    stack with layers of higher rank. None if all are, without a magnitude."""
    if adapter is None:
        return None
    a, b, scale = (np.asarray(x, np.float32)[index] for x in (adapter.a, adapter.b, adapter.scale))
    used = np.abs(a.reshape(-1, a.shape[-1])).max(0) + np.abs(b.reshape(len(b), -1)).max(1)
    rank = int(np.max(np.flatnonzero(used), initial=-1)) + 1
    if not rank and adapter.magnitude is None:
        return None
    magnitude = (
        None if adapter.magnitude is None else np.asarray(adapter.magnitude, np.float32)[index]
    )
    return a[..., : max(rank, 1)], b[: max(rank, 1)], scale, magnitude


def _as_json_number(x: float) -> int | float:
    return int(x) if math.isfinite(x) and x == int(x) else x
