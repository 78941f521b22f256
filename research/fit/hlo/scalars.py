"""Integers of a module that its text tells: the trip counts of loops.

CUDA's and the CPU's compilers print a loop's trips. A TPU's text has only the condition, so the
scalars that it depends on are followed from their first values through the body until it fails.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from research.fit.hlo.instructions import Computation, Instruction

# Indices into a tuple, outermost first; () is the value itself.
Path = tuple[int, ...]
# From the number of a parameter and a path in it to the integer there, None where it is not known.
Scalars = Callable[[int, Path], int | None]

# trips that are counted one by one; longer than any loop over layers, chunks or tokens
_LONGEST_LOOP = 1_000_000
_MARK = -7  # a value that no program has for a scalar of a loop's state

# Operations that hand on the integer of their first operand.
_SAME = {
    "copy",
    "bitcast",
    "convert",
    "reshape",
    "broadcast",
    "copy-done",
    "optimization-barrier",
    "opt-barrier",
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": max,
    "minimum": min,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "negate": lambda a: -a,
    "select": lambda p, a, b: a if p else b,
}


@dataclass(frozen=True)
class Frame:
    """A computation of a module, and what is known of the scalars of its parameters."""

    computations: Mapping[str, Computation]
    computation: Computation
    scalars: Scalars

    def enter(self, name: str, scalars: Scalars) -> "Frame":
        """Another computation of the module, with what is known in there."""
        return Frame(self.computations, self.computations[name], scalars)


def unknown(number: int, path: Path) -> None:
    """The `Scalars` of a computation whose parameters are all unknown."""
    return None


def called(loop: Instruction, role: str) -> str:
    """The name of a loop's "body" or "condition"."""
    name = loop.attribute(role)
    if name is None:
        raise ValueError(f"the loop {loop.name} names no {role}")
    return name


def trips(frame: Frame, loop: Instruction) -> int | None:
    """How often a loop runs its body: as its text says, or counted by following its condition. None
    where that depends on the data."""
    printed = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if printed:
        return int(printed[1])
    # Scalars of the loop's state at the beginning of a trip, by their path in it. The first trip
    # finds out which ones the condition depends on; later trips ask for no others.
    state: dict[Path, int | None] = {}
    count = 0

    def _current(number: int, path: Path) -> int | None:
        if path not in state:
            # A scalar that is asked for after the first trip has no known history.
            first = value(frame, loop.operands[0], path)
            state[path] = None if count else first
        return state[path]

    condition = frame.enter(called(loop, "condition"), _current)
    body = frame.enter(called(loop, "body"), _current)
    # The loop is run, but of its state only the few integers that its condition depends on.
    for count in range(_LONGEST_LOOP):
        holds = value(condition, condition.computation.root.name)
        if holds is None:
            return None
        if not holds:
            return count
        following: dict[Path, int | None] = {}
        # Following one scalar through the body may ask for others that it depends on, which
        # `_current` adds to `state`; they are followed in turn.
        while missing := state.keys() - following.keys():
            for path in missing:
                following[path] = value(body, body.computation.root.name, path)
        state = following
    return None


def invariants(frame: Frame, loop: Instruction) -> Scalars:
    """What is known inside a loop: the scalars of its state that no trip changes."""

    def _kept(number: int, path: Path) -> int | None:
        def _marked(_: int, asked: Path) -> int | None:
            return _MARK if asked == path else None

        body = frame.enter(called(loop, "body"), _marked)
        # The body is run on an impossible number in this place; if it comes out, nothing has
        # changed it.
        unchanged = value(body, body.computation.root.name, path) == _MARK
        return value(frame, loop.operands[0], path) if unchanged else None

    return _kept


def arguments(frame: Frame, call: Instruction) -> Scalars:
    """What is known inside a computation that is called: its parameters are the operands."""
    return lambda number, path: value(frame, call.operands[number], path)


def value(frame: Frame, name: str, path: Path = ()) -> int | None:
    """The integer that an element of an instruction's value is, followed back to constants and to
    what is known of parameters; None where it is not known."""
    op = frame.computation.instructions[name]
    if op.opcode == "parameter":
        return frame.scalars(int(op.inside), path)
    if op.opcode == "constant":
        return _constant(op.inside)
    if op.opcode == "tuple":
        return value(frame, op.operands[path[0]], path[1:]) if path else None
    if op.opcode == "get-tuple-element":
        return value(frame, op.operands[0], (int(op.attribute("index") or 0), *path))
    # An asynchronous copy is a tuple (destination, source, flag).
    if op.opcode == "copy-start":
        return value(frame, op.operands[0], path[1:])
    if op.opcode in _SAME:
        return value(frame, op.operands[0], path)
    if op.opcode in ("fusion", "call"):
        # Compilers fuse even the addition of a loop's counter.
        inner = frame.enter(op.calls[0], arguments(frame, op))
        return value(inner, inner.computation.root.name, path)
    if op.opcode == "while":
        return invariants(frame, op)(0, path)
    return _computed(frame, op)


def _constant(text: str) -> int | None:
    if text in ("true", "false"):
        return int(text == "true")
    # Arrays and floats are none of the scalars that end a loop.
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _computed(frame: Frame, op: Instruction) -> int | None:
    """The result of a comparison or of arithmetic whose operands are all known."""
    act: Callable[..., int] | None = _ARITHMETIC.get(op.opcode)
    if op.opcode == "compare":
        act = _COMPARE.get(op.attribute("direction") or "")
    if act is None:
        return None
    operands = [value(frame, operand) for operand in op.operands]
    numbers = [number for number in operands if number is not None]
    return int(act(*numbers)) if len(numbers) == len(operands) else None
