"""FLOPs of a train step: what its program executes, counted on the jaxpr, against what its model
needs.

Products count, a multiplication and an addition as two; elementwise operations, which no matrix
unit runs, do not.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import AxisType

from research.fit.compile import abstract_batch
from research.ops.kernels import visible_share as share
from research.parallel.placement import mesh_axes
from research.run.program import Program
from research.training.flops import Texts, forward_flops, model_flops

# JAX's attention kernels by the beginning of their names: how many products they make of a block of
# queries and keys. The scores are made anew in each, and where gradients of queries and of keys are
# made apart so is the probabilities' gradient.
_ATTENTION = {
    "splash_mha_fwd": 2,
    "splash_mha_dkv": 4,
    "splash_mha_dq": 3,
    "mha_forward": 2,
    "mha_backward": 7,
}
# The same of tokamax's kernels, by how many arrays they return: the output with two residuals, the
# queries' gradient, the gradients of keys and values.
_MOSAIC = {3: ("forward", 2), 1: ("backward", 3), 2: ("backward", 4)}


def executed(closed_jaxpr: Any, devices: int) -> dict[str, float]:
    """FLOPs of one call over all devices, by the name of the operands' type.

    A loop counts its body by its trips, a conditional its dearest branch, and results that nobody
    uses nothing. Work that several devices repeat counts for each of them: under `jax.shard_map`,
    and where explicit shardings leave out axes of the mesh.

    Duplicate products count twice. XLA may merge them where layers are unrolled under full
    rematerialisation; this count then overestimates.

    ValueError for products in a loop whose end is not known, also inside a kernel that tells no
    cost.
    """
    # XLA drops what nobody uses, and so does this: a gradient that is not asked for is not counted.
    jaxpr, _ = dce_jaxpr(closed_jaxpr.jaxpr, True)
    return dict(_count(jaxpr, "", devices))


def forward(program: Program) -> float:
    """The causal forward of a step over all its rows, head and adapters included: see
    `training.flops.forward_flops`."""
    return forward_flops(program.experiment.model, program.trainable_specs, _texts(program))


def model(program: Program) -> float:
    """What a step has to compute: see `training.flops.model_flops`."""
    return model_flops(program.experiment.model, program.trainable_specs, _texts(program))


def recompute_ratio(program: Program, flops: Mapping[str, float]) -> float:
    """Executed FLOPs by type over three times the causal forward, whatever is trained.

    1 where everything is trained and nothing is done twice or in vain; two thirds where all but
    little is frozen.
    """
    return sum(flops.values()) / (3 * forward(program))


def _texts(program: Program) -> Texts:
    """What a step reads, from the shapes of its batch."""
    batch, objective = abstract_batch(program), program.objective
    rows, length = batch["inputs"].shape
    encoder = batch["encoder_inputs"].shape[1] if "encoder_inputs" in batch else 0
    predicted = objective.predicted_tokens(program.experiment.data.sequence_length)
    tune = program.experiment.tune
    virtual = tune.virtual_tokens if tune.method in ("prompt", "prefix") else 0
    return Texts(rows, length, encoder, predicted, pooled=objective.classifies, virtual=virtual)


def _count(jaxpr: Any, scopes: str, devices: int) -> Counter:
    """FLOPs by type of a jaxpr, inside the scopes that it is called in."""
    total: Counter = Counter()
    for eqn in jaxpr.eqns:
        total.update(_equation(eqn, f"{scopes}/{eqn.source_info.name_stack}", devices))
    return total


def _equation(eqn: Any, scopes: str, devices: int) -> Counter:
    """FLOPs by type of an equation, and of the jaxprs that it calls."""
    name = eqn.primitive.name
    if name in _PRODUCTS:
        flops = _PRODUCTS[name](eqn, scopes) * _copies(eqn, devices)
        return Counter({_widest(eqn.invars[:2]): flops})
    if name == "pallas_call":
        return _kernel(eqn, scopes, devices)
    if name == "mpmd_map" and share.shares(scopes):
        grouped = "grouped" in share.shares(scopes)
        return (_mosaic_grouped if grouped else _mosaic_attention)(eqn, scopes, devices)
    counts = [_count(body, scopes, devices) for body in _bodies(eqn)]
    # An upper bound: which branch runs depends on the data.
    if name == "cond":
        return max(counts, key=Counter.total)
    # A loop without products, such as a search for a threshold, costs nothing here however long it
    # is.
    if name == "while" and any(counts):
        raise ValueError(
            f"a while loop at {scopes!r} has products and its iterations are only known when it "
            "runs; make it a lax.scan or a lax.fori_loop between plain numbers, or give the kernel "
            "that has it a cost_estimate"
        )
    # Calls, rematerialised blocks and custom derivatives run their body once.
    return _times(sum(counts, Counter()), eqn.params["length"] if name == "scan" else 1)


def _kernel(eqn: Any, scopes: str, devices: int) -> Counter:
    """FLOPs by type of a Pallas kernel: the cost that it tells; of JAX's attention kernels the
    pairs of queries and keys that their masks leave; else its body for each step of its grid."""
    name, shares, cost = eqn.params["name"] or "", share.shares(scopes), eqn.params["cost_estimate"]
    floats = [v for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    # The rest of a name says more of the case, such as whether rows have segments.
    attention = next((kernel for kernel in _ATTENTION if name.startswith(kernel)), None)
    # A grid with dynamic bounds does not say how often the body runs; its cost estimate must.
    mapping = eqn.params["grid_mapping"]
    if cost is not None:
        # A kernel for rows in groups tells the cost of all rows, and ends its grid with the last
        # group.
        rows = shares.get("ragged", 1.0) * shares.get("one_of", 1.0)
        rows = rows if mapping.num_dynamic_grid_bounds else 1.0
        return Counter({_widest(floats[:1]): cost.flops * rows * _copies(eqn, devices)})
    if attention is not None and shares:
        # One kernel that makes all three gradients shares the scores and the probabilities'
        # gradient.
        fused = attention == "splash_mha_dkv" and "dq" not in shares
        q, k = (v.aval.shape for v in floats[:2])
        # Triton's tiles have powers of two; splash has heads before time, [..., K, S, H], and flash
        # behind it.
        if attention.startswith("splash"):
            head, keys = q[-1], k[-2]
        else:
            head, keys = 1 << (q[-1] - 1).bit_length(), k[-3]
        pairs = math.prod(q[:-1]) * keys * shares[attention.rpartition("_")[2]]
        flops = 2 * (_ATTENTION[attention] + fused) * head * pairs * _copies(eqn, devices)
        return Counter({_widest(floats[:1]): flops})
    if mapping.num_dynamic_grid_bounds:
        raise ValueError(
            f"the kernel {name!r} has a grid that is only known when it runs; "
            "give it a cost_estimate"
        )
    return _times(
        _count(eqn.params["jaxpr"], scopes, 1), math.prod(mapping.grid) * _copies(eqn, devices)
    )


def _mosaic_attention(eqn: Any, scopes: str, devices: int) -> Counter:
    """FLOPs by type of one of tokamax's attention kernels, from the pairs that its mask leaves."""
    q, k = eqn.invars[:2]
    word, products = _MOSAIC[len(eqn.outvars)]
    *rows, head = q.aval.shape
    pairs = math.prod(rows) * k.aval.shape[-3] * share.shares(scopes)[word]
    return Counter({_widest([q]): 2 * products * head * pairs * _copies(eqn, devices)})


