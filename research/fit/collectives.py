"""Collectives of a compiled step: what each moves, between whom, and how often a step runs it.

Forms that the compilers print, as seen in steps compiled by jax 0.10.2 with its CUDA plugin and
libtpu 0.0.42:

- CPU: plain `all-gather`, `all-reduce`, `all-to-all`, `collective-permute`; for a reduce-scatter an
  all-reduce and a slice.
- CUDA: pairs such as `all-gather-start` and `all-gather-done`, of which the first counts. One may
  carry several arrays, the same one twice included (a combined gather of one weight for two uses
  moves it twice).
- TPU, plain: as the CPU's, with `async_collective_name` where it was a pair before scheduling.
- TPU, reduce-scatter: a fusion `all-reduce-scatter` of an all-reduce whose only user is a
  dynamic-slice at an offset from `partition-id`. It counts as the reduce-scatter it runs as. An
  all-reduce whose slice is taken in another fusion is a whole one.
- TPU, "async collective fusion": a fusion with the collective and the custom call
  `AsyncCollectiveStart`, fusions of compute that repeat it, and one with `AsyncCollectiveDone`; in
  all of them it has a `chain_id`. They are one collective. Channels do not tell one from another:
  the layers of an unrolled stack share them.
- TPU, permutes: rows that a reduce-scatter padded to its tiles go to their owners by a small
  `collective-permute-start`; a windowed einsum turns the all-gather or reduce-scatter beside a
  product into a chain of them. They count as permutes, and `op_name` is that of the product which
  they serve.
- TPU, `ragged-all-to-all`: it takes the rows, the array that they are written into, and where.
- TPU, several slices: what crosses slices is a `send` and `recv` through the host with
  `_xla_megascale_transfer_type`, beside a collective of the devices of one slice. The send counts,
  as the collective it says it is.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from research.fit.hlo.groups import Groups, parse_groups
from research.fit.hlo.instructions import Computation, Instruction
from research.fit.hlo.module import Module

# Kinds that move the same bytes by the same algorithm are one here.
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
    """One collective; bytes are of one device and one execution.

    kind           all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute
    operand_bytes  go in: the shard of an all-gather, the whole of a reduce-scatter
    wire_bytes     are received by the best algorithm for n devices and an operand x: all-gather
                   (n-1) x; reduce-scatter and all-to-all (n-1)/n x; all-reduce 2 (n-1)/n x;
                   permute x
    times          executions in a step
    groups         devices that take part together; of a permute the (source, target) pairs
    op_name        its place in the traced program
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
    for computation, one, within, times in _all(module):
        # Of an asynchronous chain the fusions after the first repeat the collective that they carry
        # on.
        if not carried_on(computation, one):
            found.append(_measure(module, computation, one, within, times))
    # A collective over groups of one device moves nothing; compilers leave such behind.
    return [one for one in found if one.wire_bytes]


def collective_bytes(found: Iterable[Collective]) -> dict[str, int]:
    """Operand bytes of a step by kind."""
    # Operands and not results: an all-gather's result is n times as large on every device.
    total: dict[str, int] = defaultdict(int)
    for collective in found:
        total[collective.kind] += collective.operand_bytes * collective.times
    return dict(total)


def _all(module: Module) -> Iterator[tuple[Computation, Instruction, str, int]]:
    """Every collective: its computation, its instruction, the origin of the fusion that calls the
    computation, and how often it runs."""

    def _inside(
        computation: Computation, within: str, times: int
    ) -> Iterator[tuple[Computation, Instruction, str, int]]:
        for op in computation.instructions.values():
            if _kind(op):
                yield computation, op, within, times
            elif op.opcode == "fusion":
                for called in op.calls:
                    yield from _inside(
                        module.computations[called], _origin(computation, op) or within, times
                    )

    for name, times in module.executions.items():
        yield from _inside(module.computations[name], "", times)


def _kind(op: Instruction) -> str | None:
    """The kind of collective that an instruction is or begins; None for any other, also for what
    ends a collective."""
    if op.opcode == "send":
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.attributes)
        # The compiler's names are those of the kinds in upper case with underscores, but for this
        # one.
        return transfer and {"ONE_TO_ONE": "collective-permute"}.get(
            transfer[1], transfer[1].lower().replace("_", "-")
        )
    return _KINDS.get(op.opcode.removesuffix("-start"))


def carried_on(computation: Computation, op: Instruction) -> bool:
    """Whether an instruction of a fusion repeats or ends a collective that an earlier fusion has
    begun."""
    if '"AsyncCollectiveDone"' in op.attributes:
        return True
    return "chain_id=" in op.attributes and not any(
        '"AsyncCollectiveStart"' in other.attributes for other in computation.instructions.values()
    )


def _measure(
    module: Module, computation: Computation, op: Instruction, within: str, times: int
) -> Collective:
    """The collective that an instruction is; `within` is the origin of the fusion around it."""
    kind = _kind(op)
    sources = [source.nbytes for source in computation.operands(op)]
    # How many rows a ragged exchange moves only the data say. One side of ours holds just these,
    # the other has room for all that might come; offsets and sizes are small.
    operand = min(sources[:2]) if op.opcode.startswith("ragged-all-to-all") else sum(sources)
    groups = parse_groups(op.attributes, module.devices)
    # A permute in which every device only sends to itself has no groups left.
    n = max((len(set(group)) for group in groups), default=1)
    # On a TPU this is how a reduce-scatter is printed, see the top of this file.
    if kind == "all-reduce" and _is_sliced(computation, op, n):
        kind = "reduce-scatter"
    share = {
        "all-gather": n - 1,
        "all-reduce": 2 * (n - 1) / n,
        "collective-permute": float(n > 1),
    }.get(kind, (n - 1) / n)
    return Collective(
        kind, operand, round(share * operand), times, groups, _origin(computation, op) or within
    )


def _is_sliced(computation: Computation, op: Instruction, n: int) -> bool:
    """Whether a fusion uses one of n slices of a result and nothing else of it."""
    # Follow the result through what only renames it, until something else uses it.
    slices, waiting = [], [op]
    while waiting:
        for user in computation.users[waiting.pop().name]:
            if user.opcode in ("bitcast", "get-tuple-element"):
                waiting.append(user)
            else:
                slices.append(user)
    if not slices or any(user.opcode != "dynamic-slice" for user in slices):
        return False
    # The slices must make up one n-th of the result, which is what each device keeps.
    return op is not computation.root and sum(user.nbytes for user in slices) * n == op.nbytes


def _origin(computation: Computation, op: Instruction) -> str:
    """The place in the traced program that an instruction comes from.

    The compiler gives none to instructions of its own making; they have the origin of an operand,
    or else of a user.
    """
    # What passes through these comes from another place.
    elsewhere = ("constant", "parameter", "tuple", "while")
    for follow in (computation.operands, lambda instruction: computation.users[instruction.name]):
        current = op
        # The limit keeps the walk near: an origin far away is that of other work.
        for _ in range(6):
            if current.op_name:
                return current.op_name
            neighbours = [other for other in follow(current) if other.opcode not in elsewhere]
            if not neighbours:
                break
            current = neighbours[0]
    return ""
