"""Products with a quantized weight that never exists densely in memory: Mosaic on TPU, Triton on
GPU.

The weight is a matrix [I, O] in N groups of G inputs, I = N G. Its codes are [N, R, O]: 8-bit codes
with R = G, or packed 4-bit ones in uint8 with R = G / 2, where byte j of a group has code j in its
low nibble and code j + R in its high one. Scales are float32 [N, 1, O], one for each group of each
output. A 4-bit code is an index into a book of 16 values, or without a book a two's complement
number. `reference` is XLA's form of both products, which first makes the matrix dense in the dtype
of the activations.

On TPU the kernel serves whatever it can. On GPU kernels serve few rows of activations only, as in
decoding, and each those for which it was measured to win (its `FASTEST`): from some hundred rows
on, XLA's dense form is several times as fast on an H100. It takes the memory of one dense matrix at
a time.
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
    """`eqn`, such as "BTD,DNH->BTNH", of activations and a weight by the platform's kernel; None if
    there is none for the case or it is the slower one, and the caller is to use XLA's form.

    `codes` [N, R, ...] and `scale` float32 [N, 1, ...] end in the weight's output axes. They are
    gathered over mesh axes that only split a weight's storage. The last axes of `x` are the
    weight's inputs, in its order.
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
    """The gradient by the `x` of `product` from that by its result, `dy`; None as for `product`.
    `inputs` are the sizes of the weight's input axes."""
    return _product(eqn, dy, codes, scale, book, inputs, transposed=True)


def reference(
    x_MI: jax.Array, codes_NRO: jax.Array, scale_N1O: jax.Array, book=None, *, transposed=False
) -> jax.Array:
    """XLA's form, with the dense W: x W [M, O] for x [M, I], or with `transposed` x W^T [M, I] for
    x [M, O]."""
    # This is what the kernels avoid: the matrix exists in memory as floats.
    w_IO = dense(codes_NRO, scale_N1O, book, x_MI.dtype)
    return lax.dot_general(x_MI, w_IO, (((1,), (1 if transposed else 0,)), ((), ())))


def spread(
    kernel: Callable, x: jax.Array, codes, scale, inputs: tuple[int, ...], *, transposed: bool
) -> jax.Array:
    """`kernel(x_MI, codes_NRO, scale_N1O)` run by each device on its shards; with `transposed` it
    is the product of the pullback.

    If the mesh splits the axes that are contracted (the weight's inputs, in the pullback its
    outputs), the devices' partial sums are added.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)  # none inside jax.shard_map
    if not free:
        return _part(kernel, x, codes, scale, inputs, (), transposed)
    split, _, *of_outputs = spec_entries(codes)
    of_inputs = [split, *[None] * (len(inputs) - 1)]
    # Axes of x that are summed away, and axes of the result in their place.
    contracted, of_result = (of_outputs, of_inputs) if transposed else (of_inputs, of_outputs)
    lead = spec_entries(x)[: x.ndim - len(contracted)]
    of_x, of_w = PartitionSpec(*lead, *contracted), PartitionSpec(*spec_entries(codes))
    part = functools.partial(
        _part, kernel, inputs=inputs, summed=mesh_axes(contracted[0]), transposed=transposed
    )
    # The kernel does not say over which mesh axes its results vary, so that check is off.
    mapped = jax.shard_map(
        part,
        in_specs=(of_x, of_w, of_w),
        out_specs=PartitionSpec(*lead, *of_result),
        axis_names=free,
        check_vma=False,
    )
    return mapped(*map(jax.reshard, (x, codes, scale), (of_x, of_w, of_w)))


def _part(kernel, x, codes, scale, inputs, summed, transposed) -> jax.Array:
    """One device's product: axes are merged into the two of the kernel's matrices, and split again
    in the result."""
    outputs = codes.shape[2:]
    lead = x.shape[: x.ndim - len(outputs if transposed else inputs)]
    flat_codes, flat_scale = (a.reshape(*a.shape[:2], -1) for a in (codes, scale))
    y = kernel(x.reshape(math.prod(lead), -1), flat_codes, flat_scale)
    # Partial sums of each device's inputs, added in the activations' type.
    y = lax.psum(y, summed) if summed else y
    return y.reshape(*lead, *((-1, *inputs[1:]) if transposed else outputs))


def _product(eqn, x, codes, scale, book, inputs, *, transposed):
    # What a kernel gets is a device's part, and tiles must fit that.
    N, R, *outputs = _local_shape(codes)
    summed = len(outputs if transposed else inputs)
    rows = math.prod(_local_shape(x)[: x.ndim - summed])
    for kernel in _kernels():
        # Slower is no misfit: that case is silent, below it a warning says what to set.
        if not kernel.faster(rows, codes.dtype, book is not None, transposed):
            continue
        reason = _misfit(eqn, x, codes, inputs) or kernel.refusal(
            N, R, math.prod(outputs), codes.dtype, x.dtype
        )
        if reason is None:
            # A tuple of floats can be a static argument; an array cannot.
            named = {"book": None if book is None else tuple(map(float, book))}
            named |= {"transposed": True} if transposed else {}
            multiply = functools.partial(kernel.matmul, **named)
            return spread(multiply, x, codes, scale, inputs, transposed=transposed)
        warn_once(
            f"a quantized product on {kernel.PLATFORM} takes what is slower, mostly XLA's form, "
            f"which makes the weight dense: {reason}"
        )
    return None


def _sizes(eqn: str, x: jax.Array) -> tuple[int, ...]:
    """Sizes of the weight's input axes."""
    of = parse(eqn)
    return tuple(x.shape[of.x.index(letter)] for letter in of.inputs)


def _misfit(eqn: str, x: jax.Array, codes: jax.Array, inputs: tuple[int, ...]) -> str | None:
    """Why the kernels cannot serve the equation on this mesh; None where they can."""
    of = parse(eqn)
    outputs = of.w.removeprefix(of.inputs)
    lead = of.x.removesuffix(of.inputs)
    # The kernels multiply plain matrices, so what is contracted must lie side by side.
    plain = (of.x, of.y) == (lead + of.inputs, lead + outputs)
    if not plain or codes.ndim != 2 + len(outputs):
        return f"{eqn!r} does not sum over the last axes of x and the first of the weight"
    if jax.sharding.get_abstract_mesh().empty:
        return None
    groups, within, *of_outputs = spec_entries(codes)
    if within or any(of_outputs[1:]):
        return (
            f"the mesh splits a group or a head of a weight of {eqn!r}; set config.mesh with fewer "
            "on tensor"
        )
    # Groups split evenly over devices must be whole inputs of the first axis too.
    if inputs[0] % (codes.shape[0] // _local_shape(codes)[0]):
        return f"the mesh splits {codes.shape[0]} groups and not {inputs[0]} inputs of {eqn!r}"
    token_axes = {name for entry in spec_entries(x)[: len(lead)] for name in mesh_axes(entry)}
    if token_axes & {name for entry in (groups, *of_outputs) for name in mesh_axes(entry)}:
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


def _kernels() -> tuple[ModuleType, ...]:
    """The modules of kernels for the platform of the mesh in the order in which they are tried.
    Imported here, since Pallas takes a second to import."""
    if platform() == "tpu":
        from research.ops.kernels import quantized_matmul_tpu

        return (quantized_matmul_tpu,)
    if platform() == "gpu":
        from research.ops.kernels import quantized_matmul_gpu, quantized_matvec_gpu

        return quantized_matvec_gpu, quantized_matmul_gpu
    return ()
