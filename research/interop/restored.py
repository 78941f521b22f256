"""The only reader of a run's parameters: for resuming it, for using its model and for converting
it.

A run's checkpoints hold the parameters that were trained. The frozen ones, the base, are read again
from their origin: the checkpoint `config.init`; the seed, for a trial without one; or the run's own
checkpoints, if initialising the adapters changed the base (PiSSA, OLoRA, LoftQ).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from research.experiment.config import Experiment, from_json
from research.files import read_json
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.grow import grow
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.axes import RULES, AxisRules
from research.tree import Tree
from research.tuning.method import QuantizeConfig, new_frozen, split_specs
from research.weights.rules import attach

OpenCheckpoint = Callable[[str], AbstractContextManager[Checkpoint]]


@dataclass(frozen=True)
class RunParameters:
    """A run's trained parameters at `step` and its frozen base, {} where everything was trained;
    both on the first device."""

    experiment: Experiment
    step: int
    trainable: Tree
    base: Tree

    @property
    def params(self) -> Tree:
        """The whole tree that the run's model computes with: the base with adapters attached."""
        return attach(self.base, self.trainable)


def read_experiment(workdir: Path) -> Experiment:
    """The resolved config of a run; fields that an older run did not have yet are at their
    defaults. ValueError where the folder has no config.json, or one that is not a run's."""
    file = workdir / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{workdir} is no run: it has no config.json; "
            "give the --workdir of a run of research.train"
        )
    try:
        values = read_json(file)
        # A run's config has a "model"; without this line any JSON object would pass for one, as
        # every other field has a default.
        values["model"]
        return from_json(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the config of a run ({error!r}); restore it from a copy"
        ) from None


def specs_of(experiment: Experiment) -> tuple[Tree, Tree]:
    """(trainable, base): the parameter specs of a run, without reading any array."""
    e = experiment
    return split_specs(Model(e.model).specs(), e.model, e.tune, e.lora, e.quantize)


def restore_run(
    workdir: Path, open_checkpoint: OpenCheckpoint, step: int | None = None
) -> RunParameters:
    """A run's parameters at its newest good checkpoint, or at `step`; the workdir is only read.

    `open_checkpoint` opens `config.init`, if the base comes from there. ValueError for a folder
    that is no run, for a run without a good checkpoint, and for a step that was not kept.
    """
    experiment = read_experiment(workdir)
    _, base_specs = specs_of(experiment)
    step, trainable = restore_trainable(workdir, experiment, step)
    base: Tree = {}
    if base_specs and experiment.changes_base:
        base = _restore(workdir, experiment, "frozen", base_specs, step)[1]
    elif base_specs and experiment.init:
        with open_checkpoint(experiment.init) as checkpoint:
            base = read_base(experiment, base_specs, checkpoint)
    elif base_specs:
        base = read_base(experiment, base_specs, None)
    return RunParameters(experiment, step, trainable, base)


def restore_trainable(
    workdir: Path, experiment: Experiment, step: int | None = None
) -> tuple[int, Tree]:
    """(step, trained parameters) of a run at its newest good checkpoint, or at `step`."""
    return _restore(workdir, experiment, "trainable", specs_of(experiment)[0], step)


def read_base(
    experiment: Experiment,
    specs: Tree,
    checkpoint: Checkpoint | None,
    mesh: Mesh | None = None,
    rules: AxisRules = RULES,
    quantize: QuantizeConfig | None = None,
) -> Tree:
    """A run's base as it was before the first step.

    With a `checkpoint` each array is read straight onto its sharding and into its weight format;
    without one the arrays are made from `config.train.seed`. Tables are grown to the experiment's
    tokens and positions. `quantize` is what `specs` were quantized by, if that is not the
    experiment's.
    """
    e = experiment
    dtype = e.precision.compute_dtype
    wanted = abstract(specs, dtype, mesh, rules)
    if checkpoint is not None:
        return grow(checkpoint, e.model)[0].restore(wanted)
    # One program that draws and quantizes, so that the dense arrays are its temporaries.
    make = partial(
        new_frozen,
        Model(e.model).specs(),
        specs,
        e.quantize if quantize is None else quantize,
        e.train.seed,
        dtype,
        mesh,
        rules,
    )
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))()


def _restore(
    workdir: Path, experiment: Experiment, key: str, specs: Tree, step: int | None
) -> tuple[int, Tree]:
    from research.training.checkpoint import restore_params  # importing Orbax takes a second

    # A base is never updated, so it is kept in the type it is computed in.
    precision = experiment.precision
    dtype = precision.param_dtype if key == "trainable" else precision.compute_dtype
    wanted = abstract(specs, dtype)
    step, arrays, _ = restore_params(workdir / "checkpoints", wanted, key=key, step=step)
    return step, arrays
