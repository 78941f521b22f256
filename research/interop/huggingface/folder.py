"""Folders of `save_pretrained`, read and written: config.json, safetensors in one file or in
shards, and the files beside them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.data.tokenizers.legacy import FILES as LEGACY
from research.data.tokenizers.template_files import FOLDER
from research.data.tokenizers.tokenizer import RECORD as TOKENIZER_RECORD
from research.files import read_json, write_json
from research.interop.huggingface import mxfp4
from research.interop.huggingface.families.table import FAMILIES, describe
from research.interop.huggingface.quantized import open_stored
from research.interop.quantized.stacks import unstacked
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.family import Family
from research.interop.storage.foreign import Names, read_parameters, write_tensors
from research.interop.storage.label_names import read_label_names
from research.interop.storage.norm_offset import with_norm_offset
from research.interop.storage.safetensors import (
    SHARD_BYTES,
    open_safetensors,
    write_safetensors,
)

# Files that belong to a model beside its weights and config.json, as transformers and
# sentence-transformers name them. They are copied by a conversion, byte by byte.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    TOKENIZER_RECORD,
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
# A tokenizer can be opened from any one of these.
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    *LEGACY,
    TOKENIZER_RECORD,
)
# Models whose rotary positions have three sections (arXiv:2409.12191, section 2.1).
_THREE_POSITIONS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")
# Numbers in a config.json of things of which each has at least one tensor.
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
)
# Ids that config.json and generation_config.json may both have; the latter's are believed, as
# transformers' generate does.
SPECIAL = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
)


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder of `save_pretrained`, its weights unread until they are asked for.

    ValueError, which names the folder, for an architecture or a setting that is not supported, for
    tensors that are missing, left over or of another shape, and for pickled weights.
    """
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise ValueError(f"{folder / 'config.json'} is no JSON object; restore it from the source")
    # From cheap to costly: what config.json alone can refuse is refused before any header is
    # read.
    family = _family(folder, values)
    _refuse_pickles(folder)
    tensors = unstacked(open_safetensors(folder))
    try:
        for section in (values, values.get("text_config"), values.get("vision_config")):
            _refuse_counts(section if isinstance(section, dict) else {}, len(tensors.names))
        names = Names(family.prefix, family.renames, family.unused, family.copies)
        # Some settings stand in no config.json: which heads a model has is told by its tensors.
        # A quantized matrix is several tensors, codes and scales beside them, and is read as if it
        # were stored dense.
        opened = open_stored(folder, values, tensors)
        actual = names.canonical(opened.names)
        config = family.read_config(values, actual.keys())
        names = replace(names, unused=(*family.unused, *family.further(values, config)))
        stored = opened.read(config, family, actual)
        rules = family.rules(config)
        parameters, unused, original = read_parameters(config, rules, stored.tensors, names)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    said = values.get("text_config")  # of a model that reads images; its own ids go first
    said = {**(said if isinstance(said, dict) else {}), **values}
    special = {name: said[name] for name in SPECIAL if said.get(name) is not None}
    return Checkpoint(
        folder,
        "hf",
        config,
        parameters,
        {**special, **_generation(folder)},
        companions(folder),
        {**unused, **stored.unused},
        original,
        bool(stored.name),
        tokenizer_folder(folder),
        codes=stored.codes,
        model_type=str(values["model_type"]),
        stored_as=stored.name,
    )


