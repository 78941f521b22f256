"""peft's prompts and prefixes: one tensor, `prompt_embeddings`, to parameters that the model has
more, and back."""

import numpy as np

from research import tree
from research.interop.peft.config import PREFIX_TUNING, PeftConfig
from research.interop.storage.safetensors import SafeTensors
from research.models.config import ModelConfig

NAME = "prompt_embeddings"
PROMPT, PREFIX_KEY, PREFIX_VALUE = (
    "prompt/table",
    "layers/attention/prefix_key",
    "layers/attention/prefix_value",
)


def read_prompts(config: PeftConfig, tensors: SafeTensors, c: ModelConfig) -> tree.Tree:
    """`prompt/table` [n, D], or the keys and values [L, n, K, H] that a prefix puts in front of
    every layer's.

    A prefix lies as [n, 2 L K H], each layer's keys before its values. ValueError for a model that
    is no decoder, and for another shape than its.
    """
    if c.kind != "decoder":
        raise ValueError(
            f"peft_type={config.kind!r} is supported for decoders, the model is an {c.kind}"
        )
    for name in tensors.names:
        if name != NAME:
            raise ValueError(
                f"the adapter has the tensor {name!r} beside {NAME}, which is not supported"
            )
    values = tensors.read(NAME).astype(np.float32)
    n, wide = values.shape if values.ndim == 2 else (0, 0)
    prefix = config.kind == PREFIX_TUNING
    wanted = 2 * c.layers * c.kv_heads * c.head_size if prefix else c.d_model
    if not n or wide != wanted:
        raise ValueError(
            f"{NAME} has the shape {list(values.shape)}, the model wants [n, {wanted}]"
        )
    if not prefix:
        return tree.unflatten({PROMPT: values})
    both = values.reshape(n, c.layers, 2, c.kv_heads, c.head_size).transpose(2, 1, 0, 3, 4)
    return tree.unflatten({PREFIX_KEY: both[0].copy(), PREFIX_VALUE: both[1].copy()})


def prefix_embeddings(key_LnKH: np.ndarray, value_LnKH: np.ndarray) -> np.ndarray:
    """`prompt_embeddings` [n, 2 L K H] of a prefix."""
    both = np.stack([key_LnKH, value_LnKH]).transpose(2, 1, 0, 3, 4)
    return both.reshape(both.shape[0], -1)
