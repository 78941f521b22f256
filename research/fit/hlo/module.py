"""A module, and how often a step runs each of its computations."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from research.fit.hlo.instructions import Computation, Instruction
from research.fit.hlo.scalars import Frame, Scalars, arguments, called, invariants, trips, unknown


@dataclass(frozen=True)
class Module:
    """A program that all devices run.

    computations  by name
    entry         the name of the one that a step runs
    devices       how many run it
    tiled         whether layouts have tiles, as on a TPU
    otherwise     trips of a loop that only its data end; None refuses such loops
    """

    computations: dict[str, Computation]
    entry: str
    devices: int
    tiled: bool
    otherwise: int | None = None

    @cached_property
    def executions(self) -> Mapping[str, int]:
        """How often a step runs each computation that its control flow reaches; bodies of fusions
        and reductions are part of the instruction that calls them.

        Nested loops multiply. Of a conditional the branch that makes more bytes runs, every time:
        an upper bound. ValueError names a loop whose trips neither the compiler says nor its
        condition tells.
        """
        return self._run(self.entry, 1, unknown)

    def _run(self, name: str, times: int, scalars: Scalars) -> Counter[str]:
        """Executions of a computation that runs `times` times, and of all that it reaches."""
        # A computation may be called from several places; its executions add up.
        counts = Counter({name: times})
        frame = Frame(self.computations, self.computations[name], scalars)
        for op in frame.computation.instructions.values():
            for part in self._reached(frame, op, times):
                counts.update(part)
        return counts

    def _reached(self, frame: Frame, op: Instruction, times: int) -> list[Counter[str]]:
        """Executions of the computations that an instruction runs."""
        if op.opcode == "while":
            count, invariant = self._trips(frame, op), invariants(frame, op)
            return [
                self._run(called(op, "body"), times * count, invariant),
                # The condition is asked once more than it holds.
                self._run(called(op, "condition"), times * (count + 1), invariant),
            ]
        if op.opcode == "conditional":
            # Which branch runs is known only with the data.
            branches = [self._run(branch, times, unknown) for branch in op.calls]
            return [max(branches, key=self._result_bytes)]
        # The bodies of fusions and reductions are not followed: they are part of this instruction.
        if op.opcode in ("call", "async-start"):
            return [self._run(name, times, arguments(frame, op)) for name in op.calls]
        return []

    def _trips(self, frame: Frame, loop: Instruction) -> int:
        """Trips of a loop; ValueError where neither its text nor `otherwise` tells them."""
        count = trips(frame, loop)
        if count is None:
            count = self.otherwise
        if count is None:
            where = loop.op_name or "no op_name"
            raise ValueError(
                f"the loop {loop.name} ({where}) runs a number of times that its text does not tell"
            )
        return count

    def _result_bytes(self, counts: Mapping[str, int]) -> int:
        """Bytes of all results of computations that run so often."""
        return sum(
            n * op.nbytes
            for name, n in counts.items()
            for op in self.computations[name].instructions.values()
        )

    def run(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that a step runs, with its computation and how often."""
        for name, times in self.executions.items():
            for op in self.computations[name].instructions.values():
                yield self.computations[name], op, times
