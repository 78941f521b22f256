"""sentencepiece models: any can be loaded, lossless BPE can be trained."""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import sentencepiece

from research.data.tokenizers.huggingface import CONFIG, dump, named_roles
from research.data.tokenizers.protobuf import fields
from research.data.tokenizers.side_files import ADDED, SideFiles
from research.data.tokenizers.special import RESERVED, find_roles
from research.data.tokenizers.tokenizer import Aligned, Tokenizer, begins_word

FILE = "tokenizer.model"
_NO_PREFIX = b"\x1a\x02\x18\x00"  # a normaliser whose field 3, the dummy prefix, is 0
# In the settings of a saved folder: texts behind a token have no space in front.
BARE = "bare_after_tokens"
_SPACE = "▁"  # U+2581, how pieces spell a space
_CHUNK_CHARACTERS = 2000  # of a sentence given to the trainer
# Field numbers in sentencepiece_model.proto: of the model, the trainer options and the normaliser
# options.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
# in sentencepiece.proto, of a text: each with its id (2) and where it begins (4) and ends (5)
_PIECES = 2
# The options that decide ids, by field number, with their defaults: of the trainer model_type,
# treat_whitespace_as_suffix, byte_fallback; of the normaliser the character map, the dummy prefix,
# the removal of extra whitespace, and the escaping of spaces.
_ID_OPTIONS = {3: 1, 24: 0, 35: 0}
_NORMALIZER_OPTIONS = {2: b"", 3: 1, 4: 1, 5: 1}

# Lossless: no normalisation, no blank added or removed, and bytes for unknown characters. The roles
# get the names of our reserved tokens, the other reserved ones are control symbols.
_TRAINING = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": 4 * _CHUNK_CHARACTERS,  # bytes; longer ones would be dropped
    "unk_id": 0,
    **{f"{role}_id": n for n, role in enumerate(("pad", "bos", "eos"), 1)},
    **{f"{role}_piece": f"<{role}>" for role in ("pad", "bos", "eos")},
    "control_symbols": ",".join(RESERVED[3:]),
    "minloglevel": 2,
}


def load(content: bytes, side: SideFiles | None = None) -> Tokenizer:
    """The tokenizer of a .model file, with the tokens that the files beside it add and the special
    tokens that they name; otherwise the control tokens with a usual name, such as "</s>", are the
    special ones.

    The string of a control token or an added one in a text becomes that token, and the text on each
    side of it is encoded alone; by transformers' setting `legacy: false` without the space that
    sentencepiece puts in front of a text. ValueError if the content is no sentencepiece model, and
    for an added token in the place of a piece.
    """
    side = side or SideFiles()
    bare = bool(side.config.get(BARE, side.config.get("legacy") is False))
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        # Messages of protocol buffers that follow each other are one, the last value counts.
        inner = content + _NO_PREFIX if bare else content
        models = (model, sentencepiece.SentencePieceProcessor(model_proto=inner))
        digest = model_digest(content)
        if not model.vocab_size():
            raise ValueError("it has no pieces")
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"not a sentencepiece model ({str(error).strip()})") from None
    pieces = model.id_to_piece(list(range(model.vocab_size())))
    added = _beyond({token["content"]: n for n, token in side.added.items()}, pieces)
    control = {piece: n for n, piece in enumerate(pieces) if model.is_control(n)} | added
    named, index = named_roles(side.config), {piece: n for n, piece in enumerate(pieces)}
    # A named token may be any piece; by the usual names only control tokens are special.
    roles = find_roles({t: index[t] for t in named.values() if t in index} | control, named)
    # Added ids may leave a gap behind the pieces; tables have rows for it all the same.
    size = max([len(pieces), *(n + 1 for n in added.values())])
    starts = [model.is_control(n) or begins_word(spelt(piece)) for n, piece in enumerate(pieces)]
    # Without added tokens the fingerprint is that of runs from before there could be any.
    parts = (digest, sorted(roles.items()), *([sorted(added.items())] if added else []))
    parts += ("bare",) if bare else ()
    insertions = _Insertions(_inserted(model, control), side)
    return Tokenizer(
        kind="sentencepiece",
        vocab_size=size,
        **roles,
        word_starts=np.array(starts + [True] * (size - len(pieces))),
        fingerprint=hashlib.sha256(repr(parts).encode()).hexdigest(),
        files={FILE: content, **_side_files(side, added, bare)},
        encode_texts=functools.partial(_encode_texts, models, insertions),
        decode_ids=functools.partial(
            _decode_ids, models, {n: piece for piece, n in control.items()}
        ),
        align_texts=functools.partial(_align_texts, models, insertions),
    )


def _side_files(side: SideFiles, added: Mapping[str, int], bare: bool) -> dict[str, bytes]:
    """The files that `save` writes beside the model."""
    files = {ADDED: dump(dict(added))} if added else {}
    if side.config:  # without the template, which is saved in a file of its own
        values = {k: v for k, v in side.config.items() if k != "chat_template"}
        files[CONFIG] = dump({**values, **({BARE: True} if bare else {})})
    return files


def _beyond(added: Mapping[str, int], pieces: list[str]) -> dict[str, int]:
    """The added tokens that are no pieces: files list pieces of the model among them too."""
    for token, number in added.items():
        if number < len(pieces) and pieces[number] != token:
            raise ValueError(
                f"the added token {token!r:.60} has the id {number} of the piece "
                f"{pieces[number]!r:.60}"
            )
    return {token: number for token, number in added.items() if number >= len(pieces)}


