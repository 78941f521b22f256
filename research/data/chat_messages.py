"""Messages as a chat template sees them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Names that data give to what the assistant thinks, the one that most templates read first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_READS = re.compile(r"tool_calls|reasoning|thinking")


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages without their null fields, and with the thoughts of the assistant under the two
    names that templates read, as transformers' apply_chat_template gives them.

    A content of null beside tool calls is no content: templates would write "None".
    """
    prepared = []
    for message in messages:
        given = {name: value for name, value in message.items() if value is not None}
        thoughts = next((given[name] for name in _REASONING if name in given), None)
        if thoughts is not None:
            given = {"thinking": thoughts, **given, "reasoning_content": thoughts}
        prepared.append(given)
    return prepared


def reads_more(template: str) -> bool:
    """True for a template whose text depends on what `for_template` changes."""
    return bool(_READS.search(template))
