"""How a foreign tensor lies in our parameters, as one line that reads in both directions.

A rule names a tensor, the parameter it belongs to, and the pattern that takes one to the other:

    Rule("model.layers.{layer}.self_attn.q_proj.weight", "layers/attention/query", "(N H) D -> D N
    H")

Our parameters are stacked, [L, ...] over layers and [L, E, ...] over experts; `{layer}` and
`{expert}` in a name say which slice the tensor is. A tensor that holds several parameters side by
side names them all, and the pattern's result then begins with an axis over them. Letters are those
of the whole repository, and of tables: P learned positions, Y token types, U buckets of distance, C
classes, M the width of a square layer's result; p the two halves of a rotary pair, h its H/2;
digits are sizes.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from research.models.config import ModelConfig
from research.models.embedding import BUCKETS


@dataclass(frozen=True)
class Rule:
    """One tensor name, or one a layer and expert, with the parameter (several: side by side) and
    pattern."""

    name: str
    path: str | tuple[str, ...]
    pattern: str

    @property
    def paths(self) -> tuple[str, ...]:
        """The parameters that the tensor holds."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True)
class Piece:
    """One tensor in place: slices `[index]` of the parameters `paths`, by `pattern`."""

    name: str
    paths: tuple[str, ...]
    pattern: str
    index: tuple[int, ...]


def letter_sizes(c: ModelConfig) -> dict[str, int]:
    """Size of each letter of a pattern."""
    return {
        "V": c.vocab_size,
        "D": c.d_model,
        "M": c.d_model,
        "N": c.heads,
        "K": c.kv_heads,
        "H": c.head_size,
        "F": c.d_ff,
        "E": c.experts,
        "P": c.max_length,
        "Y": c.token_types,
        "U": BUCKETS,
        "C": c.labels,
        "p": 2,
        "h": c.head_size // 2,
    }


def pieces(rules: Sequence[Rule], stacks: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every tensor that the rules ask for. `stacks` has the sizes of the leading axes of each path,
    () for a plain one."""
    for rule in rules:
        lead = stacks[rule.paths[0]]
        wanted = len(re.findall(r"\{(?:layer|expert)\}", rule.name))
        for index in np.ndindex(*lead[:wanted]):
            name = rule.name.format(**dict(zip(("layer", "expert"), index)))
            yield Piece(name, rule.paths, rule.pattern, index)


def rearrange(x: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    """`x` by a pattern such as "(N H) D -> D N H": groups on the left are split, axes permuted,
    groups on the right merged.

    ValueError for another shape than the left side's.
    """
    left, right = parse(pattern)
    if x.shape != shape(left, sizes):
        raise ValueError(
            f"got shape {list(x.shape)}, wanted {list(shape(left, sizes))} for "
            f"{pattern.split(' -> ')[0]!r}"
        )
    letters = [letter for group in left for letter in group if letter != "1"]
    order = [letters.index(letter) for group in right for letter in group if letter != "1"]
    return (
        x.reshape([_size(letter, sizes) for letter in letters])
        .transpose(order)
        .reshape(shape(right, sizes))
    )


def inverse(pattern: str) -> str:
    """The pattern that undoes another."""
    left, right = pattern.split(" -> ")
    return f"{right} -> {left}"


def source_shape(pattern: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a pattern's left side asks for."""
    return shape(parse(pattern)[0], sizes)


def shape(groups: Sequence[tuple[str, ...]], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of grouped letters."""
    return tuple(math.prod(_size(letter, sizes) for letter in group) for group in groups)


@lru_cache
def parse(pattern: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Both sides as groups of letters: "(N H) D" is (("N", "H"), ("D",))."""
    sides = []
    for side in pattern.split(" -> "):
        groups = re.findall(r"\(([^)]*)\)|(\S+)", side)
        sides.append(tuple(tuple((grouped or single).split()) for grouped, single in groups))
    return tuple(sides)


def _size(letter: str, sizes: Mapping[str, int]) -> int:
    return int(letter) if letter.isdigit() else sizes[letter]
