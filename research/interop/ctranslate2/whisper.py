"""Whisper in CTranslate2's form, as faster-whisper keeps it: a folder with model.bin, config.json
and tokenizer.json.

Its arrays are read as the tensors of Hugging Face's class, in whose names the rules of
`research.interop.huggingface.families.whisper` know them: a matrix of queries, keys and values is
three of theirs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from research.files import read_json
from research.interop.ctranslate2.file import ModelBin, open_model_bin
from research.interop.huggingface.families import whisper
from research.interop.huggingface.folder import companions, tokenizer_folder
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.foreign import Names, read_parameters
from research.interop.storage.tensors import Tensor
from research.models.config import ModelConfig

FILE = "model.bin"
SPEC = "WhisperSpec"
# CTranslate2's numbers of activations, of which Whisper has one.
_GELU = 3
_KEY_BIAS = (r".*\.k_proj\.bias", "a bias of keys, which moves no share of attention")
# By the part of a layer: the tensors side by side in its first matrices.
_ATTENTION = {
    "self_attention": ("self_attn", (("q_proj", "k_proj", "v_proj"), ("out_proj",))),
    "attention": ("encoder_attn", (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))),
}
_FIELDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
_ENDS = {
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
    **{f"conv{n}/{kind}": f"conv{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
    **{f"layer_norm/{kind}": f"layer_norm.{_FIELDS[kind]}" for kind in ("gamma", "beta")},
}


@dataclass(frozen=True)
class _Split:
    """The tensors of Hugging Face's class in a model.bin: each `(array, part, parts)`, the rows of
    an array in as many equal parts."""

    file: ModelBin
    names: Mapping[str, Tensor]
    sources: Mapping[str, tuple[str, int, int]] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """The whole tensor."""
        array, part, parts = self.sources[name]
        values = self.file.read(array)
        rows = len(values) // parts
        return values[part * rows : (part + 1) * rows]


def open_ctranslate2(folder: Path) -> Checkpoint:
    """The Whisper in a folder, its weights unread until asked for. ValueError, which names the
    folder, for another class, for codes of 8 or 16 bits and for a damaged file."""
    settings = read_json(folder / "config.json")
    settings = settings if isinstance(settings, dict) else {}
    file = open_model_bin(folder / FILE)
    try:
        if file.spec != SPEC:
            raise ValueError(f"its model is a {file.spec}; of CTranslate2's {SPEC} alone is read")
        config = _read_config(file)
        tensors = _split(file)
        names = Names(unused=(whisper.SINUSOIDS, _KEY_BIAS))
        rules = whisper.rules(config)
        parameters, unused, original = read_parameters(config, rules, tensors, names)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    special, generation = _special(settings, config)
    files: dict[str, Path | bytes] = {**companions(folder)}
    files["generation_config.json"] = json.dumps(generation).encode()
    return Checkpoint(
        folder,
        "ctranslate2",
        config,
        parameters,
        special,
        files,
        unused,
        original,
        tokenizer_folder=tokenizer_folder(folder),
    )


def _read_config(file: ModelBin) -> ModelConfig:
    """The model by the shapes of its arrays and the numbers among them."""
    for name, wanted in (("decoder/pre_norm", 1), ("decoder/activation", _GELU)):
        if name in file.names and int(file.read(name)) != wanted:
            raise ValueError(f"{name} is {int(file.read(name))}; Whisper has {wanted}")
    vocab_size, d_model = file.names["decoder/embeddings/weight"].shape
    layers = {
        side: len({n.split("/")[1] for n in file.names if n.startswith(f"{side}/layer_")})
        - 1  # "layer_norm"
        for side in ("encoder", "decoder")
    }
    values = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_mel_bins": file.names["encoder/conv1/weight"].shape[1],
        "max_source_positions": file.names["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": file.names["decoder/position_encodings/encodings"].shape[0],
    }
    for side, count in layers.items():
        values[f"{side}_layers"] = count
        values[f"{side}_attention_heads"] = int(file.read(f"{side}/num_heads"))
        values[f"{side}_ffn_dim"] = file.names[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
    return whisper.read_config(values, set())


def _split(file: ModelBin) -> _Split:
    """The arrays by the names of Hugging Face's class; single numbers are settings, no tensors.
    ValueError for codes, and for an array without a name there."""
    names, sources = {}, {}
    for array, tensor in file.names.items():
        if not tensor.shape:
            continue
        if tensor.dtype.startswith("int") or array.endswith("_scale"):
            raise ValueError(
                f"{array} is {tensor.dtype}; convert the model without --quantization, or to "
                "float16"
            )
        parts = _theirs(array)
        for number, name in enumerate(parts):
            rows, *others = tensor.shape
            names[name] = Tensor((rows // len(parts), *others), tensor.dtype)
            sources[name] = (array, number, len(parts))
    return _Split(file, names, sources)


def _theirs(array: str) -> list[str]:
    """The names of an array's parts in Hugging Face's class."""
    side, _, rest = array.partition("/")
    if rest in _ENDS:
        return [f"model.{side}.{_ENDS[rest]}"]
    layer, _, within = rest.partition("/")
    start = f"model.{side}.layers.{layer.removeprefix('layer_')}"
    block, which, kind = [*within.split("/"), "", ""][:3]
    kind = _FIELDS.get(kind, kind)
    if block == "ffn" and which:
        name = {"linear_0": "fc1", "linear_1": "fc2", "layer_norm": "final_layer_norm"}[which]
        return [f"{start}.{name}.{kind}"]
    if block not in _ATTENTION or not which:
        raise ValueError(f"it has an array {array!r}, which the model has no place for")
    name, matrices = _ATTENTION[block]
    if which == "layer_norm":
        return [f"{start}.{name}_layer_norm.{kind}"]
    parts = matrices[int(which.removeprefix("linear_"))]
    return [f"{start}.{name}.{part}.{kind}" for part in parts]


def _special(settings: Mapping[str, Any], c: ModelConfig) -> tuple[dict[str, int], dict[str, Any]]:
    """(special ids, a generation_config.json with the tokens that are never written). The end of a
    text is the first id behind the words, of which an English model has one fewer."""
    english = c.vocab_size == 51864
    end = 50256 if english else 50257
    special = {"eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    names = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    names |= {"alignment_heads": "alignment_heads"}
    kept = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}
    return special, {**special, "is_multilingual": not english, **kept}
