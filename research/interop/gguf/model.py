"""A GGUF file as a checkpoint: hyperparameters, tensors and tokenizer together, read and written.

Keys and tensor names are llama.cpp's (src/llama-arch.cpp, src/llama-model.cpp).
"""

import json
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from research.data.tokenizers.tokenizer import UnknownTokenizer
from research.interop.gguf import (
    bert,
    deepseek,
    encoders,
    ends,
    expert_models,
    gemma,
    gpt,
    gpt_oss,
    llama,
    llama_relatives,
    modernbert,
    mxfp4,
    olmo2,
    phi3,
    phimoe,
    rope_factors,
    rope_keys,
    t5,
    unread_keys,
)
from research.interop.gguf.architecture import Architecture, Metadata
from research.interop.gguf.decoder_rules import joined_experts
from research.interop.gguf.file import Gguf
from research.interop.gguf.mixtures import FILE_TYPES, tensor_type
from research.interop.gguf.parts import open_whole
from research.interop.gguf.tokenizer import tokenizer_files
from research.interop.gguf.tokenizer_metadata import blank_notes, tokenizer_metadata
from research.interop.gguf.write import Entry, write_gguf
from research.interop.huggingface.folder import TOKENIZERS
from research.interop.storage import generation
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.foreign import Names, read_parameters, write_tensors
from research.interop.storage.norm_offset import with_norm_offset
from research.models.config import ModelConfig, Shape

# The order matters for writing: the first row with a name for a model is taken, and LLaMA's would
# take others', whose layers are LLaMA's with more.
ARCHITECTURES = {
    "bert": bert.ARCHITECTURE,
    "modernbert": modernbert.ARCHITECTURE,
    "t5": t5.ARCHITECTURE,
    "gpt2": gpt.GPT2,
    "gptneox": gpt.GPT_NEOX,
    "olmo2": olmo2.ARCHITECTURE,
    "granite": llama_relatives.GRANITE,
    "smollm3": llama_relatives.SMOLLM3,
    "mistral3": llama_relatives.MISTRAL3,
    "gemma": gemma.ARCHITECTURE,
    "phi3": phi3.ARCHITECTURE,
    "phimoe": phimoe.ARCHITECTURE,
    "gpt_oss": gpt_oss.ARCHITECTURE,
    "deepseek": deepseek.ARCHITECTURE,
    "experts": expert_models.ARCHITECTURE,
    "llama": llama.ARCHITECTURE,
}
_NAMES = Names(
    unused=(
        (
            r"dec\.blk\.0\.cross_attn_rel_b\.weight",
            "cross-attention has no positions; early releases saved a table all the same",
        ),
        (
            r"(rope_freqs|rope_factors_(short|long))\.weight",
            "computed from the scaling of the rotary positions",
        ),
    )
)


def open_gguf_model(file: Path) -> Checkpoint:
    """The checkpoint in a GGUF file, or in several that one was cut into, its weights unread until
    asked for; it keeps the files open.

    ValueError, which names the file, for an architecture or a setting that is not supported.
    """
    gguf = open_whole(file)
    try:
        config, architecture = read_config(gguf)
        rules = architecture.rules(config, gguf.metadata["general.architecture"])
        rules = joined_experts(architecture.layout(rules, gguf.names), gguf.names)
        parameters, unused, original = read_parameters(config, rules, gguf, _NAMES)
    except ValueError as error:
        gguf.close()
        raise ValueError(f"{file}: {error}") from None
    # What a folder has in files of its own lies in the metadata here, and becomes those files'
    # contents, so that the rest of the code sees one kind of companion.
    special = ends.read_special(gguf.metadata)
    files = _tokenizer(gguf) if "tokenizer.ggml.model" in gguf.metadata else {}
    values = generation.read_metadata(gguf.metadata, special)
    if files and values:
        files[generation.FILE] = json.dumps(values).encode()
    files |= encoders.pooling_files(gguf.metadata) if files else {}
    kinds = {kind for kind in gguf.types.values() if kind not in ("F32", "F16", "BF16")}
    return Checkpoint(
        gguf.path,
        "gguf",
        config,
        parameters,
        special,
        files,
        unused,
        original,
        quantized=bool(kinds),
        codes=mxfp4.read_codes(config, rules, gguf),
        stored_as=", ".join(sorted(kinds)),
        labels=encoders.read_labels(gguf.metadata, config.labels),
        # Tensors are read later, so the file stays open as long as the checkpoint.
        close=gguf.close,
    )


def _tokenizer(gguf: Gguf) -> dict[str, bytes]:
    """The files of the tokenizer, {} with a warning for one of a kind that is not known."""
    try:
        return tokenizer_files(gguf.metadata)
    except UnknownTokenizer as error:
        logging.warning("%s: %s; the weights are read without it", gguf.path, error)
        return {}


def read_config(gguf: Gguf) -> tuple[ModelConfig, Architecture]:
    """(model, architecture) of an open file, with a warning about settings that are not known here
    and such that llama.cpp does not obey. ValueError for an unknown architecture."""
    values = unread_keys.Watched(gguf.metadata)
    metadata = Metadata(values, gguf.names)
    known = {name: row for row in ARCHITECTURES.values() for name in row.names}
    if metadata.kind not in known:
        raise ValueError(f"general.architecture is {metadata.kind!r}; there are {', '.join(known)}")
    config = known[metadata.kind].read_config(metadata)
    # Factors of single pairs, where a file has them, go before a scaling of all.
    scaling = rope_factors.read_scaling(gguf, config) or rope_keys.read_keys(metadata)
    config, architecture = replace(config, rope_scaling=scaling), known[metadata.kind]
    if keys := unread_keys.unread(values, metadata.kind):
        logging.warning("%s", unread_keys.warning(gguf.path, keys))
    for line in architecture.notes(config):
        logging.warning("%s: %s", gguf.path, line)
    return config, architecture


