"""A loaded model: parameters on the devices, tokenizer, and logits, states or summaries of token
ids."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.data.media.mel import mel_table
from research.data.template_variables import with_variables
from research.data.tokenizers import Tokenizer
from research.experiment.fields import nearest
from research.infer.conversation import answer_ends, conversation, encode_conversation
from research.infer.decode import generate as write
from research.infer.sampling import SamplingConfig, choose_sampling
from research.infer.sentences import SentenceSettings
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.generation import decoder_ids, end_ids
from research.interop.token_ids import checked_ids
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.pair_vectors import check_pairs, pair_scores
from research.models.soft import with_media


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
    def decoder_ids(self) -> tuple[int, ...]:
        """Ids that an encoder-decoder's decoder starts from, () if the checkpoint names none."""
        return decoder_ids(self.checkpoint.special)

    @property
    def sampling(self) -> dict[str, float]:
        """How the checkpoint wants tokens drawn; see `Checkpoint.sampling`."""
        return self.checkpoint.sampling

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        images=None,
        audio=None,
        max_tokens: int = 64,
        temperature: float | None = None,
        **sampling,
    ) -> str | list[str]:
        """The text that follows a prompt; a list of texts for a list of prompts.

            loaded.generate("The capital of France is", max_tokens=8, temperature=0)
            loaded.generate(["def add(", "def sub("], top_p=0.9, seed=1)

        A prompt is a string or token ids. An encoder-decoder reads it and writes, for example, its
        translation. `images` [M, size, size, 3] of a prompt, a list of them for a list of prompts,
        stand where it has the token `config.image.token`, once for each, and so do the sounds of
        `audio`, as of `logits`, where it has `config.sound.token`. `sampling` are other fields of
        `research.infer.sampling.SamplingConfig`; what is not given is as the checkpoint recommends,
        else drawn at temperature 1. ValueError for an encoder, a checkpoint without a tokenizer,
        and a prompt that is too long.
        """
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral))
        fields = {"max_tokens": max_tokens, "temperature": temperature, **sampling}
        seen = [images] if alone else images
        seen = () if images is None else seen
        c, heard = self.config.sound, [audio] if alone else audio
        sounds = [
            None if one is None else mel_table([one], c.frames, c.mels)[0]
            for one in (() if audio is None else heard)
        ]
        given = [prompts] if alone else list(prompts)
        texts = self._continue(given, self.stop_ids, fields, seen, sounds)
        return texts[0] if alone else texts

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        tools: Sequence[Any] = (),
        template_variables: Mapping[str, Any] = MappingProxyType({}),
        max_tokens: int = 512,
        temperature: float | None = None,
        **sampling,
    ) -> str:
        """The assistant's answer to a question, or to a conversation of messages.

            loaded.chat("What is the capital of France?", temperature=0)
            loaded.chat([{"role": "user", "content": "Hi"}], system="Answer in French.")

        The template gets the descriptions of `tools`, and `template_variables` such as
        {"enable_thinking": False}. Arguments are those of `generate`. ValueError for a model
        without a chat template.
        """
        said = conversation(messages, system)
        tokenizer = with_variables(self._texts(), template_variables)
        ids = encode_conversation(tokenizer, said, tools)
        ends = answer_ends(self._texts(), self.stop_ids)
        fields = {"max_tokens": max_tokens, "temperature": temperature, **sampling}
        return self._continue([ids], ends, fields)[0]

    def logits(
        self, tokens_BT, mask=None, token_types=None, decoder_tokens=None, images=None, audio=None
    ) -> jax.Array:
        """Logits, float32 [B, T, V], of token ids [B, T]; [T, V] of one text, ids [T].

        `mask` [B, T] is 1 for tokens and 0 for padding. Of an encoder-decoder, `tokens_BT` and
        `mask` are the encoder's, and T of the logits is the length of `decoder_tokens`. Positions
        count from the first column, padding included, as in Hugging Face's models. `images` of a
        model that reads them are [B, M, size, size, 3], of one text [M, size, size, 3]: integers
        0..255, or floats normalised already; the text has `config.image.token` once for each soft
        token. `audio` has for each text a list of its sounds, of one text that list: mono samples
        [n] at 16 kHz, or log-mel frames, for places of `config.sound.token`. ValueError for ids
        outside the vocabulary, and for an encoder without a head for words.
        """
        if _depth(tokens_BT) == 1:
            fields = (tokens_BT, mask, token_types, decoder_tokens, images)
            rows = [None if field is None else np.asarray(field)[None] for field in fields]
            return self.logits(*rows, None if audio is None else [audio])[0]
        if self.config.kind == "encoder" and not self.config.mlm_head:
            raise ValueError(
                "the model is an encoder without a head for words; use hidden() or pooled()"
            )
        batch = self._batch(tokens_BT, mask, token_types, decoder_tokens)
        c = self.config.sound
        sounds = None if audio is None else mel_table(audio, c.frames, c.mels)
        return self._run(_logits, with_media(self.config, batch, images, sounds))

    def hidden(self, tokens_BT, mask=None, token_types=None, decoder_tokens=None) -> jax.Array:
        """States after the last norm, float32 [B, T, D]; arguments as for `logits`."""
        return self._run(_hidden, self._batch(tokens_BT, mask, token_types, decoder_tokens))

    def pooled(self, tokens_BT, mask=None, token_types=None) -> jax.Array:
        """The pooler's output for each text, float32 [B, D], as in BERT for its first token.
        ValueError for a model without a pooler."""
        if not self.config.pooler:
            raise ValueError("the model has no pooler; use hidden()")
        return self._run(_pooled, self._batch(tokens_BT, mask, token_types, None))

    def scores(self, tokens_BT, mask=None, token_types=None) -> jax.Array:
        """The numbers that a model with labels gives each text, float32 [B, labels], such as the
        reward of a reward model, or each token, [B, T, labels]; arguments as for `logits`.
        ValueError for a model without labels."""
        if not self.config.labels:
            raise ValueError("the model has no labels; use logits() or hidden()")
        return self._run(_scores, self._batch(tokens_BT, mask, token_types, None))

    def pair_scores(self, tokens_BT, images, mask=None) -> jax.Array:
        """How well each image fits each text, float32 [images, B], of a model that has a vector of
        both, as CLIP and SigLIP have; `images` are [images, size, size, 3] as for `logits`.
        ValueError for other models."""
        check_pairs(self.config, np.shape(images))
        batch = self._batch(tokens_BT, mask, None, None)
        return self._run(_pair_scores, {**batch, "images": np.asarray(images)})

    def _texts(self) -> Tokenizer:
        """The tokenizer. ValueError without one."""
        if self.tokenizer is None:
            raise ValueError(
                "the checkpoint has no tokenizer; put its tokenizer.json into the folder"
            )
        return self.tokenizer

    def _continue(
        self, prompts: list, stop_ids: tuple[int, ...], fields: dict[str, Any], images=(), sounds=()
    ) -> list[str]:
        """The continuations of prompts, drawn with these fields of a `SamplingConfig`."""
        known = {one.name: one for one in dataclasses.fields(SamplingConfig)}
        for name in fields.keys() - known.keys():
            raise ValueError(f"there is no {name}=; {nearest(name, known)}")
        ends = {
            "stop_ids": (*stop_ids, *fields.get("stop_ids", ())),
            "bos": self.begins_texts,
            "decoder_ids": self.decoder_ids,
        }
        config = choose_sampling(self.sampling, {**fields, **ends})
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            given = self.model, self.params, self._texts(), prompts, config
            written = write(*given, images, sounds)
        return [one.text for one in written]

    def _run(self, function, batch):
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            return function(self.params, batch, model=self.model)

    def _batch(self, tokens_BT, mask, token_types, decoder_tokens) -> dict[str, np.ndarray]:
        """The fields of a batch as the model's functions take them; refuses what does not fit."""
        tokens_BT = checked_ids(self.config, tokens_BT, "tokens")
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
        decoder_BT = checked_ids(self.config, decoder_tokens, "decoder_tokens")
        return {f"encoder_{name}": x for name, x in fields.items()} | _fields(
            decoder_BT, np.ones_like(decoder_BT)
        )


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
    hidden_BTD = model.hidden(params, batch)[0]
    return model.pooled(params, hidden_BTD, batch.get("segments"))[:, 0].astype(jnp.float32)


@partial(jax.jit, static_argnames="model")
def _scores(params, batch, *, model):
    hidden_BTD = model.hidden(params, batch)[0]
    scores_BTV = model.class_logits(params, hidden_BTD, segments_BT=batch.get("segments"))
    return scores_BTV[:, 0] if model.config.labels_over == "text" else scores_BTV


@partial(jax.jit, static_argnames="model")
def _pair_scores(params, batch, *, model):
    return pair_scores(model, params, batch)


def _depth(tokens) -> int:
    """1 for the ids of one text, 2 for a list of texts, of whatever lengths."""
    if isinstance(tokens, list | tuple):
        return 1 + _depth(tokens[0]) if tokens else 1
    return np.ndim(tokens)


def _fields(tokens_BT: np.ndarray, kept_BT: np.ndarray) -> dict[str, np.ndarray]:
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}
