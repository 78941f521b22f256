"""The text of an optimized HLO module, as a compiler for CPU, CUDA or TPU prints it: instructions,
calls and trip counts.

`parse(compiled.as_text())` reads any of the three. Their dialects differ in layouts
(`{1,0:T(8,128)(2,1)S(1)}` has a TPU's tiles and a memory space, `E(4)` the bits of an element), in
how asynchronous work is wrapped, and in what is said of loops.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

HOST = 5  # memory space of arrays that wait in the host's memory, on TPU and CUDA alike
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([^\]]*)\](?:\{([^}]*)\})?|\b(token|opaque)\b")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|(?:true|false)_computation)=%?([\w.-]+)|\bbranch_computations=\{([^}]*)\}"
)
# trips that are counted one by one; longer than any loop over layers, chunks or tokens
_LONGEST_LOOP = 1_000_000


@dataclass(frozen=True)
class Array:
    """An array of a shape. `bits` are those of an element as it lies in memory: 4 of a packed int4.
    `space` is the memory: 0 the device's, 5 the host's, others are on the chip (TPU) or kinds of
    the device's memory (CUDA)."""

    dtype: str
    dims: tuple[int, ...]
    bits: int
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Without what tiles add."""
        return (self.elements * self.bits + 7) // 8


@dataclass(frozen=True)
class Instruction:
    """`arrays` are the leaves of its shape, in order; `inside` is what stands between its
    parentheses (a constant's value, a parameter's number) and `attributes` all behind them, as
    printed."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; empty where the compiler does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def calls(self) -> list[str]:
        """Computations it calls, but a loop's: of a fusion its body, of a conditional its
        branches."""
        head = self.attributes.partition("metadata={")[0]
        return [
            name
            for one, many in _CALLED.findall(head)
            for name in re.findall(r"[\w.-]+", one or many)
        ]

    def attribute(self, name: str) -> str | None:
        """The word after `name=`, without the percent sign of names."""
        found = re.search(rf"\b{name}=%?([^\s,{{}}]+)", self.attributes)
        return found[1] if found else None


