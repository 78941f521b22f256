"""Marian's tokenizers: two sentencepiece models, for the language that is read and for the one that
is written, over one vocabulary (OPUS-MT's source.spm, target.spm and vocab.json).
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import sentencepiece

from research.data.tokenizers.huggingface import dump
from research.data.tokenizers.protobuf import fields
from research.data.tokenizers.sentencepiece import model_digest
from research.data.tokenizers.side_files import CONFIG, NAMED, SideFiles, spelt
from research.data.tokenizers.special import MOST, find_roles
from research.data.tokenizers.tokenizer import Aligned, Tokenizer, begins_word

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
_ROLES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
# Of a multilingual model: the language to translate into, before the text.
_LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)
_PIECES = 2  # field of sentencepiece.proto: its piece (1), and where it begins (4) and ends (5)


@dataclass(frozen=True)
class _Side:
    """One language: its sentencepiece model, and what both languages share."""

    model: sentencepiece.SentencePieceProcessor
    ids: Mapping[str, int]
    special: Mapping[str, int]
    unk_id: int

    def pieces(self, text: str) -> Iterator[tuple[str, int, int, int]]:
        """(piece, its id, first character, end character) of each piece of a text."""
        for start, stop, token in self._parts(text):
            if token is not None:
                yield token, self.special.get(token, self.ids.get(token, self.unk_id)), start, stop
                continue
            part = text[start:stop]
            raw = np.frombuffer(part.encode(), np.uint8)
            # Places come in bytes: the index of the character at each byte.
            at = start + np.concatenate([[0], np.cumsum(raw & 0xC0 != 0x80)])
            for field, value in fields(self.model.encode(part, out_type="serialized_proto")):
                if field == _PIECES:
                    one = dict(fields(value))
                    piece = one[1].decode()
                    place = int(at[one.get(4, 0)]), int(at[one.get(5, 0)])
                    # Ids of the sentencepiece model itself are others than the vocabulary's.
                    yield piece, self.ids.get(piece, self.unk_id), *place

    def _parts(self, text: str) -> Iterator[tuple[int, int, str | None]]:
        """(start, stop, token or None for a stretch of text): special tokens, and a language at the
        beginning of each stretch between them."""
        at = 0
        names = sorted(self.special, key=len, reverse=True)
        marks = [m.span() for m in re.finditer("|".join(map(re.escape, names)), text)]
        for start, stop in [*marks, (len(text), len(text))]:
            language = _LANGUAGE.match(text, at, start)
            if language:
                yield at, language.end(), language[0]
                at = language.end()
            if at < start:
                yield at, start, None
            if start < stop:
                yield start, stop, text[start:stop]
            at = stop


def load(folder: Path, side: SideFiles) -> Tokenizer:
    """The tokenizer in a folder of MarianTokenizer: `encode` is that of texts to translate, and
    `targets` that of their translations; `decode` is that of translations.

    Without the normalization of punctuation that transformers makes where sacremoses is installed.
    ValueError for a file that is missing or damaged, and for two vocabularies.
    """
    if side.config.get("separate_vocabs"):
        raise ValueError(f"{folder} has a vocabulary of its own for each language; wanted one")
    files = {}
    for name in (SOURCE, TARGET, VOCABULARY):
        if not (folder / name).is_file():
            raise ValueError(f"the tokenizer in {folder} has no {name}; restore it from the source")
        files[name] = (folder / name).read_bytes()
    settings = {**_ROLES, **side.config}
    named = {key: spelt(settings.get(key)) for key in NAMED if key in settings}
    try:
        ids = {str(piece): int(n) for piece, n in json.loads(files[VOCABULARY]).items()}
        if not ids or not all(0 <= n < MOST for n in ids.values()):
            raise ValueError(f"{VOCABULARY} has ids that are not in 0 to {MOST - 1:,}")
        models = [_model(files[name]) for name in (SOURCE, TARGET)]
        digests = [model_digest(files[name]) for name in (SOURCE, TARGET)]
    except (ValueError, RuntimeError, IndexError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot use the MarianTokenizer in {folder}: {reason}; restore its files from the "
            "source"
        ) from None
    if named["unk_token"] not in ids:
        raise ValueError(f"{folder / VOCABULARY} lacks {named['unk_token']!r}")
    special = _special(ids, named, side)
    files[CONFIG] = dump(
        {k: v for k, v in side.config.items() if k != "chat_template"}
        | {"tokenizer_class": "MarianTokenizer"}
    )
    sides = [_Side(model, ids, special, ids[named["unk_token"]]) for model in models]
    return _tokenizer(sides, {k[:-6]: v for k, v in named.items()}, digests, files)


def _special(ids: dict[str, int], named: Mapping, side: SideFiles) -> dict[str, int]:
    """Ids of the tokens that are found in a text before it is cut into pieces. Those that the
    vocabulary lacks are added behind it, as transformers does."""
    special = {token["content"]: n for n, token in side.added.items()}
    for token in [*named.values(), *map(spelt, side.listed())]:
        if token and token not in special:
            special[token] = ids.get(token, max([*ids.values(), *special.values()]) + 1)
    return special


def _model(content: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def _tokenizer(
    sides: Sequence[_Side], named: Mapping, digests: list[str], files: Mapping[str, bytes]
) -> Tokenizer:
    special, everything = sides[0].special, {**sides[0].ids, **sides[0].special}
    size = max(everything.values()) + 1
    starts = np.ones(size, bool)
    for piece, n in sides[0].ids.items():
        starts[n] = piece in special or begins_word(piece.replace("▁", " "))
    roles = find_roles(special, {"bos": None, **named})
    parts = (digests, sorted(everything.items()), sorted(special.items()), sorted(roles.items()))
    texts = {n: piece for piece, n in everything.items()}
    source, target = (
        Tokenizer(
            kind="marian",
            vocab_size=size,
            **roles,
            word_starts=starts,
            fingerprint=hashlib.sha256(repr((n, *parts)).encode()).hexdigest(),
            files=files,
            encode_texts=functools.partial(_encode_texts, side),
            decode_ids=functools.partial(_decode_ids, sides[1], texts),
            align_texts=functools.partial(_align_texts, side),
        )
        for n, side in enumerate(sides)
    )
    return replace(source, targets=target)


def _encode_texts(side: _Side, texts: list[str]) -> list[list[int]]:
    return [[token_id for _, token_id, _, _ in side.pieces(text)] for text in texts]


def _align_texts(side: _Side, texts: list[str]) -> list[Aligned]:
    aligned = []
    for text in texts:
        rows = list(side.pieces(text))
        aligned.append(([row[1] for row in rows], [row[2:] for row in rows]))
    return aligned


def _decode_ids(side: _Side, texts: Mapping[int, str], ids: list[int]) -> str:
    """Special tokens come back as their strings; ids that are nobody's as nothing."""
    parts: list[str] = []
    run: list[str] = []
    for token_id in ids:
        piece = texts.get(token_id, "")
        if piece in side.special:
            parts += [side.model.decode_pieces(run), piece]
            run = []
        elif piece:
            run.append(piece)
    return "".join([*parts, side.model.decode_pieces(run)])
