"""What the tokenizer classes of transformers do with a vocabulary: how each splits and normalizes a
text, and its special tokens.

A folder without a tokenizer.json says only the class and its settings. Where there is one as well,
transformers 5 takes from it the vocabulary, the merges and what surrounds a text, and the rest from
the class (`TokenizersBackend.convert_to_native_format`), so these rules say how it encodes then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "▁"  # U+2581, how sentencepiece's pieces spell a space
# Of Qwen2Tokenizer: GPT-2's split with digits one by one and line ends apart.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_ROLES = {f"{role}_token": "<|endoftext|>" for role in ("unk", "bos", "eos")}
_BERT_ROLES = {f"{role}_token": f"[{role.upper()}]" for role in "unk sep pad cls mask".split()}
_ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_T5_ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their ids, or of Unigram in the order of ids with their scores, and what only
    some kinds have: the merges of BPE, and sentencepiece's table of replaced characters and its
    control and user-defined pieces."""

    tokens: Mapping[str, int] | list[tuple[str, float]]
    merges: list[tuple[str, str]] = field(default_factory=list)
    charsmap: bytes = b""
    special: tuple[AddedToken, ...] = ()


@dataclass(frozen=True)
class TokenizerClass:
    """One class of transformers.

    `files`: its vocabulary in a folder, in the first of these that is there ("+" joins two that
    belong together). `roles`: the special tokens of a folder that names none. `builds(vocabulary,
    settings)`: splitting, normalizing and merging by the settings of tokenizer_config.json.
    `frames(tokenizer, settings)`: what it puts around a text. `completes(vocabulary, settings)`:
    the tokens that the class has and the file lacks.
    """

    files: tuple[str, ...]
    roles: Mapping[str, str]
    builds: Callable[[Vocabulary, Mapping[str, Any]], tokenizers.Tokenizer]
    frames: Callable[[tokenizers.Tokenizer, Mapping[str, Any]], Any] = lambda t, c: _ends(t, c)
    completes: Callable[[Vocabulary, Mapping[str, Any]], Vocabulary] = lambda v, c: v


def _bpe(v: Vocabulary, **options: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.BPE(dict(v.tokens), v.merges, **options))


