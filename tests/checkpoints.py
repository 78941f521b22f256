"""Tiny checkpoints to start from, with random parameters."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.data.tokenizers import load_tokenizer
from research.interop.native import write_native
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import initialize


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    tokenizer: str = "bytes",
    template: str | None = None,
    seed: int = 7,
) -> tree.Tree:
    """A checkpoint of ours with this tokenizer and chat template; its parameters as numpy
    arrays."""
    folder.mkdir(parents=True)
    params = jax.tree.map(
        np.asarray, initialize(jax.random.key(seed), Model(config).specs(), jnp.float32)
    )
    arrays, specs = tree.paths(params), specs_by_path(config)
    parameters = {
        path: Parameter(array.shape, "float32", stacked_axes(specs[path]), array.__getitem__)
        for path, array in arrays.items()
    }
    write_native(Checkpoint(folder, "native", config, parameters), folder)
    replace(load_tokenizer(tokenizer), chat_template=template).save(folder)
    return params
