"""A merged folder checked against its certificate, and the merge made again where its models are
still what they were."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from research.interop import certify, convert
from research.interop.load import open_checkpoint
from research.interop.storage.checkpoint import Checkpoint
from research.merging.merge import merge_checkpoints
from research.merging.methods import METHODS
from research.merging.settings import MergeSettings


def verify(folder: str | Path) -> dict[str, Any]:
    """The certificate of a merged folder, with `rechecked`, the list of what was compared.

    The hashes of the folder always are. Where every model that was merged still has its hashes they
    are merged again, tensor by tensor, and compared with the folder as after the merge. ValueError
    without a certificate, for one that is not of a merge, and where anything differs.
    """
    certificate = convert.verify(Path(folder))
    origin = certificate["source"]
    if origin.get("format") != "merge":
        raise ValueError(
            f"{folder} is no merge, but converted from {origin['name']}; check it with "
            f"research.convert --verify={folder}"
        )
    with ExitStack() as opened:
        by_name = _unchanged(origin["models"], opened)
        if by_name is None:
            return certificate
        base = by_name.get(origin["base"])
        # Certificates of before this check do not list what was merged apart from the base.
        ends = origin.get("ends") or [one for one in by_name if one != origin["base"]]
        values = {name: origin[name] for name in ("weights", "scale", "density", "seed")}
        settings = MergeSettings(**{**values, "weights": tuple(values["weights"])})
        merged = merge_checkpoints(
            base, [by_name[one] for one in ends], METHODS[origin["method"]], settings
        )
        with open_checkpoint(folder) as target:
            if not _same(merged, target, certificate["round_trip"]):
                raise ValueError(
                    f"merging {', '.join(ends)} again does not give {folder}; merge them anew"
                )
    more = ["hashes of the models", "the merge made again"]
    return certificate | {"rechecked": [*certificate["rechecked"], *more]}


def _same(merged: Checkpoint, target: Checkpoint, certified: Mapping[str, Any]) -> bool:
    try:
        return certify.round_trip(merged, target) == certified
    except ValueError:  # where bits should be equal and are not
        return False


def _unchanged(
    models: Mapping[str, Mapping[str, str]], opened: ExitStack
) -> dict[str, Checkpoint] | None:
    """The models by name, open; None if one is gone or has other files than when it was merged."""
    by_name = {}
    for name, files in models.items():
        try:
            by_name[name] = opened.enter_context(open_checkpoint(name))
        except ValueError:
            return None
        if certify.hash_files(by_name[name].source) != files:
            return None
    return by_name
