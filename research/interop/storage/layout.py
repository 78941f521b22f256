"""Where a foreign tensor lies in our parameters, as one line that works in both directions.

A rule names a tensor, the parameter it belongs to, and the pattern that converts between them:

    Rule("model.layers.{layer}.self_attn.q_proj.weight", "layers/attention/query",
         "(N H) D -> D N H")

Our parameters are stacked, [L, ...] over layers and [L, E, ...] over experts; `{layer}` and
`{expert}` in a name select the slice. A tensor that holds several parameters side by side names
them all, and the pattern's result then begins with an axis over them. Where these differ in size,
the pattern is one for each, joined by bars: "(N H) D -> D N H | (K H) D -> D K H | ..." is a tensor
whose rows are those of queries, then those of keys, and so on. Where all begin with one letter they
lie side by side within it: "(N u) c -> c N u | (N v) c -> c N v" has both parts of a head, then
those of the next.

Letters are those of the whole repository, and for tables P learned positions, Y token types, U
buckets of distance, C classes, M the output width of a square layer, f the width of a shared expert
and d that of first layers without experts; p is the two halves of a rotary pair and h its H/2; q,
c, r, u and v are those of latent attention, small (`research.models.latent`); m bands of sound;
digits are sizes.
Those of an encoder of images begin with i: id its width, in and ih its heads and their size, if its
feed-forward, ip and iq a side of a patch, it its positions, ie what the projector reads. A letter
with "~" has its last r elements as rotary pairs side by side, where ours begins with them,
half by half.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from research.models.config import ModelConfig
from research.models.embedding import BUCKETS
from research.models.image_config import ImageConfig

BAR = " | "


@dataclass(frozen=True)
class Rule:
    """A tensor (one for each layer and expert if its name says so), the parameter or parameters
    that it holds, and the pattern from the tensor to them. Layers before the `first` have no such
    tensor, and their part of the parameter changes nothing. Layer i of the parameter is layer
    `offset` + i of the name."""

    name: str
    path: str | tuple[str, ...]
    pattern: str
    first: int = 0
    offset: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        """The parameters that the tensor holds."""
        return (self.path,) if isinstance(self.path, str) else self.path


def norm_rules(name: str, path: str, bias: bool = True, first: int = 0) -> list[Rule]:
    """The tensors of a layer norm, `name`.weight and with a `bias` `name`.bias, both [D], as the
    parameters `path`/scale and `path`/bias. `first` as of `Rule`."""
    scale = Rule(f"{name}.weight", f"{path}/scale", "D -> D", first)
    return [scale, Rule(f"{name}.bias", f"{path}/bias", "D -> D", first)] if bias else [scale]


@dataclass(frozen=True)
class Piece:
    """One tensor of a rule: it holds slices `[index]` of the parameters `paths`, by `pattern`."""

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
        "f": c.shared_d_ff,
        "P": c.position_offset + c.max_length,
        "Y": c.token_types,
        "U": BUCKETS,
        "C": c.labels,
        "p": 2,
        "h": c.head_size // 2,
        "d": c.dense_d_ff,
        "q": c.query_latent,
        "c": c.kv_latent,
        "r": c.rotary_size,
        "u": c.head_size - c.rotary_size,
        "v": c.value_size or c.head_size,
        "m": c.mels,
        **(_image_sizes(c.image) if c.image.layers else {}),
    }


def _image_sizes(c: ImageConfig) -> dict[str, int]:
    return {
        "id": c.d_model,
        "in": c.heads,
        "ih": c.d_model // c.heads,
        "if": c.d_ff,
        "ip": c.patch,
        "iq": c.patch,
        "it": c.grid**2 + c.features.class_token,
        "ie": c.d_model * (c.merge**2 if c.projector == "shuffle" else 1),
    }


def pieces(rules: Sequence[Rule], stacks: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every tensor that the rules describe. `stacks` has the sizes of the stacked axes of each
    path, () for unstacked ones."""
    for rule in rules:
        lead = stacks[rule.paths[0]]
        # A rule that names no {expert} has a tensor for all experts of a layer.
        wanted = len(re.findall(r"\{(?:layer|expert)\}", rule.name))
        # One tensor for each layer and expert that the name mentions; () once for an unstacked
        # rule.
        for index in np.ndindex(*lead[:wanted]):
            if index and index[0] < rule.first:
                continue
            layer = (index[0] + rule.offset, *index[1:]) if index else ()
            name = rule.name.format(**dict(zip(("layer", "expert"), layer)))
            yield Piece(name, rule.paths, rule.pattern, index)