def write_folder(
    checkpoint: Checkpoint, folder: Path, shard_bytes: int = SHARD_BYTES, dtype: str = ""
) -> None:
    """Writes config.json and the weights of a checkpoint into an existing folder, in shards of at
    most `shard_bytes`. The companions are copied by the caller. Experts whose codes are in MXFP4
    stay so, and others come into it where `dtype` is "mxfp4".

    ValueError for a model that no architecture of transformers computes.
    """
    family, values = plan_folder(checkpoint)
    checkpoint = with_norm_offset(checkpoint, family.norm_offset)
    if dtype == mxfp4.FORMAT:
        checkpoint = mxfp4.quantized(checkpoint, family.rules(checkpoint.config))
    tensors = write_tensors(
        checkpoint.config, family.rules(checkpoint.config), checkpoint.parameters
    )
    # transformers loads everything in this one type, so the type of most tensors it is: a run may
    # keep its norms in float32.
    dtypes = [tensor.dtype for tensor, _ in tensors.values()]
    # "torch_dtype" is read by every release; version 5 writes "dtype".
    values |= {**checkpoint.special, "torch_dtype": max(set(dtypes), key=dtypes.count)}
    if "text_config" in values:
        # Classes with encoders of images look for them there: CLIP reads a text's end by its id.
        values["text_config"] = {**values["text_config"], **checkpoint.special}
    if checkpoint.config.scores_texts and checkpoint.tokenizer:
        # transformers scores the last token that is not this one, and without it no batches.
        values = {"pad_token_id": checkpoint.tokenizer.pad_id} | values
    if "id2label" in values:
        count = checkpoint.config.labels
        names = checkpoint.labels or read_label_names(checkpoint.source, count)
        # Where nobody has named a class, it keeps transformers' own name, LABEL_n.
        named = {n: name for n, name in enumerate(names) if name != str(n)}
        id2label = values["id2label"] | {str(n): name for n, name in named.items()}
        values |= {"id2label": id2label, "label2id": {v: int(n) for n, v in id2label.items()}}
    packed, settings = mxfp4.written_packed(checkpoint, family.rules(checkpoint.config))
    write_json(folder / "config.json", values | settings)
    # `make=make` binds this turn's value: a closure would see the loop's last one.
    streams = {}
    for name, (tensor, make) in tensors.items():
        streams |= packed.get(name) or {name: (tensor, lambda make=make: [make()])}
    write_safetensors(folder, streams, metadata={"format": "pt"}, shard_bytes=shard_bytes)


def plan_folder(checkpoint: Checkpoint) -> tuple[Family, dict[str, Any]]:
    """(family, config.json) that a checkpoint would be written as. ValueError as `write_folder`."""
    family, values = describe(checkpoint.config)
    return family, _as_kind(family, values, checkpoint.model_type)


def companions(folder: Path) -> dict[str, Path]:
    """The files of `COMPANIONS` that a folder has, and its named templates, by their names."""
    templates = [f"{FOLDER}/{file.name}" for file in sorted((folder / FOLDER).glob("*.jinja"))]
    return {name: folder / name for name in (*COMPANIONS, *templates) if (folder / name).is_file()}


def tokenizer_folder(folder: Path) -> Path | None:
    """`folder` itself if it holds a tokenizer that can be opened, else None."""
    return folder if any((folder / name).is_file() for name in TOKENIZERS) else None


def _refuse_pickles(folder: Path) -> None:
    # Both kinds side by side are common on the hub; then the pickles are simply not read.
    pickled = [
        name
        for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
        if (folder / name).is_file()
    ]
    if pickled and not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"{folder} has {pickled[0]} and no safetensors; pickled weights are never read, for "
            "opening them runs their code: "
            "load them with transformers and save_pretrained(..., safe_serialization=True) "
            "elsewhere"
        )


def _family(folder: Path, values: Mapping[str, Any]) -> Family:
    kind = values.get("model_type")
    known = {name: family for family in FAMILIES.values() for name in family.model_types}
    if kind in _THREE_POSITIONS:
        raise ValueError(
            f"{folder / 'config.json'} has model_type={kind!r}, whose tokens have positions in "
            "time, height and width (M-RoPE); models whose positions are one number are supported, "
            "such as smolvlm, llava and gemma3"
        )
    if kind not in known:
        raise ValueError(
            f"{folder / 'config.json'} has model_type={kind!r}; there are {', '.join(known)}"
        )
    return known[kind]


def _as_kind(family: Family, values: dict[str, Any], kind: str) -> dict[str, Any]:
    """A config.json in the name of `kind`, the model_type of the source, where that has the same
    models: by it transformers chooses the tokenizer of XLM-R, for example."""
    if kind not in family.classes:
        return values
    # Such as "Roberta" of "RobertaForMaskedLM".
    start, wanted = family.classes[values["model_type"]], family.classes[kind]
    names = [wanted + name.removeprefix(start) for name in values["architectures"]]
    return values | {"model_type": kind, "architectures": names}


def _refuse_counts(values: Mapping[str, Any], tensors: int) -> None:
    """ValueError for more layers or experts than there are tensors. Reading goes through all of
    them, which would take hours and all memory for a damaged number."""
    for name in _COUNTS:
        count = values.get(name)
        if type(count) is int and count > tensors:
            raise ValueError(
                f"config.json has {name}={count:,}, and the files hold {tensors:,} tensors; "
                "restore it from the source"
            )


def _generation(folder: Path) -> dict[str, Any]:
    """The special ids in generation_config.json. `eos_token_id` may be a list there: an
    instruction-tuned model ends at a turn's end too."""
    file = folder / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    return {
        name: values[name]
        for name in SPECIAL
        if isinstance(values, dict) and values.get(name) is not None
    }
