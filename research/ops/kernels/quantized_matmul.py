"""Products with a weight stored as codes and scales, without the dense weight in memory: Mosaic on
TPU, Triton on GPU.

The weight is a matrix [I, O] in N groups of G inputs, I = N G. Its codes are [N, R, O]: of 8 bits
with R = G, or packed uint8 with R = G / 2, where byte j of a group holds code j (low nibble) and
code j + R (high nibble). A scale float32 [N, 1, O] stands for each group of an output. A 4-bit code
is an index of a book of 16 values, or two's complement without one. XLA's form of both products,
`reference`, makes the matrix dense first, in the dtype of the activations.

Compiled for an H100, the gradient through four layers of Llama-3-8B (NF4, bfloat16, full remat,
2,048 tokens) needs 0.40 GiB of temporaries with the kernels and 0.61 without, two of its 70B form
0.88 and 1.76. They have not been timed: a GPU widens a tile anew for every 128 tokens, so memory is
what they are sure to give.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from research.devices.backend import platform
from research.ops.kernels.codes import dense
from research.ops.kernels.equation import parse
from research.ops.kernels.notes import warn_once
from research.parallel.placement import mesh_axes, spec_entries


def product(
    eqn: str, x: jax.Array, codes: jax.Array, scale: jax.Array, book: Any = None
) -> jax.Array | None:
    """`eqn` of activations and the weight by the platform's kernel, as "BTD,DNH->BTNH"; None where
    XLA's form serves.

    `codes` [N, R, ...] and `scale` [N, 1, ...] float32 have the weight's output axes behind, and
    are gathered: mesh axes that only store a weight do not split them. The inputs are the last axes
    of `x`, in the weight's order.
    """
    return _product(eqn, x, codes, scale, book, _sizes(eqn, x), transposed=False)


def pullback(
    eqn: str,
    dy: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    inputs: tuple[int, ...],
    book: Any = None,
) -> jax.Array | None:
    """The gradient of `product`'s `x` from that of its result, `dy`; `inputs` are the sizes of the
    weight's input axes. None where XLA's form serves."""
    return _product(eqn, dy, codes, scale, book, inputs, transposed=True)


def reference(
    x_MI: jax.Array, codes_NRO: jax.Array, scale_N1O: jax.Array, book=None, *, transposed=False
) -> jax.Array:
    """XLA's form, with the dense W: x W [M, O], or with `transposed` x W^T [M, I] of x [M, O]."""
    w_IO = dense(codes_NRO, scale_N1O, book, x_MI.dtype)
    return lax.dot_general(x_MI, w_IO, (((1,), (1 if transposed else 0,)), ((), ())))


def spread(
    kernel: Callable, x: jax.Array, codes, scale, inputs: tuple[int, ...], *, transposed: bool
) -> jax.Array:
    """`kernel(x_MI, codes_NRO, scale_N1O, transposed=...)` on each device's part of the mesh.

    Partial sums over the axis that splits the weight's inputs, or its outputs in the pullback, are
    added up.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)  # none inside jax.shard_map
    if not free:
        return _part(kernel, x, codes, scale, inputs, (), transposed)
    split, _, *of_outputs = spec_entries(codes)
    of_inputs = [split, *[None] * (len(inputs) - 1)]
    behind, made = (of_outputs, of_inputs) if transposed else (of_inputs, of_outputs)
    lead = spec_entries(x)[: x.ndim - len(behind)]
    of_x, of_w = PartitionSpec(*lead, *behind), PartitionSpec(*spec_entries(codes))
    part = functools.partial(
        _part, kernel, inputs=inputs, summed=mesh_axes(behind[0]), transposed=transposed
    )
    # The kernel does not say over which mesh axes its results vary, so that check is off.
    mapped = jax.shard_map(
        part,
        in_specs=(of_x, of_w, of_w),
        out_specs=PartitionSpec(*lead, *made),
        axis_names=free,
        check_vma=False,
    )
    return mapped(*map(jax.reshard, (x, codes, scale), (of_x, of_w, of_w)))


def _part(kernel, x, codes, scale, inputs, summed, transposed) -> jax.Array:
    """One device's product, its axes united to the kernel's two before and cut again behind."""
    outputs = codes.shape[2:]
    lead = x.shape[: x.ndim - len(outputs if transposed else inputs)]
    flat_codes, flat_scale = (a.reshape(*a.shape[:2], -1) for a in (codes, scale))
    y = kernel(x.reshape(math.prod(lead), -1), flat_codes, flat_scale, transposed=transposed)
    y = lax.psum(y, summed) if summed else y
    return y.reshape(*lead, *((-1, *inputs[1:]) if transposed else outputs))


def _product(eqn, x, codes, scale, book, inputs, *, transposed):
    kernel = _kernel()
    if kernel is None:
        return None
    N, R, *outputs = _local_shape(codes)
    reason = _misfit(eqn, x, codes, inputs) or kernel.refusal(
        N, R, math.prod(outputs), codes.dtype, x.dtype
    )
    if reason:
        warn_once(
            f"a quantized product on {kernel.PLATFORM} takes XLA's form, which makes the weight "
            f"dense: {reason}"
        )
        return None
    multiply = functools.partial(
        kernel.matmul, book=None if book is None else tuple(map(float, book))
    )
    return spread(multiply, x, codes, scale, inputs, transposed=transposed)


def _sizes(eqn: str, x: jax.Array) -> tuple[int, ...]:
    """Sizes of the weight's input axes."""
    of = parse(eqn)
    return tuple(x.shape[of.x.index(letter)] for letter in of.inputs)


def _misfit(eqn: str, x: jax.Array, codes: jax.Array, inputs: tuple[int, ...]) -> str | None:
    """Why the kernels cannot serve the equation on this mesh; None where they can."""
    of = parse(eqn)
    outputs = of.w.removeprefix(of.inputs)
    lead = of.x.removesuffix(of.inputs)
    known = (of.x, of.y) == (lead + of.inputs, lead + outputs)
    if not known or codes.ndim != 2 + len(outputs):
        return f"{eqn!r} does not sum over the last axes of x and the first of the weight"
    if jax.sharding.get_abstract_mesh().empty:
        return None
    groups, within, *of_outputs = spec_entries(codes)
    if within or any(of_outputs[1:]):
        return (
            f"the mesh splits a group or a head of a weight of {eqn!r}; set config.mesh with fewer "
            "on tensor"
        )
    if inputs[0] % (codes.shape[0] // _local_shape(codes)[0]):
        return f"the mesh splits {codes.shape[0]} groups and not {inputs[0]} inputs of {eqn!r}"
    taken = {name for entry in spec_entries(x)[: len(lead)] for name in mesh_axes(entry)}
    if taken & {name for entry in (groups, *of_outputs) for name in mesh_axes(entry)}:
        return f"the mesh splits tokens and weight of {eqn!r} over the same axis"
    return None


def _local_shape(x: jax.Array) -> list[int]:
    """The shape of a device's part of `x`, also inside `jax.shard_map`, where some axes may be left
    to split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return list(x.shape)
    return [
        size // math.prod(mesh.shape[name] for name in mesh_axes(entry))
        for size, entry in zip(x.shape, spec_entries(x))
    ]


def _kernel() -> ModuleType | None:
    """The module of kernels for the platform of the mesh, None where it has none. Imported here,
    since Pallas takes a second to import."""
    if platform() == "tpu":
        from research.ops.kernels import quantized_matmul_tpu as kernel
    elif platform() == "gpu":
        from research.ops.kernels import quantized_matmul_gpu as kernel
    else:
        return None
    return kernel
