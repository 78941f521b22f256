"""Bytes that a device's memory moves in a step, counted on the optimized HLO.

Each instruction outside fusions reads its operands and writes its results once; a fusion keeps what
it computes between them on the chip. Bytes are those of the arrays, without what tiles add, and a
value that is read by two instructions is read twice: caches (50 MB on an H100) are not modelled.
"""

from research.fit.collectives import carried_on
from research.fit.hlo.instructions import HOST, Array, Computation, Instruction
from research.fit.hlo.module import Module

# These move nothing: they name, group or wait for what others move, or hand control to computations
# that count themselves.
_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "optimization-barrier",
    "add-dependency", "domain", "get-dimension-size", "async-start", "async-update",
    "rng-get-and-update-state",
}  # fmt: skip
# Custom calls of the TPU compiler that are notes to itself: memory to be filled by others, or one
# name for several pieces.
_NOTES = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written into the first
# Of one operand, element by element: in a fusion they need of it what is needed of their result.
_ELEMENTWISE = {
    "bitcast", "copy", "convert", "transpose", "reshape", "negate", "get-tuple-element",
}  # fmt: skip


def memory_bytes(module: Module) -> int:
    """Bytes read and written in the device's own memory, on one device in one step.

    An array that is only sliced counts as its slices, and a slice that is updated in place is
    written and not read. On a TPU the memories on the chip cost nothing: `S(1)`, vector memory, and
    the scalar ones. The host's memory is counted by `host_bytes`.
    """
    return sum(
        times * _moved(module, computation, op, _on_device(module))
        for computation, op, times in module.run()
    )


def host_bytes(module: Module) -> int:
    """Bytes read and written in the host's memory by one device in one step: what is offloaded."""
    return sum(
        times * _moved(module, computation, op, {HOST}) for computation, op, times in module.run()
    )


def _on_device(module: Module) -> set[int]:
    """Memory spaces of the device's memory. On CUDA S(1) is its part that the network may reach,
    S(2) that of a collective's own buffers."""
    return {0} if module.tiled else {0, 1, 2}


def _moved(module: Module, computation: Computation, op: Instruction, spaces: set[int]) -> int:
    """Bytes that one execution of an instruction moves in these memory spaces."""
    opcode = op.opcode.removesuffix("-start")
    if (
        op.opcode in _NOTHING
        or op.opcode.endswith("-done")
        or op.attribute("custom_call_target") in _quoted(_NOTES)
    ):
        return 0
    operands = computation.operands(op)
    # A fusion may need only slices of an operand, so its body is read.
    if op.opcode in ("fusion", "fusion-start"):
        return _fusion(module, computation, op, spaces)
    if opcode in _UPDATES:
        # In place: the operands are read, and of the buffer the updated part is written.
        buffer, update = operands[0], operands[_UPDATES[opcode]]
        read = sum(_bytes(operand.arrays, spaces) for operand in operands[1:])
        return read + _share(
            _bytes(buffer.arrays, spaces), update.arrays[0].elements, buffer.arrays[0].elements
        )
    # An asynchronous start also lists its operands and flags in its result.
    written = op.arrays if opcode == op.opcode else _results(op, operands)
    if opcode in _SLICES:
        source = operands[0].arrays[0]
        read = _share(
            _bytes([source], spaces), sum(array.elements for array in written), source.elements
        )
        indices = sum(_bytes(index.arrays, spaces) for index in operands[1:])
        return read + indices + _bytes(written, spaces)
    return sum(_bytes(operand.arrays, spaces) for operand in operands) + _bytes(written, spaces)


def _quoted(names: set[str]) -> set[str]:
    return {f'"{name}"' for name in names}


def _bytes(arrays, spaces: set[int]) -> int:
    return sum(array.nbytes for array in arrays if array.space in spaces)


def _share(nbytes: int, part: int, whole: int) -> int:
    """The bytes of `part` of an array's `whole` elements."""
    # Several slices together may have more elements than the array, which is read once at most.
    return nbytes * min(part, whole) // max(whole, 1)


