"""Grammars that a text must follow: JSON schemas, regular expressions and context-free grammars.

llguidance reads them and says at each token what may follow
(https://github.com/guidance-ai/llguidance, `docs/syntax.md` for its form of Lark's grammars). It is
of an extra (`[serve]`), so it is imported where it is used.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from research.data.tokenizers import Tokenizer
from research.data.tokenizers.token_bytes import token_bytes
from research.serve.guide import CLOSERS, Guide, ranks

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KINDS = ("json_schema", "regex", "lark")
# White space between the parts of a JSON text. Without a bound a model may write it for ever.
_WHITE = r"[\x20\x0A\x0D\x09]{0,16}"


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar that was read, for any number of texts: `guide` begins one. `source` is the grammar
    as llguidance spells it."""

    source: str
    matcher: LLMatcher
    ends: tuple[int, ...]
    rank_V: np.ndarray

    def guide(self) -> Guide:
        """The state of a text without tokens."""
        return Guide(self.matcher.deep_copy(), self.ends, self.rank_V)


class Grammars:
    """Reads grammars for a tokenizer whose texts end at any of the tokens `ends`. What it needs of
    the vocabulary is made at the first one."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int]):
        known = {n for n in (*ends, tokenizer.eos_id) if n is not None}
        self._tokenizer, self._ends = tokenizer, tuple(sorted(known))
        self._lock = threading.Lock()
        self._vocabulary: tuple[LLTokenizer, np.ndarray] | None = None

    def read(self, kind: str, spec: str | Mapping[str, Any]) -> Grammar:
        """The grammar of a kind of `KINDS`: a schema as a mapping, the others as texts. ValueError
        for one that cannot be read, or that does more than llguidance knows."""
        if importlib.util.find_spec("llguidance") is None:
            raise ValueError(
                "llguidance is missing on the server; pip install graft-research[serve]"
            )
        from llguidance import LLMatcher

        vocabulary, rank_V = self._known()
        if kind == "json_schema":
            # Not of the schema's own choice ("x-guidance"): they are not part of JSON schema.
            source = LLMatcher.grammar_from_json_schema(
                json.dumps(spec), overrides={"whitespace_pattern": _WHITE}
            )
        elif kind == "regex":
            source = LLMatcher.grammar_from_regex(spec)
        else:
            source = LLMatcher.grammar_from_lark(spec)
        matcher = LLMatcher(vocabulary, source, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:200]
            raise ValueError(f"the {kind} cannot be read: {reason}")
        return Grammar(source, matcher, self._ends, rank_V)

    def spell(self, text: str) -> str:
        """A text as a grammar of the kind "lark" has it: a special token by its id."""
        [first, *more] = self._tokenizer.encode(text) if text else [0, 0]
        if not more and self._known()[0].is_special_token(first):
            return f"<[{first}]>"
        return json.dumps(text) if text else ""

    def _known(self) -> tuple[LLTokenizer, np.ndarray]:
        with self._lock:
            self._vocabulary = self._vocabulary or self._read_vocabulary()
        return self._vocabulary

    def _read_vocabulary(self) -> tuple[LLTokenizer, np.ndarray]:
        from llguidance import LLTokenizer

        if not self._ends:
            raise ValueError(
                "the tokenizer has no token that ends a text, and a grammar needs one; choose a "
                "checkpoint that names its eos_token"
            )
        size, ends = self._tokenizer.vocab_size, list(self._ends)
        spelt = self._tokenizer.files.get("tokenizer.json")
        if self._tokenizer.kind == "huggingface" and spelt is not None:
            vocabulary = LLTokenizer(spelt.decode(), n_vocab=size, eos_token=ends)
        else:
            vocabulary = LLTokenizer(_Wrapped(self._tokenizer, ends[0]), eos_token=ends)
        lengths = [len(vocabulary.decode_bytes([token_id])) for token_id in range(size)]
        closers = [vocabulary.tokenize_str(closer) for closer in CLOSERS]
        first = dict.fromkeys(ids[0] for ids in closers if len(ids) == 1)
        return vocabulary, ranks(lengths, list(first))


class _Wrapped:
    """A tokenizer in the form that llguidance takes."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, end: int):
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_id
        self.tokens, self.special_token_ids = token_bytes(tokenizer)
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())
