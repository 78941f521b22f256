"""The workdir of a run opened as a checkpoint, and the adapters that a run trained, on their
own."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import tree
from research.data.chat import end_of_turn
from research.data.tokenizers import Tokenizer
from research.data.tokenizers.huggingface import CONFIG
from research.data.tokenizers.special import decoder_start
from research.data.tokenizers.tokenizer import RECORD
from research.experiment.config import Experiment
from research.files import read_json
from research.interop.restored import (
    OpenCheckpoint,
    load_run_tokenizer,
    read_experiment,
    restore_run,
    restore_trainable,
    specs_of,
)
from research.interop.storage import generation
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig
from research.models.model import Model
from research.objectives.choose import objective_class
from research.weights.rules import is_leaf, merge


def is_run(path: Path) -> bool:
    """True for the workdir of a run of research.train."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def run_as_checkpoint(workdir: Path, open_parent: OpenCheckpoint) -> Checkpoint:
    """A run's newest good checkpoint, its parameters in memory; adapters are merged into the dense
    weights of the base, which `open_parent` opens.

    ValueError for a folder that is no run, for adapters that cannot be merged into a weight (such
    as prompt tuning), and for adapters trained on a random base, for which no base is kept.
    """
    experiment = read_experiment(workdir)
    config, (trainable, base) = experiment.model, specs_of(experiment)
    # All that can be refused is refused before parameters are read, which takes its time.
    if base:
        _refuse_what_cannot_merge(workdir, config, experiment.init, trainable)
        if not experiment.init and not experiment.changes_base:
            raise ValueError(
                f"{workdir} is a trial on random parameters (no config.init), "
                "of which no checkpoint is left"
            )
    run = restore_run(workdir, open_parent)
    params = run.params
    if base:
        params = merge(params, experiment.precision.param_dtype)
    # On the host, where writers take them slice by slice.
    # Merging leaves arrays, but for weights that stay quantized, which become dense here.
    arrays = {path: np.asarray(_dense(leaf)) for path, leaf in tree.paths(params, is_leaf).items()}
    parameters = {
        path: Parameter(
            spec.shape, str(arrays[path].dtype), stacked_axes(spec), arrays[path].__getitem__
        )
        for path, spec in specs_by_path(config).items()
    }
    folder = workdir / "tokenizer"
    tokenizer = load_run_tokenizer(workdir, run.meta)
    special = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": generation.as_special(run_end_ids(experiment, tokenizer, workdir)),
        "pad_token_id": tokenizer.pad_id,
    }
    if config.kind == "encoder_decoder":
        special["decoder_start_token_id"] = decoder_start(tokenizer, config.decoder_start)
    special = {name: ids for name, ids in special.items() if ids is not None}
    files = _files(workdir, tokenizer, _end_of_turn(experiment, tokenizer))
    return Checkpoint(workdir, "run", config, parameters, special, files, tokenizer_folder=folder)


def left_out(checkpoint: Checkpoint) -> list[str]:
    """A line on what a run trained that is no part of its model; [] for none, or no run."""
    if checkpoint.format != "run":
        return []
    experiment = read_experiment(Path(checkpoint.source))
    own = objective_class(experiment.objective.name).own_specs(
        experiment.objective, experiment.model
    )
    return [f"the {name} head is for training alone and is left out" for name in own]


def run_generation(workdir: Path) -> dict[str, Any]:
    """What the checkpoint that a run started from says about generating: the run's
    generation_config.json, {} for a run without one."""
    file = workdir / generation.FILE
    values = read_json(file) if file.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no JSON object; restore it from a copy, or remove it")
    return values


def run_end_ids(experiment: Experiment, tokenizer: Tokenizer, workdir: Path) -> tuple[int, ...]:
    """The ids of the tokens that end what a run's model writes, each once: the end of a text, the
    end of a turn if it learnt chats, and those of the checkpoint that it started from."""
    ends = [tokenizer.eos_id, _end_of_turn(experiment, tokenizer)]
    # With a tokenizer of its own, the checkpoint's ids would mean other tokens.
    if not experiment.data.tokenizer:
        ends += generation.end_ids(run_generation(workdir))
    return tuple(dict.fromkeys(n for n in ends if n is not None))


def _end_of_turn(experiment: Experiment, tokenizer: Tokenizer) -> int | None:
    chats = objective_class(experiment.objective.name).answers_chats
    return end_of_turn(tokenizer) if chats and tokenizer.chat_template is not None else None


def _files(workdir: Path, tokenizer: Tokenizer, turn_end: int | None) -> dict[str, Path | bytes]:
    """The files beside a run's weights: those of its tokenizer, and generation_config.json.

    In tokenizer_config.json the end of a turn becomes the eos token, as in published chat models:
    programs that read no generation_config.json stop at that one.
    """
    folder = workdir / "tokenizer"
    files: dict[str, Path | bytes] = {  # named templates lie in a folder of their own
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    if (workdir / generation.FILE).is_file():
        files[generation.FILE] = workdir / generation.FILE
    if turn_end not in (None, tokenizer.eos_id) and CONFIG in files:
        values = read_json(folder / CONFIG)
        values["eos_token"] = tokenizer.decode([turn_end])
        files[CONFIG] = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        # The fingerprint in here covers the roles of tokens, of which one is another now.
        del files[RECORD]
    return files


def run_adapters(workdir: Path, config: ModelConfig) -> tuple[tree.Tree, str]:
    """(adapters as numpy arrays, spelling of the checkpoint they belong to) of a run.

    ValueError for a run that trained all parameters, for one whose adapters changed the base when
    they were initialised, and where `config` is a model of another shape than the run's.
    """
    experiment = read_experiment(workdir)
    trained_all = not specs_of(experiment)[1]
    if trained_all or experiment.changes_base:
        what = "changed its base at the start (config.lora.start)"
        raise ValueError(
            f"{workdir} {'trained all parameters' if trained_all else what}, "
            "so its adapters alone are nothing; open it as a checkpoint of its own"
        )
    # Adapters fit a base by its shapes; whether it is the same model nobody can tell from here.
    mine, theirs = (tree.paths(Model(c).specs()) for c in (experiment.model, config))
    # Paths of both, so that a layer that only one of the models has is named too.
    for path in sorted(mine.keys() | theirs.keys()):
        sizes = [getattr(specs.get(path), "shape", "nothing") for specs in (mine, theirs)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{workdir} is for a model with {path} {sizes[0]}, this one has {sizes[1]}; "
                f"load {experiment.init}"
            )
    adapters = restore_trainable(workdir, experiment)[1]
    return jax.tree.map(np.asarray, adapters), experiment.init


def _refuse_what_cannot_merge(
    workdir: Path, config: ModelConfig, init: str, trainable: tree.Tree
) -> None:
    # Prompts, prefixes and bottlenecks are parameters of their own, at paths that no weight has.
    known = specs_by_path(config)
    extra = sorted(path for path in tree.paths(trainable, is_leaf) if path not in known)
    if extra:
        raise ValueError(
            f"{workdir} has {extra[0]}, which no checkpoint of the model has a place for; "
            f"read it with --workdir, or as load({init!r}, adapter={str(workdir)!r})"
        )


def _dense(leaf: Any) -> jax.Array:
    return leaf if isinstance(leaf, jax.Array) else leaf.dense()