def _byte_level(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = _bpe(v, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    prefix = bool(c.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return backend


def _neox(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = _byte_level(v, c)
    backend.normalizer = normalizers.NFC()
    return backend


def _qwen2(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = _neox(v, c)
    prefix = bool(c.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return backend


def _llama(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = _bpe(v, fuse_unk=True, byte_fallback=True)
    scheme, prefix = "never", c.get("add_prefix_space") is not False
    if prefix:
        # The old way puts a space before what follows a special token, too.
        scheme = "always" if c.get("legacy") else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(steps)
    return backend


def _gemma(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    unk = str(c.get("unk_token") or "<unk>")
    backend = _bpe(v, fuse_unk=True, unk_token=unk, byte_fallback=True)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.normalizer = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    return backend


def _bert(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    model = models.WordPiece(dict(v.tokens), unk_token=c["unk_token"])
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=c.get("tokenize_chinese_chars") is not False,
        strip_accents=c.get("strip_accents"),
        lowercase=c.get("do_lower_case") is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _unigram(v: Vocabulary, unk_id: int, scheme: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram(list(v.tokens), unk_id, False))
    if v.charsmap:
        backend.normalizer = normalizers.Precompiled(v.charsmap)
    space = pre_tokenizers.Metaspace(SPACE, scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    backend.decoder = decoders.Metaspace(SPACE, scheme)
    return backend


def _t5(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return _unigram(v, 2, "always")


def _sentinels(c: Mapping[str, Any]) -> list[str]:
    count = c.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise ValueError(f"tokenizer_config.json has extra_ids={count!r}; wanted a small number")
    return [f"<extra_id_{n}>" for n in range(count)]


def _with_sentinels(v: Vocabulary, c: Mapping[str, Any]) -> Vocabulary:
    names = _sentinels(c)
    extra = [(name, 0.0) for name in reversed(names)]  # T5's last id is sentinel 0
    added = (AddedToken(name, special=True) for name in names)
    return replace(v, tokens=[*v.tokens, *extra], special=(*v.special, *added))


def _xlm_roberta(v: Vocabulary, c: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return _unigram(v, 3, "never" if c.get("add_prefix_space") is False else "always")


def _fairseq(v: Vocabulary, c: Mapping[str, Any]) -> Vocabulary:
    """fairseq's order: four special tokens in place of sentencepiece's three, the mask last."""
    first = [(c[f"{role}_token"], 0.0) for role in ("bos", "pad", "eos", "unk")]
    return replace(v, tokens=[*first, *list(v.tokens)[3:], (c["mask_token"], 0.0)])


def _ends(t: tokenizers.Tokenizer, c: Mapping[str, Any]) -> Any:
    """bos and eos around a text where add_bos_token and add_eos_token say so."""
    names = {role: c.get(f"{role}_token") for role in ("bos", "eos")}
    used = {role: name for role, name in names.items() if name and c.get(f"add_{role}_token")}
    return _around(t, used.get("bos"), used.get("eos"))


def _around(t: tokenizers.Tokenizer, first: str | None, last: str | None) -> Any:
    """A text, or two, between the tokens `first` and `last`, either of which may be None."""
    if not first and not last:
        return None
    single = [part for part in (first, "$A", last) if part]
    pair = [part for part in (first, "$A", last, "$B:1", last and f"{last}:1") if part]
    special = [(name, t.token_to_id(name)) for name in dict.fromkeys((first, last)) if name]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


_GPT2_FILES, _SPM = ("vocab.json+merges.txt",), ("spiece.model", "sentencepiece.bpe.model")
_CLS_SEP = {"frames": lambda t, c: _around(t, c["cls_token"], c["sep_token"])}
_ONLY_EOS = {"frames": lambda t, c: _around(t, None, c["eos_token"])}
_BOS_EOS = {"frames": lambda t, c: _around(t, c["bos_token"], c["eos_token"])}
_LLAMA_ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA_ROLES = {f"{role}_token": f"<{role}>" for role in "unk bos eos pad mask".split()}
_QWEN2_ROLES = {f"{role}_token": "<|endoftext|>" for role in ("unk", "eos", "pad")}

# By their names without "Fast". LLaMA's and Gemma's have a tokenizer.model, which
# `research.data.tokenizers.sentencepiece` reads, so of these only a tokenizer.json is rebuilt.
CLASSES = {
    "GPT2Tokenizer": TokenizerClass(_GPT2_FILES, _GPT2_ROLES, _byte_level),
    "Qwen2Tokenizer": TokenizerClass(_GPT2_FILES, _QWEN2_ROLES, _qwen2),
    "GPTNeoXTokenizer": TokenizerClass(
        _GPT2_FILES, {**_GPT2_ROLES, "pad_token": "<|padding|>"}, _neox
    ),
    "RobertaTokenizer": TokenizerClass(_GPT2_FILES, _ROBERTA_ROLES, _byte_level, **_CLS_SEP),
    "BertTokenizer": TokenizerClass(("vocab.txt",), _BERT_ROLES, _bert, **_CLS_SEP),
    "T5Tokenizer": TokenizerClass(_SPM, _T5_ROLES, _t5, completes=_with_sentinels, **_ONLY_EOS),
    "XLMRobertaTokenizer": TokenizerClass(
        _SPM, _ROBERTA_ROLES, _xlm_roberta, completes=_fairseq, **_BOS_EOS
    ),
    "LlamaTokenizer": TokenizerClass((), _LLAMA_ROLES, _llama),
    "GemmaTokenizer": TokenizerClass((), _GEMMA_ROLES, _gemma),
}
# Classes that transformers 5 has as other names of these.
ALIASES = {
    "BartTokenizer": "RobertaTokenizer",
    "CodeGenTokenizer": "GPT2Tokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "MT5Tokenizer": "T5Tokenizer",
}
# The class of a folder that names none, by model_type of its config.json.
BY_MODEL = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    **dict.fromkeys(("roberta", "bart"), "RobertaTokenizer"),
    **dict.fromkeys(("t5", "mt5"), "T5Tokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    "xlm-roberta": "XLMRobertaTokenizer",
    "marian": "MarianTokenizer",
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
}
