"""The only reader of a run's parameters: for resuming it, for using its model and for converting
it.

A run's checkpoints hold the parameters that were trained. The frozen ones, the base, are read again
from their origin: the checkpoint `config.init`; the seed, for a trial without one; or the run's own
checkpoints, if initialising the adapters changed the base (PiSSA, OLoRA, LoftQ).
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from research.data.documents import digest
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.experiment.config import Experiment, differences, from_json
from research.files import read_json
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.grow import grow
from research.interop.strangers import name_stranger
from research.models.model import Model
from research.models.spec import abstract
from research.objectives.choose import objective_class
from research.parallel.axes import RULES, AxisRules
from research.tree import Tree
from research.tuning.method import QuantizeConfig, new_frozen, split_specs
from research.weights.rules import attach

OpenCheckpoint = Callable[[str], AbstractContextManager[Checkpoint]]


@dataclass(frozen=True)
class RunParameters:
    """A run's trained parameters at `step` and its frozen base, {} where everything was trained;
    both on the first device. `meta` is what the checkpoint says about its run."""

    experiment: Experiment
    step: int
    trainable: Tree
    base: Tree
    meta: Mapping[str, Any]

    @property
    def params(self) -> Tree:
        """The whole tree that the run's model computes with: the base with adapters attached."""
        return attach(self.base, self.trainable)


def read_experiment(workdir: Path) -> Experiment:
    """The resolved config of a run; fields that an older run did not have yet are at their
    defaults. ValueError where the folder has no config.json, or one that is not a run's."""
    file = workdir / "config.json"
    if not file.is_file():
        stranger = name_stranger(workdir, str(workdir))
        what = f"it is {stranger.what}" if stranger else "it has no config.json"
        raise ValueError(
            f"{workdir} is no run: {what}; give the --workdir of a run of research.train"
        )
    try:
        values = read_json(file)
        if "model_type" in values and "model" not in values:
            raise ValueError(
                f"{workdir} is no run: its config.json is of a {values['model_type']} checkpoint; "
                f"give it as --checkpoint={workdir}"
            )
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
    that is no run, for a run without a good checkpoint, for a step that was not kept, and if
    config.json is not the one that the step was saved with.
    """
    experiment = read_experiment(workdir)
    trainable_specs, base_specs = specs_of(experiment)
    step, trainable, meta = _restore(workdir, experiment, "trainable", trainable_specs, step)
    base: Tree = {}
    # A run without a base trained everything. A base that the start of the adapters changed is the
    # run's own; any other is where it was read from, or is drawn from the seed again.
    if base_specs and experiment.changes_base:
        base = _restore(workdir, experiment, "frozen", base_specs, step)[1]
    elif base_specs and experiment.init:
        with open_checkpoint(experiment.init) as checkpoint:
            base = read_base(experiment, base_specs, checkpoint)
    elif base_specs:
        base = read_base(experiment, base_specs, None)
    _compare_base(workdir, experiment, base, meta)
    return RunParameters(experiment, step, trainable, base, meta)


def restore_trainable(
    workdir: Path, experiment: Experiment, step: int | None = None
) -> tuple[int, Tree]:
    """(step, trained parameters) of a run at its newest good checkpoint, or at `step`."""
    return _restore(workdir, experiment, "trainable", specs_of(experiment)[0], step)[:2]


def load_run_tokenizer(workdir: Path, meta: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a run, whose checkpoint says `meta`.

    ValueError if it gives other ids than the one that the run was trained with. Another chat
    template, which one may want to try, is a warning.
    """
    folder = workdir / "tokenizer"
    tokenizer = load_tokenizer(folder)
    prints = tokenizer_prints(tokenizer)
    # An older version has recorded no template.
    changed = [name for name, value in prints.items() if meta.get(name, value) != value]
    if "tokenizer" in changed:
        raise ValueError(
            f"the tokenizer in {folder} is not the one that the run was trained with; "
            "restore the folder from a copy"
        )
    if changed:
        logging.warning("the chat template in %s is not the one that the run learnt", folder)
    return tokenizer


def tokenizer_prints(tokenizer: Tokenizer) -> dict[str, str]:
    """Digests of "tokenizer", the ids that it gives to texts, and of "chat_template", which it
    does not cover."""
    template = tokenizer.chat_template or ""
    return {"tokenizer": tokenizer.fingerprint, "chat_template": digest(template)}


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
    # Grown alike at every start, so that a resumed run has the base that it began with.
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
) -> tuple[int, Tree, dict[str, Any]]:
    from research.training.checkpoint import restore_params  # importing Orbax takes a second

    # A base is never updated, so it is kept in the type it is computed in.
    precision = experiment.precision
    dtype = precision.param_dtype if key == "trainable" else precision.compute_dtype
    own: Tree = {}
    if key == "trainable":
        objective = objective_class(experiment.objective.name)
        own = objective.own_specs(experiment.objective, experiment.model)
    wanted = abstract({**specs, **own}, dtype)
    step, arrays, meta = restore_params(workdir / "checkpoints", wanted, key=key, step=step)
    _refuse_another_config(workdir, experiment, step, meta)
    return step, {name: part for name, part in arrays.items() if name not in own}, meta


# The fields of a config that decide what the parameters of a run compute, and on which texts.
_COMPUTED = (
    "model.",
    "tune.",
    "lora.",
    "quantize.",
    "precision.",
    "objective.name",
    "data.sequence_length",
)


def _refuse_another_config(
    workdir: Path, experiment: Experiment, step: int, meta: Mapping[str, Any]
) -> None:
    """ValueError if config.json was changed after `step` was saved. Parameters have the same shapes
    under another `rope_theta` or `norm_eps`, and would compute something else."""
    file = workdir / "config.json"
    if "config" not in meta:
        logging.warning("step %d does not say with which config it was saved: %s", step, file)
        return
    changes = differences(meta["config"], experiment.to_json())
    lines = [line for name, line in changes.items() if name.startswith(_COMPUTED)]
    if lines:
        raise ValueError(
            f"{file} is not as it was when step {step} was saved ({'; '.join(lines)}); "
            "set these fields back"
        )


def _compare_base(
    workdir: Path, experiment: Experiment, base: Tree, meta: Mapping[str, Any]
) -> None:
    """Warns if the frozen weights have other bits than when the run was trained. That is no error:
    quantizing on another kind of device may round otherwise."""
    from research.training.fingerprint import combined

    if base and meta.get("base") not in (None, combined(base)):
        source = experiment.init or "the seed"
        logging.warning("%s was trained on other bits than the weights of %s now", workdir, source)
