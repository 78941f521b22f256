"""Conversion of a checkpoint from any format to any other, slice by slice."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from research import tree
from research.files import building, read_json
from research.interop import certify, reference, runs
from research.interop.formats import FLOATS, FORMATS, check_target
from research.interop.load import open_checkpoint
from research.interop.peft.read import read_peft
from research.interop.peft.write import write_peft
from research.interop.storage.checkpoint import Checkpoint, Parameter
from research.interop.storage.foreign import as_dtype
from research.models.config import config_from_json
from research.weights.rules import is_leaf


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "native",
    dtype: str = "",
    certified: bool = True,
) -> dict[str, Any]:
    """Writes the checkpoint `source` (a path or spelling) as a new folder `target`, whole or not at
    all.

    `dtype` is the type of the weights there, "" as they are; for GGUF also one that quantizes.
    Returns the certificate, {} without one. ValueError for what cannot be read, or not be written
    in that format.
    """
    check_target(to, dtype)
    with open_checkpoint(source) as opened, building(target) as folder:
        checkpoint = cast(opened, dtype) if dtype in FLOATS else opened
        FORMATS[to].writes(checkpoint, folder, dtype)
        if not certified:
            return {}
        with open_checkpoint(folder, verify=False) as written:
            return certify.certify(opened, written, folder, reference.compare(opened, written))


def export_adapter(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Writes the adapters that the run `source` has trained as a new folder `target` that peft
    loads, and reads them back.

    {"adapters", "values", "bit_equal", "base"}: how many, of how many numbers, of which so many
    come back as they were, for which checkpoint. ValueError for a run that trained no adapters, and
    adapters that peft has not.
    """
    path = Path(source).expanduser()
    if not runs.is_run(path):
        raise ValueError(f"{source} is no run of adapters; --to=peft wants the workdir of one")
    adapters, base = runs.run_adapters(
        path, config_from_json(read_json(path / "config.json")["model"])
    )
    with building(target) as folder, open_checkpoint(base) as parent:
        write_peft(folder, adapters, parent.config, base)
        back = tree.paths(read_peft(folder, parent)[1])
    ours = tree.paths(adapters)
    equal = sum(np.count_nonzero(x == back[path]) for path, x in ours.items() if path in back)
    values = sum(x.size for x in ours.values())
    return {
        "adapters": len(tree.paths(adapters, is_leaf)),
        "values": values,
        "bit_equal": int(equal),
        "base": base,
    }


def verify(folder: Path) -> dict[str, Any]:
    """The certificate of a folder, found to be true of it; `rechecked` says what could be compared
    again.

    ValueError where there is none, where files differ, and where the source is at hand and its
    round trip fails.
    """
    certificate = certify.check_hashes(folder)
    if certificate is None:
        raise ValueError(
            f"{folder} has no {certify.FILE}; it was not made by research.convert, or not with "
            "--certify"
        )
    rechecked, origin = ["target hashes"], Path(certificate["source"]["name"])
    if origin.exists() and certify.hash_files(origin) == certificate["source"]["files"]:
        with open_checkpoint(origin) as source, open_checkpoint(folder) as target:
            if certify.round_trip(source, target) != certificate["round_trip"]:
                raise ValueError(
                    f"the way from {origin} to {folder} and back is not what was certified; "
                    "convert it again"
                )
        rechecked += ["source hashes", "round trip"]
    return certificate | {"rechecked": rechecked}


def cast(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with its parameters in another floating type."""
    parameters = {
        path: replace(parameter, dtype=dtype, read=_casting(parameter, as_dtype(dtype)))
        for path, parameter in checkpoint.parameters.items()
    }
    return replace(checkpoint, parameters=parameters)


def _casting(parameter: Parameter, dtype: np.dtype) -> Callable[[tuple[int, ...]], np.ndarray]:
    return lambda index: parameter.read(index).astype(dtype)
