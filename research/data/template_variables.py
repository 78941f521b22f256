"""Variables of a chat template beside the messages, such as Qwen 3's `enable_thinking`, spelt
NAME=VALUE in flags and configs."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from research.data.tokenizers import Tokenizer

# Set for each conversation; see `research.data.chat`.
_TAKEN = ("messages", "tools", "documents", "add_generation_prompt")


def parse_variables(spelt: Iterable[str]) -> dict[str, Any]:
    """{name: value} of texts NAME=VALUE. A value that is JSON is that value, any other a text.
    ValueError for what is not spelt so, and for the names that each conversation sets itself.

    >>> parse_variables(["enable_thinking=false", "effort=high"])
    {'enable_thinking': False, 'effort': 'high'}
    """
    variables: dict[str, Any] = {}
    for text in spelt:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{text!r} is no variable of a template; wanted NAME=VALUE")
        if name in _TAKEN:
            raise ValueError(f"{name!r} is set by each conversation; choose another variable")
        try:
            variables[name] = json.loads(value)
        except (ValueError, RecursionError):
            variables[name] = value
    return variables


def with_variables(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose templates see further variables. ValueError for one that none of its
    templates mentions: it would change nothing."""
    if not variables:
        return tokenizer
    sources = sources_of(tokenizer)
    for name in variables:
        if not any(re.search(rf"\b{name}\b", source) for source in sources):
            asked = sorted(
                {m[1] for s in sources for m in re.finditer(r"(\w+) is (?:not )?def", s)}
            )
            known = f"; it asks for {', '.join(asked)}" if asked else ""
            raise ValueError(f"the chat template has no variable {name!r}{known}")
    return replace(tokenizer, template_variables={**tokenizer.template_variables, **variables})


def sources_of(tokenizer: Tokenizer) -> list[str]:
    """The sources of all chat templates of a tokenizer."""
    return [tokenizer.chat_template or "", *tokenizer.templates.values()]