@dataclass(frozen=True)
class Computation:
    """Instructions in the order they are printed, by name; `root` is the one whose value it
    returns."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {
            int(one.inside): one for one in self.instructions.values() if one.opcode == "parameter"
        }

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who takes a value as an operand."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self.instructions.values():
            for operand in set(one.operands):
                found[operand].append(one)
        return found

    def operands(self, one: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in one.operands]


# What a value may depend on: (number of a parameter, indices into its tuple) -> an integer, or None
# where it is not known.
Environment = Callable[[int, tuple[int, ...]], int | None]


@dataclass(frozen=True)
class Module:
    """All computations by name. `devices` run the program; `tiled` tells a TPU's module by its
    layouts.

    `otherwise` is how often a loop counts whose trips only its data tell, None where there is to be
    none.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int
    tiled: bool
    otherwise: int | None = None

    @cached_property
    def executions(self) -> dict[str, int]:
        """How often a step runs each computation that its control flow reaches; bodies of fusions
        and reductions are part of the instruction that calls them.

        Nested loops multiply. Of a conditional the branch that makes more bytes runs, every time:
        an upper bound. ValueError names a loop whose trips neither the compiler says nor its
        condition tells.
        """
        return self._run(self.entry, 1, lambda number, path: None)

    def _run(self, name: str, times: int, known: Environment) -> dict[str, int]:
        counts = {name: times}
        computation = self.computations[name]
        for one in computation.instructions.values():
            parts: list[dict[str, int]] = []
            if one.opcode == "while":
                trips, inner = (
                    _trips(self, computation, one, known),
                    _invariants(self, computation, one, known),
                )
                parts = [self._run(_called(one, "body"), times * trips, inner)]
                parts += [self._run(_called(one, "condition"), times * (trips + 1), inner)]
            elif one.opcode == "conditional":
                branches = [
                    self._run(branch, times, lambda number, path: None) for branch in one.calls
                ]
                parts = [max(branches, key=self._made)]
            elif one.opcode in ("call", "async-start"):
                passed = lambda number, path, one=one: _value(
                    self, computation, one.operands[number], path, known
                )
                parts = [self._run(called, times, passed) for called in one.calls]
            for part in parts:
                for called, count in part.items():
                    counts[called] = counts.get(called, 0) + count
        return counts

    def _made(self, counts: dict[str, int]) -> int:
        """Bytes of all results of computations that run so often."""
        return sum(
            n * one.nbytes
            for name, n in counts.items()
            for one in self.computations[name].instructions.values()
        )

    def run(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that a step runs, with its computation and how often."""
        for name, times in self.executions.items():
            for one in self.computations[name].instructions.values():
                yield self.computations[name], one, times


def parse(text: str, otherwise: int | None = None) -> Module:
    """A module's text, optimized or not, with `Module.otherwise`. ValueError where there is no
    entry computation."""
    computations, entry, lines = {}, None, []
    for line in text.splitlines():
        if not line[:1].isspace() and (header := _HEADER.match(line)):
            entered, name, lines = bool(header[1]), header[2], []
        elif line.rstrip() == "}" and lines:
            computations[name] = _computation(name, lines)
            entry, lines = name if entered else entry, []
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # a kernel's own description may hold line breaks
            lines[-1] += line
    if entry is None:
        raise ValueError(
            f"the text of {len(text)} characters has no ENTRY computation; pass compiled.as_text()"
        )
    head = text.partition("\n")[0]
    counts = [int(found) for found in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head)]
    return Module(computations, entry, math.prod(counts), ":T(" in text, otherwise)


def _computation(name: str, lines: list[str]) -> Computation:
    found = [_INSTRUCTION.match(line) for line in lines]
    instructions = {one[2]: _instruction(one[2], one[3]) for one in found}
    roots = [one[2] for one in found if one[1]]
    return Computation(name, instructions, instructions[roots[0] if roots else found[-1][2]])


def _instruction(name: str, text: str) -> Instruction:
    """From what stands behind the equals sign."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    close = _closing(text, start)
    inside = re.sub(r"/\*.*?\*/", "", text[start + 1 : close])
    operands = re.findall(r"%([\w.-]+)", inside)
    if not operands and text[end:start].strip() not in ("constant", "parameter", "iota"):
        operands = [part.split()[-1] for part in inside.split(",") if part.strip()]
    arrays = tuple(_array(found) for found in _ARRAY.finditer(re.sub(r"/\*.*?\*/", "", text[:end])))
    return Instruction(
        name, text[end:start].strip(), arrays, tuple(operands), inside, text[close + 1 :]
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"an instruction has a parenthesis that does not close: {text[:80]!r}")


def _array(found: re.Match) -> Array:
    dtype, dims, layout = found[1] or found[4], found[2] or "", found[3] or ""
    bits = re.search(r"E\((\d+)\)", layout)
    space = re.search(r"S\((\d+)\)", layout)
    # A type of less than a byte takes a whole one unless its layout says otherwise: s4, u2,
    # f8e4m3fn.
    digits = re.search(r"\d+", dtype)
    size = int(bits[1]) if bits else _BITS.get(dtype, max(8, int(digits[0])) if digits else 0)
    sizes = tuple(int(size) for size in re.findall(r"\d+", dims))
    return Array(dtype, (0,) if size == 0 else sizes, size, int(space[1]) if space else 0)


def _called(loop: Instruction, role: str) -> str:
    called = loop.attribute(role)
    if called is None:
        raise ValueError(f"the loop {loop.name} names no {role}")
    return called


def _trips(module: Module, computation: Computation, loop: Instruction, known: Environment) -> int:
    """As the compiler says (CUDA, CPU), or counted: a TPU's text only has the condition, so the
    scalars that it depends on are followed from their first values through the body until it
    fails."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if said:
        return int(said[1])
    body, condition = (
        module.computations[_called(loop, "body")],
        module.computations[_called(loop, "condition")],
    )
    state: dict[tuple[int, ...], int | None] = {}
    trips = 0

    def current(number: int, path: tuple[int, ...]) -> int | None:
        if path not in state:
            first = _value(module, computation, loop.operands[0], path, known)
            state[path] = (
                None if trips else first
            )  # later trips can ask for nothing that the first did not follow
        return state[path]

    for trips in range(_LONGEST_LOOP):
        holds = _value(module, condition, condition.root.name, (), current)
        if holds is None:
            break
        if not holds:
            return trips
        following = {}
        while missing := state.keys() - following.keys():
            following |= {
                path: _value(module, body, body.root.name, path, current) for path in missing
            }
        state = following
    if module.otherwise is not None:
        return module.otherwise
    where = loop.op_name or "no op_name"
    raise ValueError(
        f"the loop {loop.name} ({where}) runs a number of times that its text does not tell"
    )


def _invariants(
    module: Module, computation: Computation, loop: Instruction, known: Environment
) -> Environment:
    """What is known inside a loop: those scalars of its state that every trip hands on as they
    are."""
    body = module.computations[_called(loop, "body")]

    def inner(number: int, path: tuple[int, ...]) -> int | None:
        marked = _value(
            module, body, body.root.name, path, lambda number, asked: -7 if asked == path else None
        )
        return _value(module, computation, loop.operands[0], path, known) if marked == -7 else None

    return inner


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


def _value(
    module: Module, computation: Computation, name: str, path: tuple[int, ...], known: Environment
) -> int | None:
    """The integer that an element of a value is, followed back to constants and what is known of
    parameters."""
    one = computation.instructions[name]
    follow = lambda operand, path=(): _value(module, computation, operand, path, known)
    if one.opcode == "parameter":
        return known(int(one.inside), path)
    if one.opcode == "constant":
        return {"true": 1, "false": 0}.get(
            one.inside, int(one.inside) if re.fullmatch(r"-?\d+", one.inside) else None
        )
    if one.opcode == "tuple":
        return follow(one.operands[path[0]], path[1:]) if path else None
    if one.opcode == "get-tuple-element":
        return follow(one.operands[0], (int(one.attribute("index")), *path))
    if one.opcode == "copy-start":
        return follow(one.operands[0], path[1:])
    if one.opcode in _SAME:
        return follow(one.operands[0], path)
    if one.opcode in ("fusion", "call"):
        called = module.computations[one.calls[0]]
        return _value(
            module,
            called,
            called.root.name,
            path,
            lambda number, inner: follow(one.operands[number], inner),
        )
    if one.opcode == "while":
        return _invariants(module, computation, one, known)(0, path)
    act = (
        _COMPARE.get(one.attribute("direction"))
        if one.opcode == "compare"
        else _ARITHMETIC.get(one.opcode)
    )
    values = [follow(operand) for operand in one.operands] if act else [None]
    return None if None in values else int(act(*values))
