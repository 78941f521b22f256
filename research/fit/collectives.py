"""Collectives of a compiled step: what each moves, between whom, and how often a step runs it.

Forms that the compilers print, as seen in steps compiled by jax 0.10.2 with its CUDA plugin and
libtpu 0.0.42:

- CPU: plain `all-gather`, `all-reduce`, `all-to-all`, `collective-permute`; for a reduce-scatter an all-reduce and a slice.
- CUDA: pairs such as `all-gather-start` and `all-gather-done`, of which the first counts. One may carry several arrays, the same
  one twice included (a combined gather of one weight for two uses moves it twice).
- TPU, plain: as the CPU's, with `async_collective_name` where it was a pair before scheduling.
- TPU, reduce-scatter: a fusion `all-reduce-scatter` of an all-reduce whose only user is a dynamic-slice at an offset from
  `partition-id`. It counts as the reduce-scatter it runs as. An all-reduce whose slice is taken in
  another fusion is a whole one.
- TPU, "async collective fusion": a fusion with the collective and the custom call `AsyncCollectiveStart`, fusions of compute that
  repeat it, and one with `AsyncCollectiveDone`; in all of them it has a `chain_id`. They are one
  collective. Channels do not tell one from another: the layers of an unrolled stack share them.
- TPU, permutes: rows that a reduce-scatter padded to its tiles go to their owners by a small `collective-permute-start`; a
  windowed einsum turns the all-gather or reduce-scatter beside a product into a chain of them. They
  count as permutes, and `op_name` is that of the product which they serve.
- TPU, several slices: what crosses slices is a `send` and `recv` through the host with `_xla_megascale_transfer_type`, beside
  a collective of the devices of one slice. The send counts, as the collective it says it is.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from research.fit.hlo.instructions import Computation, Instruction
from research.fit.hlo.module import Module

Groups = tuple[tuple[int, ...], ...]

_KINDS = {
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-reduce": "all-reduce",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "collective-permute",
    "collective-broadcast": "collective-permute",
}


@dataclass(frozen=True)
class Collective:
    """Bytes of one execution on one device; a step runs it `times` times.

    `kind` is all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute.
    `operand_bytes` go in on a device: the shard of an all-gather, the whole of a reduce-scatter.
    `wire_bytes` are those that a device receives by the best algorithm for n devices and an operand
    x: all-gather (n-1) x; reduce-scatter and all-to-all (n-1)/n x; all-reduce 2 (n-1)/n x; permute
    x. `groups` are the devices that take part together; of a permute the (source, target) pairs.
    `op_name` is its place in the traced program.
    """

    kind: str
    operand_bytes: int
    wire_bytes: int
    times: int
    groups: Groups
    op_name: str = ""


def collectives(module: Module) -> list[Collective]:
    """Every collective between different devices that a step runs, in the order of the text."""
    found = []
    for computation, one, within, times in _held(module):
        # Of an asynchronous chain the fusions after the first repeat the collective that they carry
        # on.
        if not carried_on(computation, one):
            found.append(_measure(module, computation, one, within, times))
    return [one for one in found if one.wire_bytes]


def collective_bytes(found: Iterable[Collective]) -> dict[str, int]:
    """Operand bytes of a step by kind."""
    total: dict[str, int] = defaultdict(int)
    for one in found:
        total[one.kind] += one.operand_bytes * one.times
    return dict(total)


def _held(module: Module) -> Iterator[tuple[Computation, Instruction, str, int]]:
    """Collectives with the computation they stand in, the origin of the fusion that calls it, and
    their executions."""

    def inside(
        computation: Computation, within: str, times: int
    ) -> Iterator[tuple[Computation, Instruction, str, int]]:
        for one in computation.instructions.values():
            if _kind(one):
                yield computation, one, within, times
            elif one.opcode == "fusion":
                for called in one.calls:
                    yield from inside(
                        module.computations[called], _origin(computation, one) or within, times
                    )

    for name, times in module.executions.items():
        yield from inside(module.computations[name], "", times)


def _kind(one: Instruction) -> str | None:
    """None of what is no collective, and of what ends one that has begun."""
    if one.opcode == "send":
        said = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
        return said and {"ONE_TO_ONE": "collective-permute"}.get(
            said[1], said[1].lower().replace("_", "-")
        )
    return _KINDS.get(one.opcode.removesuffix("-start"))


def carried_on(computation: Computation, one: Instruction) -> bool:
    """Whether an instruction of a fusion repeats or ends a collective that an earlier fusion has
    begun."""
    if '"AsyncCollectiveDone"' in one.attributes:
        return True
    return "chain_id=" in one.attributes and not any(
        '"AsyncCollectiveStart"' in other.attributes for other in computation.instructions.values()
    )


def _measure(
    module: Module, computation: Computation, one: Instruction, within: str, times: int
) -> Collective:
    kind = _kind(one)
    operand = sum(taken.nbytes for taken in computation.operands(one))
    groups = parse_groups(one.attributes, module.devices)
    n = max((len(set(group)) for group in groups), default=1)
    if kind == "all-reduce" and _is_sliced(computation, one, n):
        kind = "reduce-scatter"
    share = {
        "all-gather": n - 1,
        "all-reduce": 2 * (n - 1) / n,
        "collective-permute": float(n > 1),
    }.get(kind, (n - 1) / n)
    return Collective(
        kind, operand, round(share * operand), times, groups, _origin(computation, one) or within
    )


def _is_sliced(computation: Computation, one: Instruction, n: int) -> bool:
    """Whether all that is used of a result in its fusion is one of n slices."""
    slices, waiting = [], [one]
    while waiting:
        for user in computation.users[waiting.pop().name]:
            if user.opcode in ("bitcast", "get-tuple-element"):
                waiting.append(user)
            else:
                slices.append(user)
    if not slices or any(user.opcode != "dynamic-slice" for user in slices):
        return False
    return one is not computation.root and sum(user.nbytes for user in slices) * n == one.nbytes


def _origin(computation: Computation, one: Instruction) -> str:
    """Of what the compiler made itself, and therefore does not say, the origin of what it takes or
    else of who takes it."""
    elsewhere = (
        "constant",
        "parameter",
        "tuple",
        "while",
    )  # what passes through these comes from another place
    for follow in (computation.operands, lambda taken: computation.users[taken.name]):
        at = one
        for _ in range(6):
            if at.op_name:
                return at.op_name
            near = [other for other in follow(at) if other.opcode not in elsewhere]
            if not near:
                break
            at = near[0]
    return ""


def parse_groups(attributes: str, devices: int) -> Groups:
    """Devices that take part together, from any of the forms that HLO prints; without one, all of
    them.

    `{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`, rows of 0..3 after reshape and transpose;
    `mesh['a'=2,'b'=2] {'b'}`, a mesh in which `'a':(p)s` is the axis of size s behind p of the axis
    a, and which may list `device_ids=(...)`; and pairs of a permute, of which those from a device
    to itself are left out. Between slices a target `{1,2}x{0:3}` is that of devices 0 to 3 of two
    slices, of `devices` each, of which those of the same place take part together.
    """
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", found[1])]
        return tuple(pair for pair in pairs if pair[0] != pair[1])
    if found := re.search(r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', attributes):
        slices, members = _ranges(found[1]), _ranges(found[2])
        return tuple(
            tuple(index * devices + member for index in range(len(slices))) for member in members
        )
    _, _, text = attributes.partition("replica_groups=")
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if found := re.match(r"\[[\d,]+\]<=\[[\d,]+\](T\([\d,]+\))?", text):
        return _chunks(*_iota(found[0]))
    if found := re.match(r"\{(\{[\d,]*\},?)+\}", text):
        return tuple(tuple(_numbers(group)) for group in re.findall(r"\{([\d,]*)\}", found[0]))
    return (tuple(range(devices)),)


def _ranges(text: str) -> list[int]:
    """0, 1, 2 and 5 of "0:2,5"."""
    parts = [_numbers(part) for part in text.split(",")]
    return [number for part in parts for number in range(part[0], part[-1] + 1)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(text: str) -> tuple[list[int], list[int]]:
    """Devices in order and the dimensions they fill, of "[2,4]<=[4,2]T(1,0)"."""
    dims, _, rest = text.partition("<=")
    shape, _, order = rest.partition("T")
    sizes = _numbers(shape)
    return _transpose(
        list(range(math.prod(sizes))), sizes, _numbers(order) or list(range(len(sizes)))
    ), _numbers(dims)


def _transpose(values: list[int], sizes: list[int], order: list[int]) -> list[int]:
    """`values` of an array of these sizes, row by row after its dimensions are put in this
    order."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    places = [0]
    for axis in order:
        places = [place + index * strides[axis] for place in places for index in range(sizes[axis])]
    return [values[place] for place in places]


