"""What the sampling of a run's own texts takes of a device, in which the run's state stays.

A run that learns from its own texts alternates: it writes texts with the weights of its state, then
takes steps on them. Its peak is the higher of the two.
"""

from dataclasses import dataclass, replace

import jax

from research.fit.decode import Decode, plan_rollouts
from research.fit.report import GIB, Fit
from research.fit.targets import Target
from research.objectives.written_config import WrittenConfig
from research.run.program import Program


@dataclass(frozen=True)
class SampledTexts:
    """The decoding of a run's texts on a target, traced and not compiled.

    lowered    the loop that writes them
    decode     its arguments
    copied     bytes of the parameters that are there a second time, in the layout of decoding
    """

    lowered: jax.stages.Lowered
    decode: Decode
    target: Target

    @property
    def copied(self) -> int:
        """Only a CPU copies parameters for decoding; elsewhere those of the state are read."""
        return self.decode.params_bytes if self.target.platform == "cpu" else 0

    def beside(self, fit: Fit) -> Fit:
        """`fit`, of the train step, with `temporaries` raised to what sampling takes beside the
        state where that is more, and a line that says so."""
        memory = self.lowered.compile(self.target.compiler_options).memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
        # The loop's parameters are the state's own, or the copy of them.
        held = fit.params + fit.frozen + fit.optimizer
        peak = held + needed - self.decode.params_bytes + self.copied
        line = (
            f"sampling {self.decode.tokens} texts at once takes {peak / GIB:.2f} GiB, "
            f"{self.decode.cache_bytes / GIB:.2f} GiB of it keys and values; the train step takes "
            f"{fit.total / GIB:.2f} GiB"
        )
        more = max(0, peak - fit.total)
        return replace(fit, temporaries=fit.temporaries + more, notes=[*fit.notes, line])


def sampled_texts(program: Program, target: Target) -> SampledTexts | None:
    """The sampling of a run; None where the objective writes no texts."""
    settings = program.experiment.objective
    if not isinstance(settings, WrittenConfig):
        return None
    decode = plan_rollouts(program, target, program.batch_size * settings.updates)
    with jax.set_mesh(decode.mesh):
        return SampledTexts(decode.traced.lower(), decode, target)
