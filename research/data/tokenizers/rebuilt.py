"""The tokenizer that transformers 5 makes of a folder with a tokenizer.json. It is not always what
that file says: for many classes only vocabulary and merges are taken from it.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.data.tokenizers import huggingface
from research.data.tokenizers.classes import ALIASES, BY_MODEL, CLASSES, Vocabulary
from research.data.tokenizers.legacy import as_json
from research.data.tokenizers.side_files import read_side_files
from research.data.tokenizers.tokenizer import Tokenizer
from research.files import read_json

# The class that does what tokenizer.json says.
PLAIN = "TokenizersBackend"
_PLAIN_NAMES = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "PythonBackend", PLAIN)
# Models whose folders often name a wrong class, so that their own goes before it.
_OWN_CLASS = ("qwen2", "phi3", "phimoe", "modernbert", "nemotron")
# Models that transformers knows without a class of their own for the tokenizer.
_WITHOUT = (
    *("mistral", "mixtral", "ministral", "ministral3", "phi3", "phimoe", "olmo2", "olmo3"),
    *("granite", "granitemoe", "modernbert", "glm", "glm4", "nemotron", "stablelm"),
)


def as_transformers(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with a tokenizer.json as transformers' AutoTokenizer opens it.
    ValueError for files that cannot be read."""
    side = read_side_files(folder)
    content = (folder / huggingface.FILE).read_bytes()
    row = CLASSES.get(class_in_transformers(folder, side.config, content))
    if row is None:
        return huggingface.load(content, side.config, side, grow=True)
    try:
        spec = json.loads(content)
        # Without a list of their own, the added tokens are those of tokenizer.json.
        if "added_tokens_decoder" not in side.config:
            own = {token["id"]: token for token in spec.get("added_tokens") or []}
            side = replace(side, added={**side.added, **own})
        return huggingface.load(*as_json(row, _vocabulary(spec), side, completed=True))
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers cannot open the tokenizer in {folder}: {reason}") from None


def class_in_transformers(folder: Path, config: Mapping[str, Any], content: bytes) -> str:
    """The class that AutoTokenizer chooses, without "Fast"; `PLAIN` where it follows the file."""
    file = folder / "config.json"
    model = read_json(file) if file.is_file() else {}
    kind = str(model.get("model_type"))
    said = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "")
    said = said.removesuffix("Fast") if said not in _PLAIN_NAMES else PLAIN
    own = PLAIN if kind in _WITHOUT else BY_MODEL.get(kind, "")
    # LLaMA 3's files name the class of LLaMA 2, which has no byte-level BPE.
    if said == "LlamaTokenizer" and b'"ByteLevel"' in content:
        return PLAIN
    if said and own and said != own:
        chosen = own if kind in _OWN_CLASS else said
        return PLAIN if own == PLAIN else ALIASES.get(chosen, chosen)
    chosen = said or own or PLAIN
    return ALIASES.get(chosen, chosen)


def _vocabulary(spec: Mapping[str, Any]) -> Vocabulary:
    model = spec["model"]
    tokens = model["vocab"]
    if isinstance(tokens, list):  # Unigram's, with scores
        tokens = [(token, score) for token, score in tokens]
    merges = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
        for pair in model.get("merges") or []
    ]
    steps = spec.get("normalizer") or {}
    charsmaps = [
        step["precompiled_charsmap"]
        for step in steps.get("normalizers", [steps])
        if step.get("type") == "Precompiled"
    ]
    charsmap = base64.b64decode(charsmaps[0]) if charsmaps else b""
    return Vocabulary(tokens, merges, charsmap)