def _chunks(devices: list[int], dims: list[int]) -> Groups:
    """Rows of the last dimension."""
    return tuple(
        tuple(devices[start : start + dims[-1]]) for start in range(0, len(devices), dims[-1])
    )


def _mesh_groups(text: str) -> Groups:
    found = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    if found is None:
        raise ValueError(
            f"replica_groups={text[:60]!r} is no mesh that is known; wanted mesh['a'=2,'b'=4] {{'a'}}"
        )
    axes = [part.replace("'", "").split("=") for part in found[1].split(",")]
    ids = found[2] or ""
    listed = (
        "<=" not in ids and "T(" not in ids
    )  # else "[2,4]<=[4,2]T(1,0)", or "[4,2]T(1,0)" where the mesh has the sizes
    devices = (
        _numbers(ids.rpartition("]")[2]) if listed else _iota(ids if "<=" in ids else f"<={ids}")[0]
    )
    named = found[3].replace("'", "").split(",")
    taken = {name: (1, int(size)) for name, size in axes if name in named}
    for name, before, size in re.findall(r"'?(\w+)'?:\((\d+)\)(\d+)", found[3]):
        taken[name] = int(before), int(size)
    sizes, grouped = [], []
    for name, size in axes:
        before, part = taken.get(name, (int(size), 1))
        grouped += [False, name in taken, False]
        sizes += [before, part, int(size) // (before * part)]
    order = [axis for axis, inside in enumerate(grouped) if not inside] + [
        axis for axis, inside in enumerate(grouped) if inside
    ]
    count = math.prod(size for size, inside in zip(sizes, grouped) if inside)
    return _chunks(_transpose(devices or list(range(math.prod(sizes))), sizes, order), [count])
