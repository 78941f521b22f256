"""The train step of a config, compiled for a target: the very function that training jits."""

from typing import Any

import jax
import numpy as np

from research.data.layouts import LAYOUTS
from research.experiment.config import Experiment
from research.fit.lightest import is_open, settled
from research.fit.objective import objective_without_data
from research.fit.targets import Target, parse_target
from research.objectives.soft_tokens import media_window
from research.parallel.mesh import batch_sharding
from research.run.program import Program, make_program
from research.run.resolve import from_config


def compile_step(config: Any, target: str | Target) -> jax.stages.Compiled:
    """The compiled (state, batch) -> (state, metrics) of a ConfigDict or an `Experiment`, with what
    it leaves open chosen for the target; nothing is allocated.

    ValueError for a config that is wrong, a target that is unknown or whose compiler is not
    installed, and a mesh or batch that does not fit the target's devices.
    """
    experiment = config if isinstance(config, Experiment) else from_config(config)
    target = parse_target(target) if isinstance(target, str) else target
    program = plan(experiment, target)  # for its errors
    if is_open(experiment):
        program = plan(settled(experiment, target, target.capacity_bytes), target)
    return compile_program(program, target)


def compile_program(program: Program, target: Target) -> jax.stages.Compiled:
    """The compiled train step of a program that `plan` made."""
    with jax.set_mesh(program.mesh):
        # Under the mesh: explicit shardings of the program name its axes.
        lowered = trace(program).lower()
    return lowered.compile(target.compiler_options)


def trace(program: Program) -> jax.stages.Traced:
    """The train step traced, to count its FLOPs or to lower it."""
    with jax.set_mesh(program.mesh):
        return program.train_step.trace(program.state, abstract_batch(program))


def plan(experiment: Experiment, target: Target) -> Program:
    """The program of an experiment on a target's devices."""
    # The same function that training calls, on devices that need not exist.
    return make_program(experiment, objective_without_data(experiment), target.devices())


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes, types and shardings."""
    length = program.objective.window_length(program.experiment.data.sequence_length)
    # A window of any kind of data: packed texts and conversations, or the fields of records. The
    # objective reads the fields it needs and ignores the rest.
    names = ["tokens", "segments", "positions", "assistant", "liked", "reference"]
    names += ["token_types", "labels", "labelled"]
    for field in LAYOUTS[program.objective.reads].fields:
        names += [field, f"{field}_segments", f"{field}_positions"]
    window = {name: np.ones(length, np.int32) for name in names}
    window |= {"label": np.zeros(1, np.int32), "ends": np.zeros(2, np.int32)}
    reads, model = program.objective.reads, program.experiment.model
    if LAYOUTS[reads].media:
        window |= media_window(model, reads, length)
    # The objective itself makes an example, so shapes and types here are those of training.
    example = program.objective.example(window, np.random.default_rng(0))
    fields = {}
    for name, row in example.items():
        shape = (program.batch_size, *row.shape)
        sharding = batch_sharding(shape, program.mesh, program.rules)
        fields[name] = jax.ShapeDtypeStruct(shape, row.dtype, sharding=sharding)
    return fields
