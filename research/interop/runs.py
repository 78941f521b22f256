"""The workdir of a run as a checkpoint, and the adapters that a run has trained for another one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import tree
from research.data.tokenizers import load_tokenizer
from research.files import read_json
from research.interop.storage.checkpoint import (
    Checkpoint,
    Parameter,
    specs_by_path,
    stacked_axes,
)
from research.models.config import ModelConfig, config_from_json
from research.models.model import Model
from research.models.spec import abstract
from research.precision import Precision
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, split_specs
from research.weights.rules import attach, is_leaf, merge


def is_run(path: Path) -> bool:
    """Whether a path is the workdir of a run."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def open_run(workdir: Path, open_parent: Callable[[str], Checkpoint]) -> Checkpoint:
    """A run's newest good checkpoint, in memory; one of adapters with these merged into the
    parent's weights, dense.

    ValueError for what is no run, and for adapters that are no change of a weight.
    """
    run = _read(workdir)
    _, params = _restored(run, run.trainable, "trainable")
    if run.frozen:
        extra = sorted(
            path for path in tree.paths(params, is_leaf) if path not in specs_by_path(run.config)
        )
        if extra:
            raise ValueError(
                f"{workdir} has {extra[0]}, which no checkpoint of the model has a place for; read "
                "it with --workdir, or "
                f"as load({run.init!r}, adapter={str(workdir)!r})"
            )
        params = merge(attach(_frozen(run, open_parent), params), run.precision.param_dtype)
    arrays = {path: np.asarray(_dense(leaf)) for path, leaf in tree.paths(params, is_leaf).items()}
    parameters = {
        path: Parameter(
            spec.shape, str(arrays[path].dtype), stacked_axes(spec), arrays[path].__getitem__
        )
        for path, spec in specs_by_path(run.config).items()
    }
    folder = workdir / "tokenizer"
    tokenizer = load_tokenizer(folder)
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    special = {name: token_id for name, token_id in roles.items() if token_id is not None}
    files = {file.name: file for file in sorted(folder.iterdir())}
    return Checkpoint(
        workdir, "run", run.config, parameters, special, files, tokenizer_folder=folder
    )


def run_adapters(workdir: Path, config: ModelConfig) -> tuple[tree.Tree, str]:
    """The adapters that a run has trained, as numpy arrays, and the checkpoint that they are for.

    ValueError for a run of all parameters, one whose start changed the base, and a model of another
    shape than `config`.
    """
    run = _read(workdir)
    if not run.frozen or run.keeps_frozen:
        what = (
            "trained all parameters"
            if not run.frozen
            else "changed its base at the start (config.lora.start)"
        )
        raise ValueError(
            f"{workdir} {what}, so its adapters alone are nothing; open it as a checkpoint of its "
            "own"
        )
    mine, theirs = (tree.paths(Model(c).specs()) for c in (run.config, config))
    for path in sorted(mine.keys() | theirs.keys()):
        sizes = [getattr(specs.get(path), "shape", "nothing") for specs in (mine, theirs)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{workdir} is for a model with {path} {sizes[0]}, this one has {sizes[1]}; load "
                f"{run.init}"
            )
    return jax.tree.map(np.asarray, _restored(run, run.trainable, "trainable")[1]), run.init


@dataclass(frozen=True)
class _Run:
    """What a run's config says of its parameters."""

    workdir: Path
    config: ModelConfig
    precision: Precision
    init: str
    trainable: tree.Tree
    frozen: tree.Tree
    keeps_frozen: bool


def _read(workdir: Path) -> _Run:
    try:
        record = read_json(workdir / "config.json")
        config, precision = config_from_json(record["model"]), Precision(**record["precision"])
        tune, lora, quantize = (
            kind(**_tuples(record.get(name, {})))
            for name, kind in (
                ("tune", TuneConfig),
                ("lora", LoraConfig),
                ("quantize", QuantizeConfig),
            )
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{workdir / 'config.json'} is not the config of a run ({error!r})"
        ) from None
    trainable, frozen = split_specs(Model(config).specs(), config, tune, lora, quantize)
    keeps = tune.method == "lora" and lora.start != "default"
    return _Run(workdir, config, precision, record.get("init", ""), trainable, frozen, keeps)


def _restored(run: _Run, specs: tree.Tree, key: str) -> tuple[int, tree.Tree]:
    from research.training.checkpoint import (
        restore_params,  # Orbax takes longer to import than all else here
    )

    dtype = run.precision.param_dtype if key == "trainable" else run.precision.compute_dtype
    step, params, _ = restore_params(run.workdir / "checkpoints", abstract(specs, dtype), key=key)
    return step, params


def _frozen(run: _Run, open_parent: Callable[[str], Checkpoint]) -> tree.Tree:
    if run.keeps_frozen:
        return _restored(run, run.frozen, "frozen")[1]
    if not run.init:
        raise ValueError(
            f"{run.workdir} is a trial on random parameters (no config.init), of which no "
            "checkpoint is left"
        )
    with open_parent(run.init) as parent:
        return parent.restore(abstract(run.frozen, run.precision.compute_dtype))


def _dense(leaf: Any) -> jax.Array:
    return leaf if isinstance(leaf, jax.Array) else leaf.dense()


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass, as JSON gives them back."""
    return {
        name: tuple(map(tuple, value)) if isinstance(value, list) else value
        for name, value in values.items()
    }
