"""All that can be said of a checkpoint without computing: what it is, its sizes, its tokenizer and
template, how it ends texts, and what each format would lose of it.
"""

import math
import os
from pathlib import Path
from typing import Any

from research.data.chat import TRAINING_DAY, render_chat
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.files import read_json
from research.interop import beside, certify
from research.interop.contents import sizes, stored_types, written_out
from research.interop.formats import FORMATS, format_of
from research.interop.huggingface.families.table import describe
from research.interop.huggingface.folder import companions, tokenizer_folder
from research.interop.load import local_path, open_checkpoint
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.generation import decoder_ids, end_ids
from research.interop.strangers import name_stranger
from research.models.config import ModelConfig

EXAMPLE = [{"role": "user", "content": "What is 2 + 2?"}]
# Of a `ModelConfig`, the numbers by which people tell models apart.
_SHAPE = (
    "kind", "layers", "d_model", "heads", "kv_heads", "head_size", "d_ff", "experts", "vocab_size",
    "max_length", "position", "tied",
)  # fmt: skip
# Weights and what describes them: every format writes its own.
_OWN = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf")
_DESCRIBED = ("config.json", "model.json", certify.FILE)


def inspect(source: str | Path) -> dict[str, Any]:
    """The facts about a path or spelling as JSON values; parts that it lacks are None.

        inspect("checkpoints/smollm2")["model"]["layers"]

    source, path     as given, and where it lies
    format, what     a row of `research.interop.formats.FORMATS`, or the kind of a stranger
    remedy           what to do with a stranger, which is not opened
    refused          why a checkpoint cannot be opened
    files, stored    bytes by name; numbers of tensors and values by their type in the files
    model            family, shape and parameters
    tokenizer, template, ends, sampling, decoder_start
    certificate      what the folder was converted from
    targets          by format: "refused", else "lost", lines on what it would not keep

    ValueError for a path that is not there and for a file of no kind that is known here.
    """
    name, path = os.fspath(source), local_path(source)
    facts: dict[str, Any] = {"source": name, "path": str(path)}
    stranger = name_stranger(path, name)
    if stranger is None or not path.exists():
        row = format_of(path, name)  # refuses what is not there
        facts |= {"format": next(key for key, one in FORMATS.items() if one is row)}
        facts |= {"what": row.wanted, "remedy": None}
    else:
        facts |= {"format": stranger.kind, "what": stranger.what, "remedy": stranger.remedy}
    facts |= {"refused": None, "files": sizes(path), "stored": stored_types(path)}
    facts |= dict.fromkeys(("model", "tokenizer", "template", "ends", "sampling", "targets"))
    facts["certificate"] = _certificate(path)
    if stranger is not None:
        return facts | _tokenizer_alone(path)
    try:
        with open_checkpoint(source, verify=False) as checkpoint:
            return facts | _opened(checkpoint)
    except ValueError as error:
        # Its tokenizer may be whole where its weights cannot be read.
        return facts | {"refused": str(error)} | _tokenizer_alone(path)


def _opened(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer = checkpoint.tokenizer
    writes = checkpoint.config.kind != "encoder"
    ends = list(dict.fromkeys(end_ids(checkpoint.special)))
    if not ends and tokenizer is not None and tokenizer.eos_id is not None:
        ends = [tokenizer.eos_id]
    return {
        "model": _model(checkpoint),
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer),
        "template": None if tokenizer is None else _template(tokenizer),
        "ends": [_token(tokenizer, n) for n in ends if writes],
        "decoder_start": [_token(tokenizer, n) for n in decoder_ids(checkpoint.special)],
        "sampling": dict(checkpoint.sampling),
        "targets": {name: _target(checkpoint, name) for name, row in FORMATS.items() if row.writes},
    }


def _model(checkpoint: Checkpoint) -> dict[str, Any]:
    c = checkpoint.config
    parameters = checkpoint.parameters.values()
    return {
        "family": checkpoint.model_type or _family(c),
        **{name: getattr(c, name) for name in _SHAPE},
        "parameters": sum(math.prod(one.shape) for one in parameters),
        "dtypes": sorted({one.dtype for one in parameters}),
        "quantized": checkpoint.quantized,
        "stored_as": checkpoint.stored_as,
        "unused": dict(checkpoint.unused),
    }


def _family(c: ModelConfig) -> str | None:
    """The model_type of a config.json of such a model; None for one that transformers has not."""
    try:
        return str(describe(c)[1]["model_type"])
    except ValueError:
        return None


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    roles = ("bos", "eos", "pad", "mask")
    ids = {role: getattr(tokenizer, f"{role}_id") for role in roles}
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        **{role: _token(tokenizer, n) for role, n in ids.items() if n is not None},
    }


def _token(tokenizer: Tokenizer | None, n: int) -> dict[str, Any]:
    known = tokenizer is not None and n < tokenizer.vocab_size
    return {"id": n, "text": tokenizer.decode([n]) if known else None}


def _template(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The size of the chat template, and `EXAMPLE` as it renders or why it does not."""
    if tokenizer.chat_template is None:
        return None
    facts: dict[str, Any] = {"characters": len(tokenizer.chat_template)}
    facts |= {"others": sorted(tokenizer.templates), "example": None, "refused": None}
    try:
        return facts | {"example": render_chat(tokenizer, EXAMPLE, now=TRAINING_DAY)}
    except ValueError as error:
        return facts | {"refused": str(error)}


def _target(checkpoint: Checkpoint, to: str) -> dict[str, Any]:
    """What `research.convert --to` would say of the checkpoint, from its settings alone."""
    try:
        lost = [*FORMATS[to].plans(checkpoint), *beside.lost(checkpoint, to)]
        lost += written_out(checkpoint, to)
    except ValueError as error:
        return {"refused": str(error), "lost": []}
    if left := _left_behind(checkpoint.source, to):
        lost.append(f"files that stay behind: {', '.join(left)}")
    return {"refused": None, "lost": lost}


def _left_behind(folder: Path, to: str) -> list[str]:
    """The files of a folder that a conversion neither reads nor copies."""
    if not folder.is_dir() or FORMATS["run"].recognises(folder):
        return []
    kept = {*companions(folder), *_DESCRIBED}
    return [n for n in sizes(folder) if n not in kept and not n.endswith(_OWN)]


def _tokenizer_alone(path: Path) -> dict[str, Any]:
    try:
        if not path.is_dir() or tokenizer_folder(path) is None:
            return {}
        tokenizer = load_tokenizer(path)
    except ValueError:
        return {}
    return {"tokenizer": _tokenizer(tokenizer), "template": _template(tokenizer)}


def _certificate(path: Path) -> str | None:
    """The source that the folder's certificate names; its hashes are not checked here."""
    try:
        source = read_json(path / certify.FILE)["source"]
        return str(source.get("hub", source["name"]))
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return None
