"""`Program`: the mesh, model, state and jitted step of an experiment.

Training, evaluation and `fit` all use it, so that `fit` predicts the program that runs.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from research import tree
from research.data.batch import check_documents
from research.experiment.config import Experiment
from research.models import pipeline, spec
from research.models.config import ModelConfig
from research.models.model import Model
from research.objectives.choose import Objective
from research.parallel.axes import check_rules, merge_rules, parts, unsplit
from research.parallel.mesh import make_mesh, place_batch, row_part
from research.run.feed import Feed
from research.run.teacher import with_teacher
from research.training import optimizer as optimizers
from research.training.skipping import skipping
from research.training.state import TrainState, abstract_state, device_bytes, new_state, to_stored
from research.training.step import train_step
from research.tuning.held import held_trees
from research.tuning.method import check_groups, split_specs
from research.weights.rules import TEACHER


@dataclass(frozen=True)
class Program:
    """What an experiment compiles, without its data.

    Enter the mesh before calling or lowering its functions:

        with jax.set_mesh(program.mesh):
            state, metrics = program.train_step(program.init(), batch)
    """

    experiment: Experiment
    objective: Objective
    mesh: Mesh

    @cached_property
    def model(self) -> Model:
        """The model with the precision, execution and sharding rules of the experiment."""
        e = self.experiment
        return Model(e.model, e.precision, e.execution, self.rules)

    @property
    def trainable_specs(self) -> tree.Tree:
        """Specs of the parameters that have gradients and optimizer state."""
        return self._split_specs[0]

    @property
    def held_specs(self) -> dict[str, tree.Tree]:
        """Specs of the parameters that are not trained, in named trees: "base", which is {} if all
        parameters are trained, and the trees of `Objective.holds`."""
        trainable, base = self._split_specs
        own = [name for name in self.objective.holds if name != TEACHER]
        others = held_trees(own, trainable)
        if self.teacher is not None:
            others[TEACHER] = replace(self.model, config=self.teacher).specs()
        return {"base": base, **others}

    @property
    def teacher(self) -> ModelConfig | None:
        """The shape of the frozen model that a distillation learns from; None without one."""
        return getattr(self.objective, TEACHER, None)

    @property
    def abstract_held(self) -> dict[str, tree.Tree]:
        """Shapes and shardings of the trees of `held_specs`. The base and a teacher are in the
        compute type, the others, which are copies of trained parameters, in the parameter type."""
        precision = self.experiment.precision
        # These are only ever read, so the bits beyond the compute type would be of no use.
        types = {"base": precision.compute_dtype, TEACHER: precision.compute_dtype}
        return {
            name: spec.abstract(
                specs, types.get(name, precision.param_dtype), self.mesh, self.rules
            )
            for name, specs in self.held_specs.items()
        }

    @cached_property
    def _split_specs(self) -> tuple[tree.Tree, tree.Tree]:
        e = self.experiment
        trainable, base = split_specs(self.model.specs(), e.model, e.tune, e.lora, e.quantize)
        return {**trainable, **self.objective.own_specs(e.objective, e.model)}, base

    @cached_property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """Mesh axes by logical axis: the default rules with the changes of `config.axes`."""
        return merge_rules(self.experiment.axes)

    @cached_property
    def batch_size(self) -> int:
        """Rows of a step over all devices."""
        return self.experiment.data.global_batch(self.mesh.size)

    @property
    def part(self) -> tuple[int, int]:
        """Which rows of a batch this process gives, see `row_part`."""
        return row_part(self.mesh, self.rules, self.batch_size)

    @property
    def stages(self) -> int:
        """The stages of a pipeline that the stack's layers are spread over, 1 for none."""
        return parts("layers", self.mesh, self.rules)

    @property
    def rows_of_stages(self) -> int:
        """Rows of a micro-batch of `train.accumulate` that the stages of a pipeline run
        together."""
        rows = self.batch_size // self.experiment.train.accumulate
        return rows * self.stages // parts("batch", self.mesh, self.rules)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Gradients to updates, with clipping, decay and schedule."""
        return self._optimizer_and_schedule[0]

    @cached_property
    def schedule(self) -> Any:
        """A function from the number of steps done to the learning rate of the next step."""
        return self._optimizer_and_schedule[1]

    @cached_property
    def _optimizer_and_schedule(self):
        # The optimizer tells matrices from vectors by their logical axes.
        axes = jax.tree.map(lambda s: s.axes, self.trainable_specs)
        e = self.experiment
        config, ratio = e.optimizer, e.lora.learning_rate_ratio
        if ratio != 1:  # LoRA+ (arXiv:2402.12354): a higher rate for the b matrices
            others = config.learning_rate_rules or ((".*", 1.0),)
            config = replace(config, learning_rate_rules=((r".*/b", ratio), *others))
        made, schedule = optimizers.make(config, axes, e.train.steps, self.trainable_specs)
        return skipping(made, e.skip) if e.skip.on else made, schedule

    def make_state(self) -> TrainState:
        """The state before the first step, from `train.seed`, without a base. Call it under `jit`,
        so that each device makes only its own part of every array."""
        e = self.experiment
        params = spec.initialize(
            jax.random.key(e.train.seed),
            self.trainable_specs,
            e.precision.param_dtype,
            self.mesh,
            self.rules,
        )
        return new_state(params, {"base": {}}, self.optimizer, e.train.seed)

    @cached_property
    def baseless_state(self) -> TrainState:
        """Shapes and shardings of `make_state()`."""
        with jax.set_mesh(self.mesh):
            return abstract_state(self.make_state, self.mesh)

    @cached_property
    def state(self) -> TrainState:
        """Shapes and shardings of the whole state."""
        return replace(self.baseless_state, held=self.abstract_held)

    def to_stored(self, state: TrainState) -> dict[str, tree.Tree]:
        """The entries of a state that a checkpoint stores, by name; leaves are arrays or shapes."""
        # A base that can be read again from `init` would only make each checkpoint larger.
        return to_stored(state, with_base=self.experiment.changes_base)

    def init(self) -> TrainState:
        """`make_state()` on the devices."""
        return jax.jit(self.make_state, out_shardings=_places(self.baseless_state))()

    def check_bytes(self, state: TrainState) -> None:
        """ValueError unless the first device holds exactly the bytes of state that the shardings
        predict."""
        # An initializer that ignores its sharding leaves a whole copy on every device, which shows
        # nowhere else until the memory of a larger model runs out.
        actual = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
        predicted = device_bytes(self.state)
        if actual != predicted:
            raise ValueError(
                f"a device holds {actual:,} bytes of state, its shardings predict {predicted:,}"
            )

    @cached_property
    def train_step(self) -> Any:
        """Jitted (state, batch) -> (state, metrics), see `research.training.step.train_step`. The
        state is donated: its arrays cannot be used after the call."""
        step = partial(
            train_step,
            model=self.model,
            objective=self.objective,
            optimizer=self.optimizer,
            accumulate=self.experiment.train.accumulate,
        )
        # The old state's buffers become the new state's, so a step needs no second copy.
        return jax.jit(step, donate_argnums=0)

    def whole_dimensions(self) -> list[str]:
        """Dimensions that stay whole because the mesh does not divide them, each once, as in
        "vocab 50257 over tensor:2"."""
        lines_by_parameter = [
            unsplit(s.axes, s.shape, self.mesh, self.rules)
            for s in jax.tree.leaves(self.model.specs())
        ]
        return sorted({line for lines in lines_by_parameter for line in lines})


