"""A loaded model: parameters on the devices, tokenizer, and logits, states or summaries of token
ids."""

import contextlib
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.data.tokenizers import Tokenizer
from research.infer.sentences import SentenceSettings
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.generation import end_ids
from research.models.config import ModelConfig
from research.models.model import Model


@dataclass(frozen=True)
class Loaded:
    """A model with its parameters on the devices, as `research.interop.load.load` returns it.

    `params`: the tree of parameters. `model`: the functions on that tree. `config`: the model's
    shape, also `model.config`. `tokenizer`: None if the checkpoint has none. `mesh`: None on one
    device. `checkpoint`: what the parameters were read from, closed.
    """

    config: ModelConfig
    params: tree.Tree
    tokenizer: Tokenizer | None
    model: Model
    mesh: jax.sharding.Mesh | None
    checkpoint: Checkpoint

    @property
    def begins_texts(self) -> bool:
        """True if texts begin with the bos token; see `Checkpoint.begins_texts`."""
        return self.checkpoint.begins_texts

    @property
    def sentence_settings(self) -> SentenceSettings:
        """How a text becomes one vector; see `Checkpoint.sentence_settings`."""
        return self.checkpoint.sentence_settings

    @property
    def window(self) -> int:
        """Tokens of a window when scoring long texts: the model's maximum length, at most 1,024."""
        # Logits of a window are [T, V] float32: a gigabyte already for 1,024 tokens at V = 256k.
        return min(self.config.max_length, 1024)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a generated text, () if the checkpoint names none."""
        return end_ids(self.checkpoint.special)

    @property
    def sampling(self) -> dict[str, float]:
        """How the checkpoint wants tokens drawn; see `Checkpoint.sampling`."""
        return self.checkpoint.sampling

    def logits(self, tokens_BT, mask=None, token_types=None, decoder_tokens=None) -> jax.Array:
        """Logits, float32 [B, T, V], of token ids [B, T]; [T, V] of one text, ids [T].

        `mask` [B, T] is 1 for tokens and 0 for padding. Of an encoder-decoder, `tokens_BT` and
        `mask` are the encoder's, and T of the logits is the length of `decoder_tokens`. Positions
        count from the first column, padding included, as in Hugging Face's models. ValueError for
        ids outside the vocabulary, and for an encoder without a head for words.
        """
        if np.ndim(tokens_BT) == 1:
            fields = (tokens_BT, mask, token_types, decoder_tokens)
            rows = [None if field is None else np.asarray(field)[None] for field in fields]
            return self.logits(*rows)[0]
        if self.config.kind == "encoder" and not self.config.mlm_head:
            raise ValueError(
                "the model is an encoder without a head for words; use hidden() or pooled()"
            )
        batch = self._batch(tokens_BT, mask, token_types, decoder_tokens)
        return self._run(_logits, batch)

    def hidden(self, tokens_BT, mask=None, token_types=None, decoder_tokens=None) -> jax.Array:
        """States after the last norm, float32 [B, T, D]; arguments as for `logits`."""
        return self._run(_hidden, self._batch(tokens_BT, mask, token_types, decoder_tokens))

    def pooled(self, tokens_BT, mask=None, token_types=None) -> jax.Array:
        """The pooler's output for the first token of each text, float32 [B, D] (BERT). ValueError
        for a model without a pooler."""
        if not self.config.pooler:
            raise ValueError("the model has no pooler; use hidden()")
        return self._run(_pooled, self._batch(tokens_BT, mask, token_types, None))

    def _run(self, function, batch):
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            return function(self.params, batch, model=self.model)

    def _batch(self, tokens_BT, mask, token_types, decoder_tokens) -> dict[str, np.ndarray]:
        """The fields of a batch as the model's functions take them; refuses what does not fit."""
        tokens_BT = self._ids(tokens_BT, "tokens")
        # Segment 0 is padding everywhere in this package, so the mask is the segments.
        kept_BT = np.ones_like(tokens_BT) if mask is None else np.asarray(mask).astype(np.int32)
        if kept_BT.shape != tokens_BT.shape:
            raise ValueError(f"mask has the shape {kept_BT.shape}, the tokens {tokens_BT.shape}")
        fields = _fields(tokens_BT, kept_BT)
        if self.config.kind != "encoder_decoder":
            if mask is None:
                del fields["segments"]  # every row is one text: more kernels serve that
            if decoder_tokens is not None:
                raise ValueError("decoder_tokens are for encoder-decoders")
            return (
                fields
                if token_types is None
                else {**fields, "token_types": np.asarray(token_types, np.int32)}
            )
        if decoder_tokens is None:
            raise ValueError("the model is an encoder-decoder: give decoder_tokens too")
        decoder_BT = self._ids(decoder_tokens, "decoder_tokens")
        return {f"encoder_{name}": x for name, x in fields.items()} | _fields(
            decoder_BT, np.ones_like(decoder_BT)
        )

    def _ids(self, tokens_BT, what: str) -> np.ndarray:
        tokens_BT = np.asarray(tokens_BT)
        if tokens_BT.ndim != 2 or tokens_BT.dtype.kind not in "iu" or not tokens_BT.size:
            raise ValueError(
                f"{what} are {tokens_BT.dtype} of shape {tokens_BT.shape}; wanted integers [B, T]"
            )
        # A gather out of range gives no error under jit, but rows of the table's end.
        if tokens_BT.min() < 0 or tokens_BT.max() >= self.config.vocab_size:
            raise ValueError(
                f"{what} lie in {tokens_BT.min()}..{tokens_BT.max()}; the model's are "
                f"0..{self.config.vocab_size - 1}"
            )
        if self.config.position == "learned" and tokens_BT.shape[1] > self.config.max_length:
            raise ValueError(
                f"{what} are {tokens_BT.shape[1]} long, the model has {self.config.max_length} "
                "positions"
            )
        return tokens_BT.astype(np.int32)


# Module-level functions with a static model: every `Loaded` of one shape shares their programs.
@partial(jax.jit, static_argnames="model")
def _logits(params, batch, *, model):
    hidden_BTD, _ = model.hidden(params, batch)
    return model.logits(params, hidden_BTD)


@partial(jax.jit, static_argnames="model")
def _hidden(params, batch, *, model):
    return model.hidden(params, batch)[0].astype(jnp.float32)


@partial(jax.jit, static_argnames="model")
def _pooled(params, batch, *, model):
    return model.pooled(params, model.hidden(params, batch)[0])[:, 0].astype(jnp.float32)


def _fields(tokens_BT: np.ndarray, kept_BT: np.ndarray) -> dict[str, np.ndarray]:
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}
