"""The check of an exported adapter: with the folder, read as peft reads it, the base computes what
it computes with the run's own adapters."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from research import tree
from research.interop.adapter_logits import compare_logits
from research.interop.load import open_adapter, open_checkpoint
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.modules import HEAD, TABLE


def check_adapter(base: str, run: Path, folder: Path) -> dict[str, Any]:
    """Compares the adapters of a run with those in a folder of peft's, both on the base.

    Returns {"values": numbers in the run's adapters, a tied table's for each of its uses,
    "bit_equal": how many of them read back unchanged, "logit_difference": largest difference of the
    logits of 16 ids (None where the base is too large for this machine), "notes": lines for the
    user}. ValueError if an adapter is lost on the way, or if the logits are not the run's.
    """
    with open_checkpoint(base) as checkpoint:
        theirs = open_adapter(folder, checkpoint)
        ours = open_adapter(run, checkpoint)
        before, after = (_numbers(*side, checkpoint) for side in (ours, theirs))
        untied = checkpoint.config.tied and not theirs[0].config.tied
        count = sum(math.prod(p.shape) for p in checkpoint.parameters.values())
    if untied:
        before |= {HEAD + path.removeprefix(TABLE): x for path, x in before.items() if _of(path)}
    for path in sorted(before.keys() ^ after.keys()):
        side = "lost" if path in before else "new"
        raise ValueError(f"{path} is {side} in the adapter's folder; convert the run with --to=hf")
    # Adapters joined in a module of peft's stay joined where all their B are zero.
    same = {path: x for path, x in before.items() if x.shape == after[path].shape}
    equal = sum(int(np.count_nonzero(x == after[path])) for path, x in same.items())
    values = sum(x.size for x in before.values())
    difference, notes = compare_logits(base, run, folder, 4 * count)
    if any(_of(path) for path in before) and checkpoint.config.tied:
        notes += [
            "the table is also the head: peft's merge_and_unload changes it twice, once for each "
            "use; to merge, convert the run with --to=hf"
        ]
    return {
        "values": values,
        "bit_equal": equal,
        "logit_difference": difference,
        "notes": notes,
    }


def _of(path: str) -> bool:
    return f"{path}/".startswith(f"{TABLE}/")


def _numbers(changed: Checkpoint, adapters: tree.Tree, base: Checkpoint) -> dict[str, np.ndarray]:
    """Every array that the adapter brings, by path: factors, scales, and whole weights."""
    arrays = dict(tree.paths(adapters))
    for path, parameter in changed.parameters.items():
        # A head that was only untied is the base's table still.
        if parameter is base.parameters.get(path, base.parameters.get(TABLE)):
            continue
        slices = [parameter.read(index) for index in parameter.indices()]
        arrays[path] = np.stack(slices).reshape(parameter.shape)
    return arrays
