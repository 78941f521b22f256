"""The laws of `research.weights.leaf.Leaf`, for every leaf of the package."""

import ast
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.compress.observe import Observed
from research.infer.decode_layout import DecodeWeight
from research.ops.einsum import einsum, take
from research.ops.grouped import grouped
from research.tuning.adapter_bank import AdapterBank, bank
from research.weights.dynamic import DynamicQuantized
from research.weights.flat import FlatQuantized
from research.weights.ia3 import Ia3, Ia3Adapter
from research.weights.leaf import Leaf
from research.weights.llm_int8 import LlmInt8
from research.weights.lora import Lora, LoraAdapter
from research.weights.quantized import Quantized, quantize_array
from research.weights.rounded_inputs import RoundedInputs
from research.weights.sparse import Sparse
from research.weights.straight_through import Rounded, Rounding
from research.weights.wrapper import Wrapper, dense

RESEARCH = Path(__file__).parent.parent.parent / "research"
D, O, V, E = 32, 16, 24, 3


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(sum(shape) + seed), shape)


def lora(w, table=False, dora=False):
    """A `Lora` over an array or leaf [D, O], [V, D] or [E, D, O]."""
    inner, outer = (w.shape[1], w.shape[0]) if table else w.shape[-2:]
    stack = w.shape[:-2]
    magnitude = 1 + jnp.abs(random(outer)) if dora else None
    a, b = random(*stack, inner, 2), random(*stack, 2, outer)
    return Lora(w, LoraAdapter(a, b, jnp.full(stack, 0.5), magnitude, table))


