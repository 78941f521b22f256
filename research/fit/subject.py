"""What `measure` can compile: the train step, and the decoding of one token a row."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from research.experiment.config import Experiment
from research.fit import flops as counts
from research.fit.compile import plan, trace
from research.fit.decode import plan_decode
from research.fit.minimal_traffic import least_bytes
from research.fit.sampling import SampledTexts, sampled_texts
from research.fit.targets import Target
from research.training.flops import decode_flops
from research.training.state import device_bytes


class Subject(Protocol):
    """A step of an experiment, traced for the devices of a target.

    step         its name in `Fit.step`
    trains       whether it has gradients; a step that has none is a turn of a loop without end
    device_bytes what a device holds between steps: "params" that are trained, "frozen" ones and
                 the "optimizer" state
    tokens       of a step over all devices
    model_flops  what the model needs for them
    least_bytes  of collectives that the sharding needs; None where it is not counted
    sampling     the decoding of the texts that it trains on; None where the data have them
    """

    step: str
    trains: bool
    jaxpr: Any
    mesh: Mesh
    device_bytes: dict[str, int]
    tokens: int
    model_flops: float
    least_bytes: int | None
    sampling: SampledTexts | None

    def lower(self) -> jax.stages.Lowered:
        """The step, lowered and not compiled."""
        ...

    def recompute_ratio(self, executed: Mapping[str, float]) -> float | None:
        """Executed FLOPs by type over three forwards; None for a step without a backward pass."""
        ...


class TrainStep:
    """The step that `research.train` runs."""

    step: str = "train"
    trains: bool = True
    least_bytes: int | None
    sampling: SampledTexts | None

    def __init__(self, experiment: Experiment, target: Target):
        self._program = program = plan(experiment, target)
        # Traced once, for the FLOPs and for the lowering.
        self._traced = trace(program)
        self.jaxpr, self.mesh = self._traced.jaxpr, program.mesh
        # The state of a program is abstract: shapes, types and shardings.
        state = program.state
        self.device_bytes = {
            "params": device_bytes(state.trainable),
            "frozen": device_bytes(state.held),
            "optimizer": device_bytes(state.optimizer),
        }
        self.tokens = program.batch_size * experiment.data.sequence_length
        self.model_flops = counts.model(program)
        self.least_bytes = least_bytes(program)
        self.sampling = sampled_texts(program, target)

    def lower(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self._traced.lower()

    def recompute_ratio(self, executed: Mapping[str, float]) -> float:
        return counts.recompute_ratio(self._program, executed)


class DecodeStep:
    """A turn of generation's loop over a full cache, which stands where training has its optimizer.

    No collectives are counted as needed: generation gathers what training stores split.
    """

    step: str = "decode"
    trains: bool = False
    least_bytes: int | None = None
    sampling: SampledTexts | None = None

    def __init__(self, experiment: Experiment, target: Target):
        self._decode = decode = plan_decode(experiment, target)
        self.jaxpr, self.mesh, self.tokens = decode.jaxpr, decode.mesh, decode.tokens
        self.device_bytes = {
            # Nothing is trained while decoding: all parameters count as frozen.
            "params": 0,
            "frozen": decode.params_bytes,
            "optimizer": decode.cache_bytes,
        }
        self.model_flops = decode_flops(experiment.model, decode.tokens, decode.length)

    def lower(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self._decode.traced.lower()

    def recompute_ratio(self, executed: Mapping[str, float]) -> None:
        return None


SUBJECTS: Mapping[str, Callable[[Experiment, Target], Subject]] = {
    "train": TrainStep,
    "decode": DecodeStep,
}
