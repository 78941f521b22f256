"""Sentence embeddings: one vector for a text, pooled from an encoder's last states
(arXiv:1908.10084, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.text_batches import text_batches
from research.models.model import Model
from research.tree import Tree

POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class SentenceSettings:
    """How a text becomes a vector.

    pooling     "mean" of all tokens' states, or "cls", the first token's state
    normalize   scale the vector to length 1
    max_tokens  longer texts are cut, [CLS] and [SEP] included in the count
    """

    pooling: str = "mean"
    normalize: bool = True
    max_tokens: int = 512

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r}; choose one of {', '.join(POOLINGS)}")


def embed(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: SentenceSettings,
) -> np.ndarray:
    """A vector for each text, float32 [texts, D]. ValueError for a model that is not an encoder."""
    if model.config.kind != "encoder":
        raise ValueError(
            f"the model is a {model.config.kind}; "
            "sentence embeddings come from an encoder such as BERT"
        )
    longest = min(settings.max_tokens, model.config.max_length)
    vectors = np.zeros((len(texts), model.config.d_model), np.float32)
    for batch, tokens_BT, kept_BT in text_batches(tokenizer, texts, longest):
        vectors_BD = pooled(params, tokens_BT, kept_BT, model=model, settings=settings)
        vectors[batch] = np.asarray(vectors_BD)[: len(batch)]
    return vectors


@partial(jax.jit, static_argnames=("model", "settings"))
def pooled(
    params: Tree, tokens_BT, kept_BT, *, model: Model, settings: SentenceSettings
) -> jax.Array:
    """A vector of each row, float32 [B, D]: of the last states of an encoder or a decoder at the
    tokens that `kept_BT` has 1 for."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None, :], tokens_BT.shape)
    hidden_BTD, _ = model.hidden(
        params, {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}
    )
    hidden_BTD = hidden_BTD.astype(jnp.float32)  # the mean of many bfloat16 numbers loses digits
    if settings.pooling == "cls":
        vectors_BD = hidden_BTD[:, 0]
    else:
        kept_BT1 = kept_BT[:, :, None].astype(jnp.float32)
        # A row without a token is padding of the batch; its mean must not be 0 / 0.
        vectors_BD = jnp.sum(hidden_BTD * kept_BT1, axis=1) / jnp.maximum(
            jnp.sum(kept_BT1, axis=1), 1
        )
    # The bound is that of torch.nn.functional.normalize, which sentence-transformers calls.
    if settings.normalize:
        vectors_BD /= jnp.maximum(jnp.linalg.norm(vectors_BD, axis=-1, keepdims=True), 1e-12)
    return vectors_BD
