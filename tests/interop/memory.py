"""A checkpoint in memory, as tests need one."""

from pathlib import Path

import jax
import numpy as np

from research import tree
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import initialize


def random_params(c: ModelConfig, dtype: str = "float32", seed: int = 0):
    """Parameters of which none is at its initial 0 or 1, so that each bears on the output ..."""
    params = initialize(jax.random.key(seed), Model(c).specs(), np.dtype("float32"))
    rng = np.random.default_rng(seed)
    noisy = {
        path: np.asarray(x) + 0.3 * rng.standard_normal(x.shape, np.float32)
        for path, x in tree.paths(params).items()
    }
    if not c.first_norm:  # ... but for the norm that the first attention does not read
        noisy["layers/attention_norm/scale"][0] = 1
    return tree.unflatten({path: jax.numpy.asarray(x, dtype) for path, x in noisy.items()})


def in_memory(c: ModelConfig, params, **fields) -> Checkpoint:
    """The parameters as a checkpoint that nothing was read for."""
    arrays = {path: np.asarray(x) for path, x in tree.paths(params).items()}
    parameters = {
        path: Parameter(
            spec.shape, str(arrays[path].dtype), stacked_axes(spec), arrays[path].__getitem__
        )
        for path, spec in specs_by_path(c).items()
    }
    return Checkpoint(Path("memory"), "memory", c, parameters, **fields)