def make_program(
    experiment: Experiment, objective: Objective, devices: list | None = None
) -> Program:
    """The program of an experiment on `devices`, by default all there are.

    ValueError if mesh, batch size, accumulation, sequence length or quantization groups do not fit
    each other.
    """
    objective = with_teacher(experiment, objective)
    program = Program(experiment, objective, make_mesh(experiment.mesh, devices))
    check_rules(program.rules, program.mesh)
    spec.shardings(program.model.specs(), program.mesh, program.rules)  # for its errors
    # Every micro-batch is spread over all devices that split the batch, so each needs a whole
    # number of rows per device.
    batch, accumulate = program.batch_size, experiment.train.accumulate
    split = parts("batch", program.mesh, program.rules)
    if batch % (split * accumulate):
        raise ValueError(
            f"a batch of {batch} must be a multiple of {split} (devices that split it) times "
            f"{accumulate} (train.accumulate); set config.data.batch_size"
        )
    if accumulate > 1 and objective.whole_batch:
        raise ValueError(
            f"train.accumulate={accumulate} cuts a batch whose texts the loss compares with each "
            "other, so the loss would change; set config.train.accumulate=1"
        )
    c, asked, stages = experiment.model, experiment.execution.micro_batches, program.stages
    pipeline.check(c, asked, program.rows_of_stages, stages)
    check_groups(program.model.specs(), program.held_specs["base"], program.mesh, program.rules)
    # Context parallelism gives each device an equal part of every sequence.
    length, split = experiment.data.sequence_length, parts("length", program.mesh, program.rules)
    if length % split:
        over = ", ".join(f"{name}:{program.mesh.shape[name]}" for name in program.rules["length"])
        raise ValueError(
            f"data.sequence_length={length} must be a multiple of {over}; "
            "set config.data.sequence_length"
        )
    return program


def take_step(
    program: Program, state: TrainState, feed: Feed
) -> tuple[TrainState, dict[str, jax.Array]]:
    """(state, metrics) after one step on the feed's next batch; the state is donated. ValueError
    for rows of more documents than `execution.documents`."""
    feed.offer(state)
    rows = next(feed)[1]
    check_documents(rows, program.experiment.execution.documents)
    batch = place_batch(rows, program.mesh, program.rules, program.batch_size)
    return program.train_step(state, batch)


def _places(abstract: tree.Tree) -> tree.Tree:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
