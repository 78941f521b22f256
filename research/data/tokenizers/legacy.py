"""Tokenizers of folders without a tokenizer.json: GPT-2's vocab.json and merges.txt, BERT's
vocab.txt, T5's spiece.model. Each becomes a tokenizer.json that encodes as transformers does.
"""

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models

from research.data.tokenizers import huggingface, marian
from research.data.tokenizers.added import add_tokens
from research.data.tokenizers.classes import ALIASES, BY_MODEL, CLASSES, TokenizerClass, Vocabulary
from research.data.tokenizers.protobuf import fields
from research.data.tokenizers.side_files import NAMED, SideFiles, read_side_files, spelt
from research.data.tokenizers.special import refuse_far_ids
from research.data.tokenizers.tokenizer import Tokenizer, UnknownTokenizer
from research.files import read_json

# A folder with one of these has a tokenizer.
FILES = ("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", marian.SOURCE)
# Numbers of fields and piece types in sentencepiece_model.proto.
_PIECE, _NORMALIZER, _CHARSMAP = 1, 3, 2
_CONTROL, _USER_DEFINED = 3, 4


def load_legacy(folder: Path) -> Tokenizer:
    """The tokenizer in a folder, by the class that its tokenizer_config.json or config.json names
    and the settings of the files beside it. ValueError, which names the folder, for a class that is
    not known, a vocabulary that cannot be read, and a folder that does not say its class."""
    side = read_side_files(folder)
    name = class_name(folder, side.config)
    if name == "MarianTokenizer":
        return marian.load(folder, side)
    row = CLASSES.get(name)
    if row is None or not row.files:
        known = ", ".join(name for name, row in CLASSES.items() if row.files)
        raise UnknownTokenizer(
            f"the tokenizer in {folder} is of class {name}; without a tokenizer.json there are "
            f"{known}, MarianTokenizer: save it with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        return huggingface.load(*as_json(row, _read_vocabulary(folder, row.files), side))
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot use the {name} in {folder}: {reason}; restore its files from the source"
        ) from None


def class_name(folder: Path, config: Mapping[str, Any]) -> str:
    """The class in transformers, without "Fast", of the tokenizer in a folder with the
    tokenizer_config.json `config`. ValueError for a folder that does not say it."""
    file = folder / "config.json"
    model = read_json(file) if file.is_file() else {}
    model = model if isinstance(model, dict) else {}
    said = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = said.removesuffix("Fast") if isinstance(said, str) else ""
    usual = BY_MODEL.get(str(model.get("model_type")), "")
    # A name that says only "some class" leaves it to the model.
    known = {"", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}
    name = usual if usual and name in known else name
    if not name:
        raise UnknownTokenizer(
            f"the tokenizer in {folder} does not say its class; write it into "
            'tokenizer_config.json, such as {"tokenizer_class": "GPT2Tokenizer"}'
        )
    return ALIASES.get(name, name)


def as_json(
    row: TokenizerClass, vocabulary: Vocabulary, side: SideFiles, completed: bool = False
) -> tuple[bytes, dict[str, Any]]:
    """(tokenizer.json, tokenizer_config.json) of a vocabulary as a class uses it; `completed` if it
    has all tokens of the class already."""
    settings = {**row.roles, **side.config}
    settings |= {key: spelt(settings[key]) for key in NAMED if key in settings}
    full = row.completes(vocabulary, settings)
    vocabulary = replace(vocabulary, special=full.special) if completed else full
    backend = row.builds(vocabulary, settings)
    refuse_far_ids(backend.get_vocab(with_added_tokens=True))
    named = {**row.roles, **side.config}  # with their flags
    add_tokens(backend, side, named, vocabulary.special)
    if (frame := row.frames(backend, settings)) is not None:
        backend.post_processor = frame
    return backend.to_str().encode(), settings


def _read_vocabulary(folder: Path, files: tuple[str, ...]) -> Vocabulary:
    for names in files:
        paths = [folder / name for name in names.split("+")]
        if not all(path.is_file() for path in paths):
            continue
        texts = [str(path) for path in paths]
        if len(texts) == 2:
            return Vocabulary(*models.BPE.read_file(*texts))
        if paths[0].suffix == ".txt":
            return Vocabulary(models.WordPiece.read_file(*texts))
        return read_unigram(paths[0].read_bytes())
    raise ValueError(f"it wants {' or '.join(files).replace('+', ' and ')}")


def read_unigram(content: bytes) -> Vocabulary:
    """The pieces of a sentencepiece model of kind Unigram. ValueError for another kind."""
    pieces, charsmap, kind = [], b"", 1
    try:
        for number, value in fields(content):
            if number == _PIECE:
                pieces.append(dict(fields(value)))
            elif number == _NORMALIZER:
                charsmap = dict(fields(value)).get(_CHARSMAP, b"")
            elif number == 2:  # the trainer's options, model_type among them
                kind = dict(fields(value)).get(3, 1)
        vocabulary = [(piece[1].decode(), _float(piece.get(2))) for piece in pieces]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a sentencepiece model ({error!r})") from None
    if kind != 1 or not vocabulary:
        raise ValueError("its sentencepiece model is not Unigram")
    special = [
        AddedToken(text, normalized=False, special=piece[3] == _CONTROL)
        for piece, (text, _) in zip(pieces, vocabulary)
        if piece.get(3) in (_CONTROL, _USER_DEFINED)
    ]
    return Vocabulary(vocabulary, charsmap=charsmap, special=tuple(special))


def _float(value: Any) -> float:
    return struct.unpack("<f", value)[0] if value is not None else 0.0
