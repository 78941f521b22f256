"""LoRA, rsLoRA and DoRA as peft stores them, module by module, to leaves that are stacked as our
weights are."""

from collections.abc import Mapping

import numpy as np

from research import tree
from research.interop.peft.tensors import Found
from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.layout import letter_sizes
from research.interop.storage.modules import Module, arranged
from research.models.config import ModelConfig
from research.weights.lora import LoraAdapter


def read_lora(found: Found, known: Mapping[str, Module], c: ModelConfig) -> tree.Tree:
    """The adapters by path of our tree. ValueError for parts that are none of LoRA's, or of another
    shape or rank."""
    rows: dict[str, dict[tuple[int, ...], LoraAdapter]] = {}
    for name, parts in found.parts.items():
        module = known[name]
        for path, adapter in zip(
            module.paths, _adapters(module, parts, found, letter_sizes(c)), strict=True
        ):
            rows.setdefault(path, {})[module.index] = adapter
    specs = specs_by_path(c)
    stacks = {path: specs[path].shape[: stacked_axes(specs[path])] for path in rows}
    return tree.unflatten({path: _stacked(path, own, stacks[path]) for path, own in rows.items()})


def _adapters(
    module: Module, parts: Mapping[str, np.ndarray], found: Found, sizes: Mapping[str, int]
) -> list[LoraAdapter]:
    """The adapters of the weights that a module holds."""
    by_rows = "lora_embedding_A" in parts
    pair = ("lora_embedding_B", "lora_embedding_A") if by_rows else ("lora_A", "lora_B")
    if not set(pair) <= parts.keys():
        raise ValueError(f"{module.name} has {', '.join(parts)}; wanted {' and '.join(pair)}")
    a, b = (parts[part].T if by_rows else parts[part] for part in pair)
    rank, config = found.rank(module.name), found.config
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
    inner = arranged(a, module.a, sizes, module.name)
    outer = arranged(b, module.b, sizes, module.name)
    magnitude = parts.get("lora_magnitude_vector") if config.dora else None
    gains = None if magnitude is None else arranged(magnitude, module.outputs, sizes, module.name)
    scale, made = found.scale(module.name), []
    # One vector for each weight that the module holds; a single weight is all of it.
    per_part = gains if gains is None or several > 1 else gains[None]
    for part, own in enumerate(_own_ranks(outer) if several > 1 else [slice(None)]):
        made.append(
            LoraAdapter(
                inner[..., own],
                (outer[part] if several > 1 else outer)[own],
                scale,
                None if per_part is None else per_part[part],
                module.table,
                config.dropout,
            )
        )
    return made


def _own_ranks(outer: np.ndarray) -> list[slice]:
    """Which ranks each weight of a fused one has for itself, of `outer` [parts, R, ...].

    All of them, but for an adapter that joins those of separate weights: there the rest is zero,
    see `peft_write`.
    """
    several, rank = outer.shape[:2]
    width = rank // several
    uses = np.abs(outer.reshape(several, rank, -1)).max(-1) > 0
    blocks = [slice(part * width, (part + 1) * width) for part in range(several)]
    outside = [np.delete(uses[part], blocks[part]).any() for part in range(several)]
    inside = any(uses[part, blocks[part]].any() for part in range(several))
    return [slice(None)] * several if rank % several or not inside or any(outside) else blocks


def _stacked(
    path: str, rows: Mapping[tuple[int, ...], LoraAdapter], stack: tuple[int, ...]
) -> LoraAdapter:
    """The adapters of the layers of one weight as one, of the highest of their ranks."""
    rank = max(row.a.shape[-1] for row in rows.values())
    first = next(iter(rows.values()))
    a = np.zeros((*stack, *first.a.shape[:-1], rank), np.float32)
    b = np.zeros((*stack, rank, *first.b.shape[1:]), np.float32)
    scale = np.zeros(stack, np.float32)
    magnitude = (
        None if first.magnitude is None else np.zeros((*stack, *first.magnitude.shape), np.float32)
    )
    if magnitude is not None and len(rows) < scale.size:
        raise ValueError(
            f"use_dora=True on {len(rows)} of the {scale.size} layers of {path} is not supported"
        )
    for index, row in rows.items():
        own = row.a.shape[-1]
        a[index][..., :own], b[index][:own], scale[index] = row.a, row.b, row.scale
        if magnitude is not None:
            magnitude[index] = row.magnitude
    return LoraAdapter(a, b, scale, magnitude, first.table, first.dropout)
