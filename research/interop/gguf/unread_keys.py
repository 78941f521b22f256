"""Keys of a GGUF file that nothing here reads: none is passed over without a word."""

from collections.abc import Iterator, Mapping
from typing import Any

# Keys that say nothing about what is computed, without the architecture's name.
_SAYS_NOTHING = {
    *("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type"),
    "classifier.output_labels",
    *("expert_count", "expert_used_count", "attention.layer_norm_epsilon"),
}
# Of a tokenizer: read by `tokenizer` and `ends`, or of no effect on the ids of a text.
_TOKENIZER = {
    *("model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix"),
    *("precompiled_charsmap", "remove_extra_whitespaces"),
    *("add_bos_token", "add_eos_token", "add_sep_token", "token_type_count"),
    *(f"{role}_token_id" for role in "bos eos eot eom unknown padding mask seperator".split()),
    *(f"{role}_token_id" for role in "cls prefix suffix middle".split()),
    *(f"fim_{role}_token_id" for role in "pre suf mid pad rep sep".split()),
}
_GGML = "tokenizer.ggml."


class Watched(Mapping):
    """Metadata that remembers the keys that were asked for."""

    def __init__(self, values: Mapping[str, Any]):
        self._values, self.read = values, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def unread(values: Watched, kind: str) -> list[str]:
    """The keys of the architecture `kind` and of the tokenizer that nobody asked for; those that
    say nothing about what is computed are left out."""
    names = []
    for key in values:
        prefix, _, name = key.partition(".")
        strange = prefix == kind and name not in _SAYS_NOTHING and key not in values.read
        # `rope_keys` and `rope_factors` read or refuse all of these.
        strange = strange and not name.startswith("rope.scaling.")
        if key.startswith(_GGML):
            strange = key.removeprefix(_GGML) not in _TOKENIZER
        if strange:
            names.append(key)
    return names


def warning(file: Any, keys: list[str]) -> str:
    """The line about them."""
    return (
        f"{file} has {len(keys)} settings that are not known here and change nothing: "
        f"{', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
    )