def flat(rows, columns, table=False):
    """A table [rows, columns], or a weight [columns, rows], in blocks of 10 values from number 3
    on, which divide neither axis."""
    blocks = -(-(3 + rows * columns) // 10)
    codes = jax.random.randint(jax.random.key(0), (blocks, 5), 0, 256).astype(jnp.uint8)
    scale = 0.5 + jnp.abs(random(blocks, 1))
    return FlatQuantized(codes, scale, None, "nf4", (columns,), 0 if table else 1, (rows,), 3)


def with_zeros(*shape):
    return jnp.where(random(*shape, seed=1) > 0, random(*shape), 0)


def ia3(w, *axes, on_inputs=False):
    """Factors along some axes of a weight, 1 along the others."""
    shape = [size if at in axes else 1 for at, size in enumerate(w.shape)]
    return Ia3(w, Ia3Adapter(1 + 0.1 * random(*shape), on_inputs))


def bank_on(w, table=False, dora=False):
    """Two adapters on a weight or table. Row 0 of a batch has the second, row 1 the first, which
    is DoRA's, or none."""
    first, second = lora(w, table, dora).adapter, lora(w, table).adapter
    second = replace(second, a=second.a[..., :1], b=2 * second.b[:1])  # of another rank
    return bank({"w": w}, [{"w": first}, {"w": second}], jnp.asarray([1, 0 if dora else -1]))["w"]


def weights(leaf):
    """The dense weight of each of two rows of a batch: in a bank they differ."""
    if not isinstance(leaf, AdapterBank):
        return [leaf.dense()] * 2
    found = []
    for index in leaf.index_B.tolist():
        w = dense(leaf.base)
        if index >= 0:
            update = leaf.scale[index] * leaf.a[index] @ leaf.b[index]
            w = w + (update.T if leaf.table else update)
            w = w if leaf.gain is None else w * leaf.gain[index][None]
        found.append(w)
    return found


# By class: a weight [D, O], a table [V, D] and experts [E, D, O]; None for what the leaf refuses.
LEAVES: dict[Any, tuple] = {
    Quantized: (
        quantize_array(random(D, O), "nf4", inputs=1, group=16),
        quantize_array(random(V, D), "nf4", inputs=-1, group=16),
        quantize_array(random(E, D, O), "uint4", inputs=1, stacked=1, group=16),
    ),
    FlatQuantized: (flat(O, D), flat(V, D, table=True), None),
    DynamicQuantized: (
        DynamicQuantized(quantize_array(random(D, O), "int8", inputs=1)),
        DynamicQuantized(quantize_array(random(V, D), "int8", inputs=-1)),
        DynamicQuantized(quantize_array(random(E, D, O), "int8", inputs=1, stacked=1)),
    ),
    LlmInt8: (
        LlmInt8(quantize_array(random(D, O), "int8", inputs=1)),
        LlmInt8(quantize_array(random(V, D), "int8", inputs=-1)),
        LlmInt8(quantize_array(random(E, D, O), "int8", inputs=1, stacked=1)),
    ),
    RoundedInputs: (
        RoundedInputs(quantize_array(random(D, O), "fp8_e4m3", inputs=1)),
        RoundedInputs(quantize_array(random(V, D), "fp8_e4m3", inputs=-1)),
        RoundedInputs(quantize_array(random(E, D, O), "fp8_e4m3", inputs=1, stacked=1)),
    ),
    Rounded: (
        Rounded(random(D, O), Rounding("int8", 1, 2)),
        Rounded(random(V, D), Rounding("int8", -1, 2)),
        Rounded(random(E, D, O), Rounding("int8", 1, 2)),
    ),
    Lora: (
        lora(quantize_array(random(D, O), "int8", inputs=1), dora=True),
        lora(random(V, D), table=True),
        lora(random(E, D, O)),
    ),
    Ia3: (ia3(random(D, O), 0, on_inputs=True), ia3(random(V, D), 0), ia3(random(E, D, O), 0, 2)),
    # A bank is a weight for each row of a batch, see `weights`.
    AdapterBank: (
        bank_on(quantize_array(random(D, O), "int8", inputs=1), dora=True),
        bank_on(random(V, D), table=True),
        None,
    ),
    Sparse: (
        Sparse(lora(with_zeros(D, O))),
        Sparse(lora(with_zeros(V, D), table=True)),
        Sparse(lora(quantize_array(with_zeros(E, D, O), "int8", inputs=1, stacked=1))),
    ),
    Observed: (Observed(random(D, O)), Observed(random(V, D)), None),
    DecodeWeight: (
        DecodeWeight(random(D, O).T, (D, O), (0,)),
        DecodeWeight(random(V, D), (V, D), (1,)),
        None,
    ),
}
# Leaves that quantize activations: half a step of 127 or of 3 bits in each of D terms, of which the
# root of their number does not cancel, relative to the largest result.
ROUNDED = {DynamicQuantized: 0.02, LlmInt8: 0.02, RoundedInputs: 0.06}


def cases(form):
    """(leaf) of one form, 0 a weight, 1 a table, 2 experts."""
    found = [leaves[form] for leaves in LEAVES.values() if leaves[form] is not None]
    return pytest.mark.parametrize("leaf", found, ids=lambda leaf: type(leaf).__name__)


def close(got, want, bound=1e-5):
    """Equal up to `bound` of the largest value: by default float32 sums in another order."""
    np.testing.assert_allclose(got, want, atol=bound * float(jnp.abs(want).max()))


def test_no_leaf_of_the_package_is_missing_here():
    """A class that contracts itself inherits from `Leaf`, and stands in `LEAVES`."""
    known = {leaf.__name__ for leaf in LEAVES}
    for path in RESEARCH.rglob("*.py"):
        module = ".".join(path.relative_to(RESEARCH.parent).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name == "Leaf":
                continue
            if "einsum" in {n.name for n in node.body if isinstance(n, ast.FunctionDef)}:
                assert node.name in known, f"{path}: {node.name} is not in LEAVES"
                assert Leaf in getattr(importlib.import_module(module), node.name).__mro__
    below, todo = set(), [Leaf]
    while todo:
        below |= set(found := todo.pop().__subclasses__())
        todo += found
    assert {leaf for leaf in below if leaf.__module__.startswith("research.")} == {*LEAVES, Wrapper}


@cases(0)
def test_a_leaf_has_the_shape_of_its_dense_form_and_its_product(leaf):
    rows, x = weights(leaf), random(2, 3, D)
    shapes = {(w.shape, w.ndim, w.size) for w in rows}
    assert shapes == {(leaf.shape, leaf.ndim, leaf.size)} == {((D, O), 2, D * O)}
    assert leaf.nbits() > 0
    got = einsum("BTD,DF->BTF", x, leaf)
    assert got.dtype == x.dtype
    close(got, jnp.stack([row @ w for row, w in zip(x, rows)]), ROUNDED.get(type(leaf), 1e-5))
    close(einsum("BTD,DF->BTF", x, leaf.gathered()), got)


@cases(1)
def test_rows_of_a_table_are_those_of_its_dense_form(leaf):
    rows, ids = weights(leaf), jnp.asarray([[3, 7, 7], [0, V - 1, 5]])
    taken = jnp.stack([w[own] for w, own in zip(rows, ids)])
    close(take(leaf, ids, jnp.float32), taken)
    products = jnp.stack([x @ w.T for x, w in zip(taken, rows)])
    close(einsum("BTD,VD->BTV", taken, leaf), products, ROUNDED.get(type(leaf), 1e-5))
    gathered, w = leaf.gathered(), rows[0]
    if not isinstance(gathered, jax.Array | AdapterBank):
        for first in (0, 5, V - 8):
            rows = jax.jit(lambda first: gathered.rows(first, 8, jnp.float32))(first)  # noqa: B023
            close(rows, w[first : first + 8])


@cases(0)
def test_the_dense_form_is_an_array_of_the_wanted_type(leaf):
    if isinstance(leaf, AdapterBank):  # as many weights as it has adapters
        with pytest.raises(ValueError, match="no one weight"):
            leaf.dense()
    else:
        assert leaf.dense(jnp.bfloat16).dtype == jnp.bfloat16


def test_layers_of_a_bank_are_a_stack_of_banks():
    leaf = bank_on(random(D, O))
    stack, x = jax.tree.map(lambda part: jnp.stack([part, part]), leaf), random(2, 3, D)
    one = jax.tree.map(lambda part: part[1], stack)
    close(einsum("BTD,DF->BTF", x, one), einsum("BTD,DF->BTF", x, leaf))
    assert stack.shape == (2, D, O)


@cases(2)
def test_experts_products_are_those_of_their_dense_form(leaf):
    w, x, sizes = leaf.dense(), random(9, D), jnp.asarray([4, 0, 5])
    assert leaf.shape == w.shape == (E, D, O)
    close(grouped(x, leaf, sizes), grouped(x, w, sizes))


@cases(2)
def test_a_leaf_with_a_leading_axis_is_a_stack_of_leaves(leaf):
    w, x = leaf.dense(), random(2, D)
    for index in range(E):
        one = jax.tree.map(lambda part: part[index], leaf)  # noqa: B023
        assert one.shape == (D, O)
        close(one.dense(), w[index])
        close(einsum("TD,DF->TF", x, one), x @ w[index], ROUNDED.get(type(leaf), 1e-5))


def test_only_leaves_that_are_not_trained_and_multiply_as_they_are_say_frozen():
    assert {leaf for leaf in LEAVES if leaf.frozen} == {Quantized, FlatQuantized}


def test_a_leaf_that_lacks_a_method_is_refused_when_it_is_made():
    class Half(Leaf):
        def einsum(self, eqn, x):
            return x

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]  # which is what mypy says of it
