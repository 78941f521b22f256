"""What an HLO module consists of: arrays, the instructions that make them, and computations."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

HOST = 5  # memory space of arrays that wait in the host's memory, on TPU and CUDA alike
# `body` and `condition` of loops are left out: how often they run is another question.
_CALLED = re.compile(
    r"\b(?:calls|to_apply|(?:true|false)_computation)=%?([\w.-]+)|\bbranch_computations=\{([^}]*)\}"
)


@dataclass(frozen=True)
class Array:
    """An array, or one element of a tuple.

    `bits` are those of an element as it lies in memory: 4 of a packed int4. `space` is the memory:
    0 the device's, 5 the host's; others are on the chip (TPU) or kinds of the device's memory
    (CUDA).
    """

    dtype: str
    dims: tuple[int, ...]
    bits: int
    space: int = 0

    @property
    def elements(self) -> int:
        """Elements of the array, without what tiles add."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of the array, without what tiles add."""
        # Packed types of less than a byte round up to whole bytes at the end of the array only.
        return (self.elements * self.bits + 7) // 8


@dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    arrays      the leaves of its result's shape, in order
    operands    names of instructions of the same computation
    inside      what is printed between its parentheses: a constant's value, a parameter's number
    attributes  what is printed behind them
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of its result."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; empty where the compiler does not say."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def calls(self) -> list[str]:
        """The computations that it calls: a fusion's body, a conditional's branches. A loop names
        its own by role, see `attribute`."""
        # An op_name in the metadata may contain "calls=".
        head = self.attributes.partition("metadata={")[0]
        return [
            name
            for one, many in _CALLED.findall(head)
            for name in re.findall(r"[\w.-]+", one or many)
        ]

    def attribute(self, name: str) -> str | None:
        """The word after `name=`, without the percent sign of names."""
        match = re.search(rf"\b{name}=%?([^\s,{{}}]+)", self.attributes)
        return match[1] if match else None


@dataclass(frozen=True)
class Computation:
    """Instructions in the order they are printed, by name; `root` is the one whose value it
    returns."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by their number."""
        return {int(op.inside): op for op in self.instructions.values() if op.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who takes a value as an operand."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for op in self.instructions.values():
            # An instruction that takes a value twice is one user of it.
            for operand in set(op.operands):
                users[operand].append(op)
        return users

    def operands(self, op: Instruction) -> list[Instruction]:
        """The instructions whose values an instruction takes, in order."""
        return [self.instructions[name] for name in op.operands]
