"""Records of judgements: one answer to a prompt, and whether somebody liked it.

{"prompt": TEXT or MESSAGES, "completion": TEXT or MESSAGES, "label": true or false}
{"messages": MESSAGES, "label": true or false}
"""

from collections.abc import Mapping
from typing import Any

from research.data import conversations
from research.data.preferences import answered, messages_of

LIKED = {"true": "1", "1": "1", "1.0": "1", "false": "0", "0": "0", "0.0": "0"}


def read_judgement(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"answer": the conversation as `conversations.spell` writes it, of which the loss is on the
    last answer alone; "label": "1" if it was liked, else "0"}.

    ValueError for an empty prompt or answer, and a label that is not true or false.
    """
    if "messages" in columns:
        messages = conversations.listed(row, columns["messages"])
    else:
        messages = messages_of(row, columns["prompt"], "user")
        messages = [*messages, *messages_of(row, columns["completion"], "assistant")]
    label = str(conversations.plain(row.get(columns["label"]))).strip().lower()
    if label not in LIKED:
        raise ValueError(
            f"field {columns['label']!r} is {row.get(columns['label'])!r}, wanted true for an "
            "answer that was liked, or false"
        )
    said = answered(messages, "the conversation", row, columns)
    text = conversations.spell(said, conversations.tools(row, columns))
    return {"answer": text.encode("utf-8").decode("utf-8"), "label": LIKED[label]}
