"""A Hugging Face folder as transformers reads it beside its tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from research.data.tokenizers import Tokenizer, load_tokenizer
from research.data.tokenizers.huggingface import FILE
from research.data.tokenizers.rebuilt import as_transformers
from research.data.tokenizers.template_files import template_fields
from research.files import read_json
from research.interop.huggingface.folder import tokenizer_folder
from research.interop.storage.generation import end_ids


def read_folder(folder: Path) -> tuple[Tokenizer | None, tuple[int, ...]]:
    """(tokenizer with its templates or None, ids that end a text) as AutoTokenizer and `generate`
    have them. ValueError for files that they cannot read."""
    return _tokenizer(folder), end_ids(_generation(folder))


def _tokenizer(folder: Path) -> Tokenizer | None:
    if (folder / FILE).is_file():
        return replace(as_transformers(folder), **template_fields(folder))
    # Older files are read by its rules anyway.
    return load_tokenizer(folder) if tokenizer_folder(folder) else None


def _generation(folder: Path) -> dict[str, Any]:
    """The values that `generate` starts from: of generation_config.json if there is one, whatever
    config.json says."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}