def _results(op: Instruction, operands: list[Instruction]) -> list[Array]:
    """The arrays that an asynchronous start will have written. Its shape is (operands, results,
    flags); that of a copy has the result first."""
    if op.opcode == "copy-start":
        return [op.arrays[0]]
    if op.opcode == "all-reduce-start":
        return list(op.arrays)
    operand_count = sum(len(operand.arrays) for operand in operands)
    if op.opcode in ("send", "recv"):
        return list(op.arrays[:1])
    scalars = ("u32", "s32")  # the flags
    return [a for a in op.arrays[operand_count:] if not (a.dims == () and a.dtype in scalars)]


def _fusion(module: Module, computation: Computation, op: Instruction, spaces: set[int]) -> int:
    """Bytes of a fusion: of its operands what its body needs of them, and of its results what the
    body writes."""
    # Inside a fusion values stay in registers: only its parameters and its root touch memory.
    body = module.computations[op.calls[0]]
    operands = computation.operands(op)
    total = 0
    for number, operand in enumerate(operands):
        parameter = body.parameters[number]
        elements = sum(array.elements for array in operand.arrays)
        total += _share(
            _bytes(operand.arrays, spaces), _needed(module, body, parameter, elements), elements
        )
    results = list(op.arrays) if op.opcode == "fusion" else _results(op, operands)
    for array, source in zip(results, _sources(body)):
        if array.space in spaces:
            total += _share(
                array.nbytes, _written(module, body, source, array.elements), array.elements
            )
    return total


def _needed(module: Module, body: Computation, value: Instruction, onward: int) -> int:
    """Elements of a value that a fusion reads: those of its slices, if it is only sliced.

    `onward` is how many elements of the fusion's result are needed, for a value that is the result.
    """
    elements = sum(array.elements for array in value.arrays)
    total = onward if value is body.root else 0
    for user in body.users[value.name]:
        # An index of a slice is needed whole, and so falls to the last case.
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += sum(array.elements for array in user.arrays)
        elif user.opcode in _UPDATES and user.operands[0] == value.name:
            total += 0 if _in_place(body, user) else elements
        elif user.opcode in _ELEMENTWISE:
            total += _needed(module, body, user, onward)
        elif user.opcode == "fusion":
            inner, beyond = module.computations[user.calls[0]], _needed(module, body, user, onward)
            places = [number for number, name in enumerate(user.operands) if name == value.name]
            total += sum(
                _needed(module, inner, inner.parameters[place], beyond) for place in places
            )
        elif not (
            carried_on(body, user) or (user.opcode == "tuple" and value.opcode == "parameter")
        ):
            return elements
    return min(total, elements)


def _sources(body: Computation) -> list[Instruction]:
    """The instruction that makes each result of a fusion: the elements of its tuple. A fusion that
    begins a collective has its operand as the first result."""
    if body.root.opcode == "tuple":
        return body.operands(body.root)
    handed_on = [body.parameters[0]] if '"AsyncCollectiveStart"' in body.root.attributes else []
    return (handed_on + [body.root] * len(body.root.arrays))[: len(body.root.arrays)]


def _written(module: Module, body: Computation, source: Instruction, elements: int) -> int:
    """Elements of a result that a fusion writes: the update of one that is updated in place, none
    of a parameter that is handed on."""
    while source.opcode == "bitcast":
        source = body.instructions[source.operands[0]]
    if source.opcode == "fusion" and len(source.arrays) == 1:
        inner = module.computations[source.calls[0]]
        return _written(module, inner, inner.root, elements)
    if carried_on(body, source) or (source.opcode == "parameter" and len(body.root.arrays) > 1):
        return 0
    if source.opcode in _UPDATES and _in_place(body, source):
        return body.instructions[source.operands[_UPDATES[source.opcode]]].arrays[0].elements
    return elements


def _in_place(body: Computation, update: Instruction) -> bool:
    """Whether what an update writes into is a parameter as it came."""
    buffer = body.instructions[update.operands[0]]
    while buffer.opcode == "bitcast" or buffer.opcode in _UPDATES:
        buffer = body.instructions[buffer.operands[0]]
    return buffer.opcode == "parameter"
