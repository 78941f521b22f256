"""Sentence embeddings: one vector for a text, pooled from an encoder's last states
(arXiv:1908.10084, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.data.tokenizers import Tokenizer
from research.models.model import Model
from research.tree import Tree

POOLINGS = ("mean", "cls")
ROWS = 32  # texts of a batch
_STEP = 16  # lengths are rounded up to a multiple, so that few programs are compiled


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
    rows = [_framed(tokenizer, ids, longest) for ids in tokenizer.encode_batch(list(texts))]
    # Texts of similar length share a batch, which needs little padding.
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    vectors = np.zeros((len(rows), model.config.d_model), np.float32)
    for first in range(0, len(order), ROWS):
        batch = order[first : first + ROWS]
        width = min(-(-max(len(rows[n]) for n in batch) // _STEP) * _STEP, longest)
        # Always ROWS rows, also in the last batch: only the width asks for another program.
        tokens_BT, kept_BT = np.zeros((2, ROWS, width), np.int32)
        for at, n in enumerate(batch):
            tokens_BT[at, : len(rows[n])], kept_BT[at, : len(rows[n])] = rows[n], 1
        vectors[batch] = np.asarray(
            _vectors(params, tokens_BT, kept_BT, model=model, settings=settings)
        )[: len(batch)]
    return vectors


def _framed(tokenizer: Tokenizer, ids: list[int], longest: int) -> list[int]:
    """The ids between the tokens that begin and end a text, [CLS] and [SEP]."""
    around = [n for n in (tokenizer.bos_id, tokenizer.eos_id) if n is not None]
    # Cut before framing, so that a long text keeps its [SEP].
    ids = ids[: longest - len(around)]
    return [*around[:1], *ids, *around[1:]] if len(around) == 2 else [*ids, *around]


@partial(jax.jit, static_argnames=("model", "settings"))
def _vectors(
    params: Tree, tokens_BT, kept_BT, *, model: Model, settings: SentenceSettings
) -> jax.Array:
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
