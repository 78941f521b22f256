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
    """The `Scalars` of a computation of whose parameters nothing is known."""
    return None


def called(loop: Instruction, role: str) -> str:
    """The name of a loop's "body" or "condition"."""
    name = loop.attribute(role)
    if name is None:
        raise ValueError(f"the loop {loop.name} names no {role}")
    return name


def trips(frame: Frame, loop: Instruction) -> int | None:
    """How often a loop runs its body, as its text says it or as counted; None where only the data
    tell."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if said:
        return int(said[1])
    # Scalars of the loop's state at the beginning of a trip, by their path in it. The first trip
    # finds out which ones the condition depends on; later trips ask for no others.
    state: dict[Path, int | None] = {}
    count = 0

    def current(number: int, path: Path) -> int | None:
        if path not in state:
            first = value(frame, loop.operands[0], path)
            state[path] = None if count else first
        return state[path]

    condition = frame.enter(called(loop, "condition"), current)
    body = frame.enter(called(loop, "body"), current)
    for count in range(_LONGEST_LOOP):
        holds = value(condition, condition.computation.root.name)
        if holds is None:
            return None
        if not holds:
            return count
        following: dict[Path, int | None] = {}
        while missing := state.keys() - following.keys():
            for path in missing:
                following[path] = value(body, body.computation.root.name, path)
        state = following
    return None


def invariants(frame: Frame, loop: Instruction) -> Scalars:
    """What is known inside a loop: those scalars of its state that every trip hands on as they
    are."""

    def kept(number: int, path: Path) -> int | None:
        def marked(_: int, asked: Path) -> int | None:
            return _MARK if asked == path else None

        body = frame.enter(called(loop, "body"), marked)
        unchanged = value(body, body.computation.root.name, path) == _MARK
        return value(frame, loop.operands[0], path) if unchanged else None

    return kept


def arguments(frame: Frame, call: Instruction) -> Scalars:
    """What is known inside a computation that is called: its parameters are the operands."""
    return lambda number, path: value(frame, call.operands[number], path)


def value(frame: Frame, name: str, path: Path = ()) -> int | None:
    """The integer that an element of an instruction's value is, followed back to constants and to
    what is known of parameters; None where it is not known."""
    one = frame.computation.instructions[name]
    if one.opcode == "parameter":
        return frame.scalars(int(one.inside), path)
    if one.opcode == "constant":
        return _constant(one.inside)
    if one.opcode == "tuple":
        return value(frame, one.operands[path[0]], path[1:]) if path else None
    if one.opcode == "get-tuple-element":
        return value(frame, one.operands[0], (int(one.attribute("index") or 0), *path))
    if one.opcode == "copy-start":
        return value(frame, one.operands[0], path[1:])
    if one.opcode in _SAME:
        return value(frame, one.operands[0], path)
    if one.opcode in ("fusion", "call"):
        inner = frame.enter(one.calls[0], arguments(frame, one))
        return value(inner, inner.computation.root.name, path)
    if one.opcode == "while":
        return invariants(frame, one)(0, path)
    return _computed(frame, one)


def _constant(text: str) -> int | None:
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _computed(frame: Frame, one: Instruction) -> int | None:
    """The result of a comparison or of arithmetic whose operands are all known."""
    act: Callable[..., int] | None = _ARITHMETIC.get(one.opcode)
    if one.opcode == "compare":
        act = _COMPARE.get(one.attribute("direction") or "")
    if act is None:
        return None
    operands = [value(frame, operand) for operand in one.operands]
    known = [number for number in operands if number is not None]
    return int(act(*known)) if len(known) == len(operands) else None
