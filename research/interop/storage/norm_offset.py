"""The two ways in which files hold the scales of RMS norms: as they are, or less 1 (Gemma in
Hugging Face's folders)."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from research.interop.storage.checkpoint import Checkpoint, Parameter

_SCALES = re.compile(r"(.*/)?(\w*norm/scale|query_norm|key_norm)")


def with_norm_offset(checkpoint: Checkpoint, offset: float) -> Checkpoint:
    """The same model with `config.norm_offset` as given: norms scale by offset + w, so that w
    becomes w + the old offset - the new one, in float32 whatever the other weights are.

    Scales of 0.5 and more come back bit by bit on the way from 0 to 1 and back; in the other
    direction, and below, they are rounded to float32's spacing at 1.
    """
    change = checkpoint.config.norm_offset - offset
    if change == 0:
        return checkpoint
    parameters = {
        path: replace(parameter, dtype="float32", read=_adding(parameter, change))
        if _SCALES.fullmatch(path)
        else parameter
        for path, parameter in checkpoint.parameters.items()
    }
    config = replace(checkpoint.config, norm_offset=offset)
    return replace(checkpoint, config=config, parameters=parameters)


def _adding(parameter: Parameter, change: float) -> Callable[[tuple[int, ...]], np.ndarray]:
    return lambda index: parameter.read(index).astype(np.float32) + np.float32(change)
