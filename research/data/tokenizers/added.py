"""Tokens that the files beside a vocabulary add to it, as transformers adds them."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from research.data.tokenizers.side_files import NAMED, SideFiles, spelt


def add_tokens(
    backend: tokenizers.Tokenizer,
    side: SideFiles,
    settings: Mapping[str, Any],
    special: tuple[AddedToken, ...] = (),
    grow: bool = True,
) -> bool:
    """Adds the tokens of the side files: first those with an id, then the ones that `settings`
    names, such as "eos_token", then further special ones, or `special` where no file lists any.

    A token that the vocabulary lacks gets the next id; without `grow` only one with an id of its
    own does. True if anything was added or got other flags.
    """
    known = backend.get_added_tokens_decoder().values()
    given = [_added(side.added[n]) for n in sorted(side.added)]
    new = _unlike(given, known)
    texts = {token.content for token in (*known, *new)}
    by_text = {token.content: token for token in given}
    further = [_added(settings[key]) for key in NAMED if settings.get(key)]
    further += [_added(token) for token in side.listed()] or list(special)
    for token in further:
        fits = grow or backend.token_to_id(token.content) is not None
        if token.content not in texts and fits:
            texts.add(token.content)
            new.append(by_text.get(token.content, token))
    named = {spelt(settings[key]) for key in NAMED if settings.get(key)}
    for token in new:
        token.special = token.special or token.content in named
    backend.add_tokens(new)
    return bool(new)


def _unlike(tokens: list[AddedToken], known: Any) -> list[AddedToken]:
    """The tokens that are not among the known ones with all their flags."""
    spellings = {repr(token) for token in known}
    return [token for token in tokens if repr(token) not in spellings]


def _added(token: Any) -> AddedToken:
    """A token of a file, a string or an object with flags; special unless that says otherwise."""
    if not isinstance(token, Mapping):
        return AddedToken(token, special=True, normalized=False)
    special = token.get("special", True)
    flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip")}
    normalized = token.get("normalized", not special)
    return AddedToken(token["content"], special=special, normalized=normalized, **flags)
