"""The two conventions for scales of RMS norms in files: the scale itself, or the scale minus 1
(Gemma in Hugging Face's folders)."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.parameter import Parameter

# Scales of norms by path; a norm's bias has no offset, and those of encoders of images have their
# own convention.
_SCALES = re.compile(r"(?!image/)(.*/)?(\w*norm/scale|query_norm|key_norm)")


def with_norm_offset(checkpoint: Checkpoint, offset: float) -> Checkpoint:
    """The same model with another `config.norm_offset`. Norms scale by offset + w, so w becomes
    w + old offset - new offset, in float32 whatever type the other weights have.

    From offset 0 to 1 and back, scales of 0.5 and more return bit for bit; smaller ones, and those
    of the other direction, are rounded to float32's spacing at 1.
    """
    # bfloat16 keeps 8 bits: 1 + w would lose most of a small w, hence float32.
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