def rearrange(x: Any, pattern: str, sizes: Mapping[str, int]) -> Any:
    """`x` rearranged by a pattern such as "(N H) D -> D N H": groups on the left are split, axes
    permuted, groups on the right merged. By patterns joined with bars an array gives a list, one
    for each, and a list of arrays gives one array. ValueError for a shape other than the left
    side's."""
    if BAR in pattern:
        return _rearrange_parts(x, pattern.split(BAR), sizes)
    left, right = parse(pattern)
    if x.shape != shape(left, sizes):
        raise ValueError(
            f"got shape {list(x.shape)}, wanted {list(shape(left, sizes))} for "
            f"{pattern.split(' -> ')[0]!r}"
        )
    # "1" is an axis without a letter: it is dropped on the left and added on the right by reshape.
    letters = [letter for group in left for letter in group if letter != "1"]
    wanted = [letter for group in right for letter in group if letter != "1"]
    x = x.reshape([_size(letter, sizes) for letter in letters])
    # By their plain letters, of which one side may have the other order.
    plain, ours = ([letter.rstrip("~") for letter in side] for side in (letters, wanted))
    for axis, letter in enumerate(letters):
        there = wanted[ours.index(plain[axis])]
        if letter != there:
            turned = _pairs_to_halves(x.shape[axis], sizes["r"])
            x = x.take(turned if letter.endswith("~") else np.argsort(turned), axis)
    return x.transpose([plain.index(letter) for letter in ours]).reshape(shape(right, sizes))


def _pairs_to_halves(size: int, rotated: int) -> np.ndarray:
    """Where in a head of `size` elements, whose last `rotated` are pairs side by side, each element
    of the same head in our order is: first those, half by half, then the others."""
    pairs = np.arange(size - rotated, size).reshape(-1, 2)
    return np.concatenate([pairs.T.reshape(-1), np.arange(size - rotated)])


def _rearrange_parts(x: Any, patterns: Sequence[str], sizes: Mapping[str, int]) -> Any:
    """`rearrange` by several patterns: of a list one array, whose rows are those of the parts one
    after the other, or of one letter's number of them, and of an array the list."""
    if not isinstance(x, np.ndarray):
        parts = [rearrange(one, pattern, sizes) for one, pattern in zip(x, patterns)]
        outer = shared([one.split(" -> ")[1] for one in patterns], sizes)
        within = [part.reshape(outer, -1, *part.shape[1:]) for part in parts]
        return np.concatenate(within, axis=1).reshape(-1, *parts[0].shape[1:])
    if x.shape != source_shape(BAR.join(patterns), sizes):
        wanted = list(source_shape(BAR.join(patterns), sizes))
        raise ValueError(f"got shape {list(x.shape)}, wanted {wanted} for {BAR.join(patterns)!r}")
    outer = shared([one.split(" -> ")[0] for one in patterns], sizes)
    shapes = [source_shape(pattern, sizes) for pattern in patterns]
    ends = np.cumsum([one[0] // outer for one in shapes])[:-1]
    parts = np.split(x.reshape(outer, -1, *x.shape[1:]), ends, axis=1)
    return [
        rearrange(part.reshape(one), pattern, sizes)
        for part, one, pattern in zip(parts, shapes, patterns)
    ]


def shared(sides: Sequence[str], sizes: Mapping[str, int]) -> int:
    """The size of the letter that the rows of all these sides of patterns begin with, else 1."""
    groups = [re.match(r"\(([^)]*)\)|(\S+)", side) for side in sides]
    firsts = [(group[1] or group[2]).split() for group in groups if group]
    alike = len({letters[0] for letters in firsts}) == 1 and min(map(len, firsts)) > 1
    return _size(firsts[0][0], sizes) if alike else 1


def fused(values: Sequence[np.ndarray], pattern: str) -> Any:
    """The parameters of one tensor as `rearrange` takes them with the inverse of its pattern: one
    array with an axis over them, or a list where they differ in size."""
    if BAR in pattern:
        return list(values)
    return np.stack(values) if len(values) > 1 else values[0]


def inverse(pattern: str) -> str:
    """The pattern in the other direction: "A B -> (B A)" becomes "(B A) -> A B"."""
    turned = (reversed(one.split(" -> ")) for one in pattern.split(BAR))
    return BAR.join(" -> ".join(sides) for sides in turned)


def source_shape(pattern: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a pattern's left side."""
    first, *others = (shape(parse(one)[0], sizes) for one in pattern.split(BAR))
    # A tensor of one part may be a number, without any axis.
    return (first[0] + sum(other[0] for other in others), *first[1:]) if others else first


def shape(groups: Sequence[tuple[str, ...]], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of groups of letters: each axis is the product of its letters' sizes."""
    return tuple(math.prod(_size(letter, sizes) for letter in group) for group in groups)


@lru_cache
def parse(pattern: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Both sides as groups of letters: "(N H) D" is (("N", "H"), ("D",))."""
    sides = []
    # Parsed once for each pattern: a model has thousands of tensors and a few dozen patterns.
    for side in pattern.split(" -> "):
        groups = re.findall(r"\(([^)]*)\)|(\S+)", side)
        sides.append(tuple(tuple((grouped or single).split()) for grouped, single in groups))
    return tuple(sides)


def _size(letter: str, sizes: Mapping[str, int]) -> int:
    return int(letter) if letter.isdigit() else sizes[letter.rstrip("~")]
