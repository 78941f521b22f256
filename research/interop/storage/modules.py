"""The modules of a model as peft and bitsandbytes see them, derived from a family's rules.

A module holds one matrix (of a linear layer, of a table) or several side by side, like GPT-2's
queries, keys and values. Patterns convert adapters' tensors as they convert weights: for LLaMA's
queries `lora_A` [R, in] is "R D -> D R" and `lora_B` [out, R] is "(N H) R -> R N H"; GPT-2's fused
layer has one A, "R D -> D R", and B is "(3 N H) R -> 3 R N H".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.family import Family
from research.interop.storage.layout import (
    BAR,
    letter_sizes,
    parse,
    pieces,
    rearrange,
    source_shape,
)
from research.models.config import ModelConfig
from research.models.spec import Spec

# peft wraps the model twice, and the names of its tensors begin with both attributes.
PREFIX = "base_model.model."
TABLE, HEAD = "embed/table", "head/table"  # one weight in a tied model
# Tables that are read by rows and may have an adapter.
TABLES = (TABLE, "embed/positions", "embed/encoder_positions", "embed/types")


@dataclass(frozen=True)
class Module:
    """A module with a matrix.

    name             its name in the model's class
    kind             the name with {} in place of the numbers of layers and experts
    paths, index     the parameters of ours, at `[index]`, that its weight holds
    a, b             patterns from LoRA's A and B to ours
    inputs, outputs  patterns for vectors over its inputs and outputs (IA3, DoRA)
    weight           pattern from its weight to ours
    table            True if the inputs are the last axis of our weight
    conv             True if its class stores the weight as [in, out]
    """

    name: str
    kind: str
    paths: tuple[str, ...]
    index: tuple[int, ...]
    a: str
    b: str
    inputs: str
    outputs: str
    weight: str
    table: bool
    conv: bool

    @property
    def embedding(self) -> bool:
        """True for tables that are read by rows."""
        return self.paths[0] in TABLES


def modules(c: ModelConfig, family: Family) -> dict[str, Module]:
    """Every module of a model that holds a matrix, by its name in the model's class."""
    specs, sizes = specs_by_path(c), letter_sizes(c)
    by_name = {}
    for piece in pieces(
        family.rules(c), {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
    ):
        spec = specs[piece.paths[0]]
        # Norms and biases are vectors in the file, whatever axes they have here (OLMo 2's norms of
        # queries have heads): nothing goes on them.
        if piece.name.endswith(".weight") and len(source_shape(piece.pattern, sizes)) > 1:
            name = piece.name.removesuffix(".weight")
            by_name[name] = _module(name, piece.paths, piece.index, piece.pattern, spec)
    return by_name


def canonical(names: Mapping[str, object], c: ModelConfig, family: Family) -> dict[str, str]:
    """Tensor names as in the full model's class (an adapter of the bare class lacks the prefix),
    each with its name in the file."""
    actual_names = {}
    for name in names:
        plain = name.removeprefix(PREFIX)
        for pattern, replacement in family.renames:
            plain = re.sub(pattern, replacement, plain)
        actual_names[plain] = name
    # The bare model's class (BertModel, GPT2Model) has no attribute for the prefix to come from.
    if family.prefix and not any(name.startswith(family.prefix) for name in actual_names):
        return {family.prefix + name: actual for name, actual in actual_names.items()}
    return actual_names


def arranged(x: np.ndarray, pattern: str, sizes: Mapping[str, int], name: str) -> Any:
    """`research.interop.storage.layout.rearrange` whose ValueError also names the module."""
    try:
        return rearrange(x, pattern, sizes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_known(paths: Iterable[str], known: Mapping[str, Module]) -> None:
    """ValueError for a path of our tree that no module of the model holds."""
    for path in set(paths) - {path for module in known.values() for path in module.paths}:
        raise ValueError(f"the adapter has {path}, which is no matrix of this model")


def suffixes(adapted: set[str], known: Mapping[str, Module]) -> list[str]:
    """peft's `target_modules`: the shortest ends of names that select the adapted modules and no
    others."""
    # peft matches `target_modules` with the ends of names, behind a dot.
    targets: dict[str, None] = {}  # an ordered set
    for name in sorted(adapted):
        # Ends that name a kind in every layer come before whole names: `q_proj` for all of them.
        for suffix in _ends(name, known[name].kind):
            if {other for other in known if f".{other}".endswith(f".{suffix}")} <= adapted:
                targets[suffix] = None
                break
    return list(targets)


def _ends(name: str, kind: str) -> Iterator[str]:
    # Behind the last number, since an end with a number in it selects one layer only.
    tail = re.split(r"\}\.", kind)[-1].split(".")
    for count in range(1, len(tail) + 1):
        yield ".".join(tail[-count:])
    yield name


def _module(
    name: str, paths: tuple[str, ...], index: tuple[int, ...], pattern: str, spec: Spec
) -> Module:
    if BAR in pattern:
        # The parts of a fused weight that differ in size: their inputs are the same.
        parts = [_module(name, paths[:1], index, one, spec) for one in pattern.split(BAR)]
        return replace(
            parts[0],
            paths=paths,
            b=BAR.join(one.b for one in parts),
            outputs=BAR.join(one.outputs for one in parts),
            weight=pattern,
        )
    left, right = parse(pattern)
    fused_axis = " ".join(right[0]) + " " if len(paths) > 1 else ""
    # Our side of a pattern has single letters; a leading axis counts fused weights.
    axes = [group[0] for group in right[len(paths) > 1 :]]
    table = spec.inputs < 0 or paths[0] in TABLES
    inner, outer = (axes[-1:], axes[:-1]) if table else (axes[: spec.inputs], axes[spec.inputs :])
    # Of the weight's two axes on the left, the one whose letters are inputs of ours is `in`: first
    # for classes that store [in, out], second for all others.
    of_in, of_out = sorted(left, key=lambda group: not set(group) <= set(inner))
    theirs_in, theirs_out = (" ".join(group) for group in (of_in, of_out))
    ours_in, ours_out = " ".join(inner), " ".join(outer)
    # Layers and experts of one kind differ in their numbers only.
    kind = re.sub(r"\.\d+\.", ".{}.", name)
    return Module(
        name,
        kind,
        paths,
        index,
        f"R ({theirs_in}) -> {ours_in} R",
        f"({theirs_out}) R -> {fused_axis}R {ours_out}",
        f"({theirs_in}) -> {ours_in}",
        f"({theirs_out}) -> {fused_axis}{ours_out}",
        pattern,
        table,
        of_in is left[0],
    )
