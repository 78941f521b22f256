import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.interop.gguf import bert
from research.interop.gguf import model as gguf_model
from research.interop.huggingface.families.table import FAMILIES as HF
from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.layout import (
    BAR,
    inverse,
    letter_sizes,
    pieces,
    rearrange,
    source_shape,
)
from tests.families import FAMILIES

SIZES = {"N": 2, "K": 3, "H": 4, "D": 5, "p": 2, "h": 2}


@st.composite
def patterns(draw):
    """A pattern over some of the letters, with groups on both sides."""
    letters = draw(st.permutations(sorted(SIZES)).map(lambda order: order[:4]))
    sides = [draw(st.permutations(letters)), draw(st.permutations(letters))]
    cuts = [draw(st.integers(1, 3)) for _ in sides]
    return " -> ".join(
        f"({' '.join(side[:cut])}) {' '.join(side[cut:])}" for side, cut in zip(sides, cuts)
    )


@given(patterns())
def test_the_inverse_of_a_pattern_undoes_it(pattern):
    shape = source_shape(pattern, SIZES)
    x = np.arange(math.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(
        rearrange(rearrange(x, pattern, SIZES), inverse(pattern), SIZES), x
    )


def test_patterns_mean_what_numpy_writes_with_reshape_and_transpose():
    x = np.random.default_rng(0).normal(size=(8, 5))
    np.testing.assert_array_equal(
        rearrange(x, "(N H) D -> D N H", SIZES), x.reshape(2, 4, 5).transpose(2, 0, 1)
    )
    # llama.cpp's order of the rows of a head, pair by pair, to ours, half by half.
    mixed = x.reshape(2, 2, 2, 5).swapaxes(1, 2).reshape(2, 4, 5).transpose(2, 0, 1)
    np.testing.assert_array_equal(rearrange(x, "(N h p) D -> D N (p h)", SIZES), mixed)
    np.testing.assert_array_equal(rearrange(x[:1], "1 D -> D", SIZES), x[0])


def test_parts_of_one_head_lie_within_it():
    sizes = {"N": 2, "u": 3, "v": 1, "c": 2}
    pattern = "(N u) c -> c N u | (N v) c -> c N v"
    x = np.random.default_rng(0).normal(size=(8, 2))
    keys, values = rearrange(x, pattern, sizes)
    heads = x.reshape(2, 4, 2).transpose(2, 0, 1)
    np.testing.assert_array_equal(keys, heads[..., :3])
    np.testing.assert_array_equal(values, heads[..., 3:])
    np.testing.assert_array_equal(rearrange([keys, values], inverse(pattern), sizes), x)


def test_rotary_pairs_behind_a_head_become_halves_in_front_of_it():
    sizes = {"N": 2, "H": 6, "r": 4, "D": 3}
    x = np.random.default_rng(0).normal(size=(12, 3))
    turned = rearrange(x, "(N H~) D -> D N H", sizes)
    heads = x.reshape(2, 6, 3).transpose(2, 0, 1)
    np.testing.assert_array_equal(turned, heads[..., [2, 4, 3, 5, 0, 1]])
    np.testing.assert_array_equal(rearrange(turned, inverse("(N H~) D -> D N H"), sizes), x)


def test_a_wrong_shape_is_named_with_the_one_wanted():
    with pytest.raises(ValueError, match=r"got shape \[8, 6\], wanted \[8, 5\]"):
        rearrange(np.zeros((8, 6)), "(N H) D -> D N H", SIZES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rules_of_a_family_name_every_parameter_once(name):
    c = FAMILIES[name]
    tables = [(c, family.rules(c)) for family in HF.values() if family.serves(c)]
    rows = [row for row in gguf_model.ARCHITECTURES.values() if row.name_of(c) is not None]
    # Such a file holds the body of an encoder alone.
    held = bert.bare(c) if c.kind == "encoder" else c
    tables += [(held, row.rules(held, row.name_of(held))) for row in rows[:1]]
    assert tables
    for of, rules in tables:
        specs, sizes = specs_by_path(of), letter_sizes(of)
        if c.position == "sinusoidal":  # Marian's layers have biases that the paper's do not
            continue
        elements = dict.fromkeys(specs, 0)
        for piece in pieces(
            rules, {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
        ):
            # One pattern for each path where a tensor holds weights of different sizes.
            patterns = piece.pattern.split(BAR)
            for number, path in enumerate(piece.paths):
                part = patterns[number % len(patterns)]
                size = math.prod(source_shape(part, sizes))
                elements[path] += size if len(patterns) > 1 else size // len(piece.paths)
        wanted = {path: math.prod(spec.shape) for path, spec in specs.items()}
        for rule in rules:  # a norm that ModernBERT's first layer does not have
            wanted[rule.paths[0]] -= rule.first * math.prod(specs[rule.paths[0]].shape[1:])
        assert elements == wanted
