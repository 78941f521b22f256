"""Messages as a chat template sees them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from research.data.conversations import with_text

# Names that data give to what the assistant thinks, the one that most templates read first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# A loop over the parts of a content, as "{% for part in message['content'] %}".
_LOOPS = re.compile(r"\{%[-+]?\s*for\s+\w+\s+in\s+[^%]*\bcontent\b")
_READS = re.compile(r"tool_calls|reasoning|thinking")


def for_template(messages: Sequence[Mapping[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages as `template` reads them: without their null fields, and with the thoughts of
    the assistant under the two names that templates read, as transformers' apply_chat_template
    gives them.

    A content of null beside tool calls is no content: templates would write "None". A content in
    parts stays as it is for a template that goes through parts; for others it becomes one text,
    where transformers writes the list itself or fails. ValueError for a part that is no text.
    """
    prepared, loops = [], reads_parts(template)
    for number, message in enumerate(messages):
        joined = with_text(number, message)
        message = _with_parts(message, "string" not in template) if loops else joined
        given = {name: value for name, value in message.items() if value is not None}
        thoughts = next((given[name] for name in _REASONING if name in given), None)
        if thoughts is not None:
            given = {"thinking": thoughts, **given, "reasoning_content": thoughts}
        prepared.append(given)
    return prepared


def _with_parts(message: Mapping[str, Any], always: bool) -> dict[str, Any]:
    """The message, each part of whose content says that it is text: templates ask for that. With
    `always` a text becomes one part, for a template that would go through its letters."""
    parts = message.get("content")
    if always and isinstance(parts, str):
        parts = [parts]
    if not isinstance(parts, list):
        return dict(message)
    typed = [part if isinstance(part, Mapping) else {"text": part} for part in parts]
    return {**message, "content": [{"type": "text", **part} for part in typed]}


def reads_more(template: str) -> bool:
    """True for a template whose text depends on what `for_template` changes."""
    return bool(_READS.search(template))


def reads_parts(template: str) -> bool:
    """True for a template that goes through the parts of a content."""
    return bool(_LOOPS.search(template))