def train(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """BPE of `vocab_size` tokens learnt from the texts, with byte fallback and the reserved special
    tokens; lossless for any text.

    BPE because unigram takes 20 times as long and makes 6% more tokens of Python source.
    RuntimeError where the trainer refuses the size.
    """
    # The trainer is C++ and turns an error of the iterator into one of its own; the original is
    # kept and raised instead.
    written, failures = io.BytesIO(), []

    def sentences() -> Iterator[str]:
        try:
            yield from _chunks(texts)
        except Exception as error:  # the trainer would turn it into text
            failures.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(), model_writer=written, vocab_size=vocab_size, **_TRAINING
        )
    finally:
        if failures:
            raise failures[0] from None
    return load(written.getvalue())


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """The texts cut at line ends where they can be: the trainer wants sentences, and learns no
    piece across two."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + _CHUNK_CHARACTERS
            if end < len(text):
                # -1 + 1 is 0: without a line end the text is cut at full length.
                end = text.rfind("\n", start, end) + 1 or end
            yield text[start:end]
            start = end


# The model of what begins a text, and that of what follows a token within it.
_Models = tuple[sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor]


class _Insertions:
    """Strings that sentencepiece would not encode as we want, `ids` of each, and how a text is
    split at them."""

    def __init__(self, ids: dict[str, list[int]], side: SideFiles):
        self._ids = ids
        flags = {token["content"]: token for token in side.added.values()}
        patterns = [_pattern(text, flags.get(text, {})) for text in ids]
        self._split = re.compile(f"({'|'.join(patterns)})").split if ids else lambda text: [text]

    def split(self, text: str) -> list[str]:
        """Text, insertion, text, ..., text: every second part is an insertion."""
        return self._split(text)

    def __getitem__(self, part: str) -> list[int]:
        # A token that takes the blanks beside it was matched with them.
        return self._ids[part if part in self._ids else part.strip()]


def _pattern(text: str, flags: Mapping[str, Any]) -> str:
    """The regular expression that finds a token by the flags of `tokenizers.AddedToken`."""
    pattern = re.escape(text)
    if flags.get("single_word"):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    before, after = (r"\s*" if flags.get(side) else "" for side in ("lstrip", "rstrip"))
    return before + pattern + after


def _inserted(
    model: sentencepiece.SentencePieceProcessor, control: dict[str, int]
) -> dict[str, list[int]]:
    # The longest first: a token may begin with another.
    ids = {piece: [control[piece]] for piece in sorted(control, key=len, reverse=True)}
    # In models trained here a U+2581 of the text is spelt by its bytes: decoding would turn the
    # character itself into a space.
    if control.keys() >= set(RESERVED):
        ids[_SPACE] = [model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
    return ids


def _encode_texts(models: _Models, insertions: _Insertions, texts: list[str]) -> list[list[int]]:
    # All stretches of all texts in two calls, which the library spreads over the cores.
    parts = [insertions.split(text) for text in texts]
    first = models[0].encode([row[0] for row in parts])
    later = iter(models[1].encode([part for row in parts for part in row[2::2]]))
    return [
        _joined(ids, later, [insertions[part] for part in row[1::2]])
        for ids, row in zip(first, parts)
    ]


def _joined(ids: list[int], later: Iterator[list[int]], inserted: list[list[int]]) -> list[int]:
    for extra in inserted:
        ids = ids + extra + next(later)
    return ids


def _align_texts(models: _Models, insertions: _Insertions, texts: list[str]) -> list[Aligned]:
    return [_align(models, insertions, insertions.split(text)) for text in texts]


def _align(models: _Models, insertions: _Insertions, parts: list[str]) -> Aligned:
    ids, places, at = [], [], 0
    for index, part in enumerate(parts):
        # Every second part is an insertion, see `re.split` with a group.
        if index % 2:
            ids += insertions[part]
            places += [(at, at + len(part))] * len(insertions[part])
        else:
            raw = np.frombuffer(part.encode(), np.uint8)
            # Places come in bytes: the index of the character at each byte.
            character = at + np.concatenate([[0], np.cumsum(raw & 0xC0 != 0x80)])
            model = models[1 if index else 0]
            for field, value in fields(model.encode(part, out_type="serialized_proto")):
                if field == _PIECES:
                    piece = dict(fields(value))
                    ids.append(piece.get(2, 0))
                    places.append(
                        (int(character[piece.get(4, 0)]), int(character[piece.get(5, 0)]))
                    )
        at += len(part)
    return ids, places


def _decode_ids(models: _Models, control: dict[int, str], ids: list[int]) -> str:
    """sentencepiece decodes control tokens to nothing; here they come back as their strings."""
    parts: list[str] = []
    run: list[int] = []
    model = models[0]
    for token_id in ids:
        if token_id in control:
            parts += [model.decode(run), control[token_id]]
            run, model = [], models[1]
        elif token_id < model.vocab_size():  # ids between pieces and added tokens are nobody's
            run.append(token_id)
    return "".join([*parts, model.decode(run)])


def spelt(piece: str) -> str | bytes:
    """The text a piece stands for."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE, " ")


def model_digest(content: bytes) -> str:
    """sha256 of the pieces, their scores and types, and the options that decide ids; not of how it
    was trained."""
    # Defaults first: a field that a file leaves out is the same as one that states its default.
    digest, options, normalizer = hashlib.sha256(), dict(_ID_OPTIONS), dict(_NORMALIZER_OPTIONS)
    for field, value in fields(content):
        if field == _PIECE:
            digest.update(repr(sorted(fields(value))).encode())
        elif field == _TRAINER:
            options |= {key: option for key, option in fields(value) if key in options}
        elif field == _NORMALIZER:
            normalizer |= {key: option for key, option in fields(value) if key in normalizer}
    digest.update(repr((sorted(options.items()), sorted(normalizer.items()))).encode())
    return digest.hexdigest()
