"""What lies beside a vocabulary: tokenizer_config.json, special_tokens_map.json and
added_tokens.json, resolved into one configuration by the rules of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.data.tokenizers.special import MOST
from research.files import read_json

CONFIG, SPECIAL_MAP, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Keys that name one token each, in the order in which transformers adds those that are missing.
NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# Keys that list further special tokens: today's name and that of transformers 4.
_LISTS = ("extra_special_tokens", "additional_special_tokens")
# How an added token is found in a text, as `tokenizers.AddedToken` spells it.
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class SideFiles:
    """The resolved files.

    `config`: tokenizer_config.json, in which special_tokens_map.json has replaced what it names.
    `added`: the tokens beside the vocabulary by id, each {"content", "single_word", "lstrip",
    "rstrip", "normalized", "special"}.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def named(self) -> dict[str, str | None]:
        """The string of each named token by its key, such as "eos_token"; None for one that is set
        to null."""
        return {key: spelt(self.config[key]) for key in NAMED if key in self.config}

    def listed(self) -> list[Any]:
        """Further special tokens, as strings or objects."""
        for key in _LISTS:
            if tokens := self.config.get(key):
                return list(tokens.values() if isinstance(tokens, Mapping) else tokens)
        return []


def read_side_files(folder: Path) -> SideFiles:
    """The side files in a folder. ValueError, which names the folder, for one that cannot be read.

    As in transformers (`PreTrainedTokenizerBase._from_pretrained`): with `added_tokens_decoder` in
    tokenizer_config.json the two other files, of older releases, are not read. Without it
    special_tokens_map.json goes before tokenizer_config.json, and the tokens of added_tokens.json
    are special if one of the two names them.
    """
    files = {name: folder / name for name in (CONFIG, SPECIAL_MAP, ADDED)}
    try:
        values = {name: _object(path) for name, path in files.items() if path.is_file()}
        return resolve(values.get(CONFIG, {}), values.get(SPECIAL_MAP, {}), values.get(ADDED, {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        there = " and ".join(name for name, path in files.items() if path.is_file())
        raise ValueError(
            f"the added tokens in {folder} cannot be read ({error!r}); restore {there} from the "
            "source"
        ) from None


def resolve(
    config: Mapping[str, Any], special_map: Mapping[str, Any], added: Mapping[str, Any]
) -> SideFiles:
    """The contents of the three files, {} for one that is absent, resolved as `read_side_files`
    says."""
    # Absent and null are not the same: an empty decoder still keeps the older files out.
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"] or {}
        added = {int(n): _token(token) for n, token in sorted(decoder.items())}
        return _checked(SideFiles(config, added))
    config = {**config, **special_map}
    one = SideFiles(config)
    special = {text for text in one.named().values() if text} | set(map(spelt, one.listed()))
    # transformers finds a token that is not special in the normalized text.
    tokens = {
        number: _token({"content": text, "special": text in special, "normalized": None})
        for text, number in dict(added).items()
    }
    return _checked(SideFiles(config, tokens))


def spelt(token: Any) -> str | None:
    """The string of a token, which files write as a string or as an object with its "content".
    ValueError for anything else but null."""
    text = token["content"] if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise ValueError(f"a token is {text!r:.40}, wanted its text")
    return text


def _object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values


def _token(token: Any) -> dict[str, Any]:
    """An added token with all of its flags; one of which only the string is known is special."""
    given = token if isinstance(token, Mapping) else {"content": token, "special": True}
    flags = {name: bool(given.get(name, False)) for name in _FLAGS}
    if given.get("normalized") is None:
        flags["normalized"] = not flags["special"]
    return {"content": _text(given), **flags}


def _text(token: Mapping[str, Any]) -> str:
    text = spelt(token)
    if text is None:
        raise ValueError("a token is null, wanted its text")
    return text


def _checked(side: SideFiles) -> SideFiles:
    """The same, after a look at what only later would be found to be no token."""
    for token in (*side.named().values(), *side.listed()):
        spelt(token)
    for number, token in side.added.items():
        if type(number) is not int or not 0 <= number < MOST:
            raise ValueError(f"the added token {token['content']!r:.60} has the id {number!r}")
    return side
