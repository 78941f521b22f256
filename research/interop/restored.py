"""The parameters of a run, read back from its directory: the one reader of them, for going on with
a run, for using it and for converting it.

A run's checkpoints hold what was trained. What that lies on, the base, is read again from where it
came from: from the checkpoints too where the start of the adapters changed it, from the checkpoint
`config.init`, or from the seed where a trial had none.
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
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.axes import RULES, AxisRules
from research.tree import Tree
from research.tuning.method import QuantizeConfig, new_frozen, split_specs
from research.weights.rules import attach

OpenCheckpoint = Callable[[str], AbstractContextManager[Checkpoint]]


@dataclass(frozen=True)
class RunParameters:
    """What a run had trained at `step`, on the first device, and the base that it lies on, {} where
    everything was trained."""

    experiment: Experiment
    step: int
    trainable: Tree
    base: Tree

    @property
    def params(self) -> Tree:
        """What the run's model computes with."""
        return attach(self.base, self.trainable)


def read_experiment(workdir: Path) -> Experiment:
    """The resolved config of a run, of an older one too. ValueError where the folder has none."""
    file = workdir / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{workdir} is no run: it has no config.json; "
            "give the --workdir of a run of research.train"
        )
    try:
        values = read_json(file)
        values["model"]  # whatever else an older run's config lacks is at its default
        return from_json(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the config of a run ({error!r}); restore it from a copy"
        ) from None


def specs_of(experiment: Experiment) -> tuple[Tree, Tree]:
    """(trainable, base) of a run, as specs."""
    e = experiment
    return split_specs(Model(e.model).specs(), e.model, e.tune, e.lora, e.quantize)


def restore_run(
    workdir: Path, open_checkpoint: OpenCheckpoint, step: int | None = None
) -> RunParameters:
    """A run's parameters at its newest good checkpoint, or at `step`; nothing in there is changed.

    ValueError for a folder that is no run, a run without a good checkpoint, and a step that is not
    there.
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
    """(step, what a run had trained) at its newest good checkpoint, or at `step`."""
    return _restore(workdir, experiment, "trainable", specs_of(experiment)[0], step)


def read_base(
    experiment: Experiment,
    specs: Tree,
    checkpoint: Checkpoint | None,
    mesh: Mesh | None = None,
    rules: AxisRules = RULES,
    quantize: QuantizeConfig | None = None,
) -> Tree:
    """The base of a run with these specs, as it was before the first step: of the checkpoint, each
    array read straight onto its sharding and into its format, or without one from the seed.

    `quantize` is what the specs were quantized by, where that is not the experiment's.
    """
    e = experiment
    dtype = e.precision.compute_dtype
    wanted = abstract(specs, dtype, mesh, rules)
    if checkpoint is not None:
        return checkpoint.restore(wanted)
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

    precision = experiment.precision
    dtype = precision.param_dtype if key == "trainable" else precision.compute_dtype
    wanted = abstract(specs, dtype)
    step, arrays, _ = restore_params(workdir / "checkpoints", wanted, key=key, step=step)
    return step, arrays
