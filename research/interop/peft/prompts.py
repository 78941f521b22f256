"""peft's prompt and prefix tuning: its one tensor, `prompt_embeddings`, to and from the parameters
that our models add."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from research import tree
from research.interop.peft.config import PeftConfig
from research.interop.peft.kinds import PREFIX_TUNING, PROMPT_TUNING
from research.interop.peft.tensors import Arrays
from research.interop.storage.safetensors import SafeTensors
from research.models.config import ModelConfig

NAME = "prompt_embeddings"
PROMPT, PREFIX_KEY, PREFIX_VALUE = (
    "prompt/table",
    "layers/attention/prefix_key",
    "layers/attention/prefix_value",
)


def read_prompts(config: PeftConfig, tensors: SafeTensors, c: ModelConfig) -> tree.Tree:
    """`prompt/table` [n, D] of n virtual tokens, or a prefix: the keys and values [L, n, K, H] that
    every layer sees in front of its own.

    peft stores a prefix as [n, 2 L K H], in each layer keys before values. ValueError for a model
    that is not a decoder, and for a shape that does not fit the model.
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
    # With `prefix_projection` peft still saves the projected keys and values, so one shape serves
    # both.
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
    # [n, L, 2, K, H] to [2, L, n, K, H]: keys and values apart, layers stacked.
    both = values.reshape(n, c.layers, 2, c.kv_heads, c.head_size).transpose(2, 1, 0, 3, 4)
    return tree.unflatten({PREFIX_KEY: both[0].copy(), PREFIX_VALUE: both[1].copy()})


def prefix_embeddings(key_LnKH: np.ndarray, value_LnKH: np.ndarray) -> np.ndarray:
    """peft's `prompt_embeddings` [n, 2 L K H] of a prefix's keys and values."""
    both = np.stack([key_LnKH, value_LnKH]).transpose(2, 1, 0, 3, 4)
    return both.reshape(both.shape[0], -1)


def write_prompts(plain: Mapping[str, np.ndarray], c: ModelConfig) -> tuple[dict[str, Any], Arrays]:
    """(fields of adapter_config.json, tensors by name) of a prompt or a prefix. ValueError for any
    other parameters."""
    if plain.keys() == {PROMPT}:
        kind, values = PROMPT_TUNING, plain[PROMPT]
    elif plain.keys() == {PREFIX_KEY, PREFIX_VALUE}:
        kind, values = PREFIX_TUNING, prefix_embeddings(plain[PREFIX_KEY], plain[PREFIX_VALUE])
    else:
        raise ValueError(
            f"peft has no adapter that is {', '.join(sorted(plain)[:4])}; write the merged model "
            "instead"
        )
    # peft sizes a prefix by heads * head size; under grouped queries these are the keys' heads.
    heads = c.kv_heads if kind == PREFIX_TUNING else c.heads
    return {
        "peft_type": kind,
        "num_virtual_tokens": len(values),
        "num_layers": c.layers,
        "num_attention_heads": heads,
        "token_dim": c.head_size * heads if kind == PREFIX_TUNING else c.d_model,
        # Decoders alone; an encoder-decoder has 2.
        "num_transformer_submodules": 1,
    }, {NAME: np.ascontiguousarray(values)}
