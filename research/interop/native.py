"""Our own checkpoint folders: model.json, and safetensors named by the paths of the parameter tree,
layers stacked as in memory.
"""

import dataclasses
from pathlib import Path

from research.files import read_json, write_json
from research.interop.huggingface.folder import companions, tokenizer_folder
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter
from research.interop.storage.safetensors import (
    SHARD_BYTES,
    open_safetensors,
    write_safetensors,
)
from research.interop.storage.slices import StoredRows
from research.interop.storage.tensors import Tensor
from research.models.config import config_from_json

RECORD = "model.json"
STEM = "params"  # not "model", the name in Hugging Face folders, whose tensors are other ones
_FORMAT = "graft 1"  # of model.json; readers refuse any other


def open_native(folder: Path) -> Checkpoint:
    """The checkpoint in a folder that `write_native` wrote, its weights unread until asked for.
    ValueError for a damaged folder and for one of another format version."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(
            f"{folder / RECORD} is not of the format {_FORMAT!r}; convert the model again"
        )
    try:
        config = config_from_json(record["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / RECORD} does not describe a model ({error}); convert the model again"
        ) from None
    tensors = open_safetensors(folder, STEM)
    specs = specs_by_path(config)
    # A header that fits the config exactly is what lets parameters be read later, slice by slice.
    # Both ways: a tensor left over is as much a sign of another model as one that is missing.
    for path in sorted(specs.keys() ^ tensors.names.keys()):
        raise ValueError(
            f"{folder} {'lacks' if path in specs else 'has no place for'} {path}; convert the "
            "model again"
        )
    for path, spec in specs.items():
        if tensors.names[path].shape != spec.shape:
            raise ValueError(
                f"{folder}: {path} is {tensors.names[path].shape}, its model wants {spec.shape}"
            )
    parameters = {
        path: Parameter(
            spec.shape,
            tensors.names[path].dtype,
            stacked_axes(spec),
            StoredRows(tensors, path),
        )
        for path, spec in specs.items()
    }
    return Checkpoint(
        folder,
        "native",
        config,
        parameters,
        record.get("special", {}),
        companions(folder),
        tokenizer_folder=tokenizer_folder(folder),
    )


def write_native(checkpoint: Checkpoint, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes model.json and the parameters of a checkpoint into an existing folder, in shards of at
    most `shard_bytes`, one slice in memory at a time."""
    record = {
        "format": _FORMAT,
        "config": dataclasses.asdict(checkpoint.config),
        "special": dict(checkpoint.special),
    }
    write_json(folder / RECORD, record)
    # A stacked parameter is the concatenation of its slices, so they are streamed one by one.
    streams = {
        path: (Tensor(p.shape, p.dtype), lambda p=p: (p.read(index) for index in p.indices()))
        for path, p in checkpoint.parameters.items()
    }
    write_safetensors(folder, streams, STEM, shard_bytes=shard_bytes)