def _mosaic_grouped(eqn: Any, scopes: str, devices: int) -> Counter:
    """FLOPs by type of one of JAX's grouped products for GPU. Its rows lie on tiles, whose number
    does not depend on how many rows have a group."""
    x, w = (v for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating))
    # Rows [M, I] with matrices [E, I, O], or with rows [M, O] for the matrices' gradient.
    products = math.prod(x.aval.shape) * w.aval.shape[-1] * share.shares(scopes)["grouped"]
    return Counter({_widest([x]): 2 * products * _copies(eqn, devices)})


def _dot(eqn: Any, scopes: str) -> float:
    # Each element of the result is a sum over the contracted axes: a product and an addition a
    # term.
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * _size(eqn.invars[0], contracted)


def _ragged_dot(eqn: Any, scopes: str) -> float:
    """Rows in groups, each row times the matrix of its group; or, of the gradient, a matrix for
    each group.

    TPU's compiler has the first as a kernel that meets each row once. Everything else every
    compiler spells out, with zeros for the rows of other groups: as many times as there are groups
    (XLA's programs of 8 groups for v5p, H100 and CPU). Where the groups do not cover the rows, a
    scope `ragged` tells the share that they do, which that kernel heeds.
    """
    numbers, out = eqn.params["ragged_dot_dimension_numbers"], math.prod(eqn.outvars[0].aval.shape)
    (contracted, _), _ = numbers.dot_dimension_numbers
    flops, groups = 2.0 * out * _size(eqn.invars[0], contracted), eqn.invars[2].aval.shape[-1]
    if numbers.lhs_ragged_dimensions[0] in contracted:
        return flops  # the result already has the groups as an axis
    device = eqn.invars[0].aval.sharding.mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return flops * share.shares(scopes).get("ragged", 1.0) if platform == "tpu" else flops * groups


def _convolution(eqn: Any, scopes: str) -> float:
    # Each element of the result sums over a window and over the input's features, which is the
    # kernel without its output features.
    kernel = eqn.invars[1].aval.shape
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / features


_PRODUCTS = {
    "dot_general": _dot,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}


def _copies(eqn: Any, devices: int) -> float:
    """How many devices repeat the work that the shapes of an equation show: all of them, divided by
    those that share it."""
    # Shapes of a traced program are global; only shardings say what a device does of them.
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    mesh = avals[0].sharding.mesh
    if mesh.empty:
        return 1  # one device, or the count of a kernel's body
    # An axis that no operand and no result is split over has every device do the same work.
    named = {name for aval in avals for entry in aval.sharding.spec for name in mesh_axes(entry)}
    # What the compiler spreads by itself it is taken to spread over all that it may.
    kinds = zip(mesh.axis_names, mesh.axis_types)
    split = [
        name
        for name, kind in kinds
        if kind == AxisType.Auto or (kind == AxisType.Explicit and name in named)
    ]
    return devices / math.prod(mesh.shape[name] for name in split)


def _bodies(eqn: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            # Closed jaxprs wrap an open one; anything with equations is a body.
            body = getattr(part, "jaxpr", part)
            if hasattr(body, "eqns"):
                yield body


def _size(operand: Any, axes: tuple[int, ...]) -> int:
    return math.prod(operand.aval.shape[axis] for axis in axes)


def _widest(operands: list[Any]) -> str:
    return max((jnp.dtype(v.aval.dtype) for v in operands), key=lambda dtype: dtype.itemsize).name


def _times(counts: Counter, trips: float) -> Counter:
    return Counter({dtype: flops * trips for dtype, flops in counts.items()})
