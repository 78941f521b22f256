"""The modules of a model as peft and bitsandbytes see them: a family's rules, read once more for
what lies on a weight.

A module holds one matrix (a linear layer's, a table's) or several side by side, GPT-2's queries,
keys and values. Each of peft's tensors is taken to ours by a pattern, as a weight is: `lora_A` [R,
in] of LLaMA's queries is "R D -> D R" and `lora_B` [out, R] is "(N H) R -> R N H"; those of GPT-2's
fused layer are "R D -> D R", one for all three, and "(3 N H) R -> 3 R N H".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.family import Family
from research.interop.storage.layout import parse, pieces, rearrange
from research.models.config import ModelConfig
from research.models.spec import Spec

PREFIX = "base_model.model."
# Tables that are read by rows and may have an adapter.
TABLES = ("embed/table", "embed/positions", "embed/types")


@dataclass(frozen=True)
class Module:
    """`name` in the model's class, the parameters `paths` at `[index]` that its weight holds, and
    patterns of what lies on it: `a`, `b`, and vectors over its inputs and its outputs. `kind` is
    the name without numbers of layers and experts."""

    name: str
    kind: str
    paths: tuple[str, ...]
    index: tuple[int, ...]
    a: str
    b: str
    inputs: str
    outputs: str
    table: bool  # the inputs are the weight's last axis
    conv: bool  # stored [in, out]

    @property
    def embedding(self) -> bool:
        """Whether it is read by rows."""
        return self.paths[0] in TABLES


def modules(c: ModelConfig, family: Family) -> dict[str, Module]:
    """Every module with a matrix, by name."""
    specs = specs_by_path(c)
    found = {}
    for piece in pieces(
        family.rules(c), {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
    ):
        spec = specs[piece.paths[0]]
        if piece.name.endswith(".weight") and len(spec.shape) - stacked_axes(spec) > 1:
            name = piece.name.removesuffix(".weight")
            found[name] = _module(name, piece.paths, piece.index, piece.pattern, spec)
    return found


def canonical(names: Mapping[str, object], c: ModelConfig, family: Family) -> dict[str, str]:
    """Names as the full class has them (the bare one leaves out its prefix), with those in the
    file."""
    found = {}
    for name in names:
        plain = name.removeprefix(PREFIX)
        for pattern, replacement in family.renames:
            plain = re.sub(pattern, replacement, plain)
        if c.experts:  # transformers 5's name of the router
            plain = re.sub(r"\.mlp\.gate\.", ".block_sparse_moe.gate.", plain)
        found[plain] = name
    if family.prefix and not any(name.startswith(family.prefix) for name in found):
        return {family.prefix + name: actual for name, actual in found.items()}
    return found


def arranged(x: np.ndarray, pattern: str, sizes: Mapping[str, int], name: str) -> np.ndarray:
    """`research.interop.storage.layout.rearrange`, whose ValueError names the module."""
    try:
        return rearrange(x, pattern, sizes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def suffixes(adapted: set[str], known: Mapping[str, Module]) -> list[str]:
    """The shortest ends of names that pick out the adapted modules and no other, as peft's
    `target_modules` match them."""
    found: dict[str, None] = {}
    for name in sorted(adapted):
        for suffix in _ends(name, known[name].kind):
            if {other for other in known if f".{other}".endswith(f".{suffix}")} <= adapted:
                found[suffix] = None
                break
    return list(found)


def _ends(name: str, kind: str) -> Iterator[str]:
    tail = re.split(r"\}\.", kind)[-1].split(".")
    for count in range(1, len(tail) + 1):
        yield ".".join(tail[-count:])
    yield name


def _module(
    name: str, paths: tuple[str, ...], index: tuple[int, ...], pattern: str, spec: Spec
) -> Module:
    left, right = parse(pattern)
    parts = " ".join(right[0]) + " " if len(paths) > 1 else ""
    axes = [group[0] for group in right[len(paths) > 1 :]]
    table = spec.inputs < 0 or paths[0] in TABLES
    inner, outer = (axes[-1:], axes[:-1]) if table else (axes[: spec.inputs], axes[spec.inputs :])
    of_in, of_out = sorted(left, key=lambda group: not set(group) <= set(inner))
    theirs_in, theirs_out = (" ".join(group) for group in (of_in, of_out))
    ours_in, ours_out = " ".join(inner), " ".join(outer)
    kind = re.sub(r"\.\d+\.", ".{}.", name)
    return Module(
        name,
        kind,
        paths,
        index,
        f"R ({theirs_in}) -> {ours_in} R",
        f"({theirs_out}) R -> {parts}R {ours_out}",
        f"({theirs_in}) -> {ours_in}",
        f"({theirs_out}) -> {parts}{ours_out}",
        table,
        of_in is left[0],
    )
