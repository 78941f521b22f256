"""Classification of whole texts: the probability of each class."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.text_batches import text_batches
from research.models.model import Model
from research.tree import Tree


def classify(
    model: Model, params: Tree, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> np.ndarray:
    """The probability of each of the model's C classes for each text, float32 [texts, C].

    Texts are read as in training (objectives/classification.py): framed by their special tokens,
    and cut to `max_tokens` with them. ValueError for a model without a classifier.

        classify(model, params, tokenizer, ["A fine film."], 128).argmax(axis=-1)
    """
    if not model.config.labels:
        raise ValueError(
            f"the model is {_kind(model)} without a classifier; train one with "
            "--config=configs/finetune.py:task=classification"
        )
    if model.config.labels_over != "text":
        raise ValueError(
            f"the model has labels of {model.config.labels_over} and none of whole texts; python "
            "-m research.classify shows them"
        )
    longest = min(max_tokens, model.config.max_length)
    probs_NC = np.zeros((len(texts), model.config.labels), np.float32)
    for batch, tokens_BT, kept_BT in text_batches(tokenizer, texts, longest):
        probs_BC = _probabilities(params, tokens_BT, kept_BT, model=model)
        probs_NC[batch] = np.asarray(probs_BC)[: len(batch)]
    return probs_NC


def _kind(model: Model) -> str:
    kind = model.config.kind
    return f"a {kind}" if kind == "decoder" else f"an {kind}"


@partial(jax.jit, static_argnames="model")
def _probabilities(params: Tree, tokens_BT, kept_BT, *, model: Model) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None, :], tokens_BT.shape)
    batch = {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}
    hidden_BTD, _ = model.hidden(params, batch)
    logits_B1V = model.class_logits(params, hidden_BTD, segments_BT=kept_BT)
    return jax.nn.softmax(logits_B1V[:, 0], axis=-1)