def architecture_of(c: ModelConfig) -> Architecture:
    """The row that writes a model. ValueError for a model that no row has a name for."""
    if c.scores_texts:
        raise ValueError(
            f"a GGUF file of ours has no place for model.labels={c.labels}; use --to=hf"
        )
    if c.attention_bias == "no_key":
        raise ValueError(
            f"llama.cpp has no architecture for this {c.kind} without biases of keys; use --to=hf"
        )
    for row in ARCHITECTURES.values():
        if row.name_of(c) is not None:
            return row
    raise ValueError(
        f"llama.cpp has no architecture for this {c.kind} with {c.position} positions; use --to=hf"
    )


def write_gguf_model(checkpoint: Checkpoint, file: Path, kind: str) -> list[str]:
    """Writes a checkpoint as one GGUF file, with matrices of type `kind`, such as "Q8_0" or the
    mixture "Q4_K_M". Returns lines on what the format cannot hold.

    Experts whose codes are in MXFP4 stay so, whatever the kind. Vectors are float32. Tables under a
    4-bit type, and rows that a block does not divide, get a type with more bits, as llama.cpp's own
    quantizer does it. ValueError for a model that no architecture computes, and for a tokenizer
    that GGUF cannot express.
    """
    metadata, entries, notes = plan_gguf_model(checkpoint, kind)
    write_gguf(file, metadata, entries)
    return notes


def plan_gguf_model(
    checkpoint: Checkpoint, kind: str
) -> tuple[dict[str, Any], list[Entry], list[str]]:
    """(metadata, tensors as `write_gguf` takes them, lines on what the format cannot hold) of a
    checkpoint as a GGUF file; no tensor is read. ValueError as `write_gguf_model`."""
    checkpoint, left_out = encoders.body(checkpoint)
    checkpoint = with_norm_offset(checkpoint, 0.0)  # files hold what norms multiply by
    c = checkpoint.config
    architecture = architecture_of(c)
    metadata = architecture.write_config(c)
    arch = metadata["general.architecture"]
    metadata |= rope_keys.write_keys(c, arch)
    rules = architecture.rules(c, arch)
    tensors = write_tensors(c, rules, checkpoint.parameters)
    # Read back at once: a field that the metadata cannot hold is refused before the tensors are
    # written.
    again = architecture.read_config(Metadata(metadata, {n: t for n, (t, _) in tensors.items()}))
    _check_same(c, again, arch)
    name = checkpoint.source.stem if checkpoint.source.is_file() else checkpoint.source.name
    packed = mxfp4.written(c, rules, checkpoint.codes)
    file_type = FILE_TYPES[mxfp4.TYPE if packed else kind]
    metadata |= {"general.name": name, "general.file_type": file_type}
    # A folder without a tokenizer may still have a generation_config.json.
    if any(name in checkpoint.files for name in TOKENIZERS):
        contents = {
            n: f if isinstance(f, bytes) else f.read_bytes() for n, f in checkpoint.files.items()
        } | checkpoint.portable_tokenizer()
        metadata |= tokenizer_metadata(contents, vocab_size=c.vocab_size)
        left_out = [*left_out, *blank_notes(contents)]
    special, notes = ends.write_special(checkpoint)
    metadata |= special | generation.write_metadata(checkpoint.sampling)
    metadata |= encoders.write_pooling(checkpoint, arch)
    entries = []
    for name, (tensor, make) in tensors.items():
        stored = tensor_type(name, tensor.shape, kind, c, arch)
        stored, give = (mxfp4.TYPE, packed[name]) if name in packed else (stored, make)
        entries.append((name, tensor.shape, stored, give))
    # llama.cpp takes some scalings as factors; the numbers behind Llama 3's are ours to keep.
    factors = rope_factors.tensors(c)
    if rope_factors.FREQUENCIES in factors:
        metadata[rope_factors.SCALING] = rope_factors.record(c.rope_scaling)
    entries += [(n, array.shape, "F32", lambda array=array: array) for n, array in factors.items()]
    notes = [*left_out, *architecture.notes(c), *rope_keys.notes(c), *notes]
    return metadata, entries, notes


def _check_same(c: ModelConfig, again: ModelConfig, kind: str) -> None:
    """Refuses, with a ValueError that lists them, fields that the metadata does not give back. The
    scaling of the positions is excepted, for it is written and refused on its own."""
    names = [f.name for f in fields(Shape) if f.name != "rope_scaling"]
    differing = [f"{n}={getattr(c, n)!r}" for n in names if _meant(c, n) != _meant(again, n)]
    if differing:
        raise ValueError(f"GGUF's {kind} architecture has no {', '.join(differing)}; use --to=hf")


def _meant(c: ModelConfig, name: str) -> Any:
    """The value of a field, or where 0 stands for what another field says, that."""
    usual = {"attention_scale": c.head_size**-0.5, "local_rope_theta": c.rope_theta}
    usual |= dict.fromkeys(("rotary_size", "value_size"), c.head_size)
    return getattr(c, name) or usual.get(name, getattr(c, name))
