"""The text of an optimized HLO module, as a compiler for CPU, CUDA or TPU prints it.

`parse(compiled.as_text())` reads any of the three. Their dialects differ in layouts
(`{1,0:T(8,128)(2,1)S(1)}` has a TPU's tiles and a memory space, `E(4)` the bits of an element), in
how asynchronous work is wrapped, and in what is said of loops.
"""

import math
import re

from research.fit.hlo.instructions import Array, Computation, Instruction
from research.fit.hlo.module import Module

_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
# Shape, then optionally a layout: f32[8,128]{1,0:T(8,128)}.
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([^\]]*)\](?:\{([^}]*)\})?|\b(token|opaque)\b")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$")


def parse(text: str, otherwise: int | None = None) -> Module:
    """A module's text, optimized or not, with `Module.otherwise`. ValueError where there is no
    entry computation."""
    computations: dict[str, Computation] = {}
    entry: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        # Headers of computations begin in the first column, instructions are indented.
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
    # Attributes of the module stand on its first line.
    head = text.partition("\n")[0]
    counts = [int(found) for found in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head)]
    return Module(computations, entry, math.prod(counts), ":T(" in text, otherwise)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        if match := _INSTRUCTION.match(line):
            instructions[match[2]] = _instruction(match[2], match[3])
            root = match[2] if match[1] else root
    # Without a ROOT it is the last.
    return Computation(name, instructions, instructions[root or next(reversed(instructions))])


def _instruction(name: str, text: str) -> Instruction:
    """The instruction `name`, of the text behind its equals sign: shape, opcode(operands),
    attributes."""
    # A tuple's shape has spaces inside its parentheses, an array's has none.
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    close = _closing(text, start)
    inside = re.sub(r"/\*.*?\*/", "", text[start + 1 : close])
    operands = re.findall(r"%([\w.-]+)", inside)
    # CUDA's and the CPU's compilers print names without percent signs in some places.
    if not operands and text[end:start].strip() not in ("constant", "parameter", "iota"):
        operands = [part.split()[-1] for part in inside.split(",") if part.strip()]
    # Long tuples have comments with an element's number, /*index=5*/.
    arrays = tuple(_array(found) for found in _ARRAY.finditer(re.sub(r"/\*.*?\*/", "", text[:end])))
    return Instruction(
        name, text[end:start].strip(), arrays, tuple(operands), inside, text[close + 1 :]
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` closes."""
    depth = 0
    for parenthesis in re.compile(r"[()]").finditer(text, start):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return parenthesis.start()
    raise ValueError(f"an instruction has a parenthesis that does not close: {text[:80]!r}")


def _array(match: re.Match) -> Array:
    """The array of a match of `_ARRAY`: type, dimensions, layout."""
    dtype, dims, layout = match[1] or match[4], match[2] or "", match[3] or ""
    bits = re.search(r"E\((\d+)\)", layout)
    space = re.search(r"S\((\d+)\)", layout)
    # A type of less than a byte takes a whole one unless its layout says otherwise: s4, u2,
    # f8e4m3fn.
    digits = re.search(r"\d+", dtype)
    size = int(bits[1]) if bits else _BITS.get(dtype, max(8, int(digits[0])) if digits else 0)
    # A bounded dynamic dimension is printed "<=8" and counts as its bound; a token has no elements.
    sizes = tuple(int(size) for size in re.findall(r"\d+", dims))
    return Array(dtype, (0,) if size == 0 else sizes, size, int(space[1]) if space else 0)
