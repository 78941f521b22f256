"""Records of conversations: messages, or a prompt and its completion."""

from collections.abc import Mapping
from typing import Any

from research.data import conversations
from research.data.preferences import messages_of
from research.data.text_records import Columns


def read_conversation(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """{"conversation": the messages, and the tools if there are any, as JSON}."""
    if "completion" in columns:
        messages = _completed(row, columns)
    else:
        messages = conversations.conversation(row, columns)
    text = conversations.spell(messages, conversations.tools(row, columns))
    return {"conversation": text.encode("utf-8").decode("utf-8")}  # refuses half a surrogate pair


def _completed(row: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]]:
    """The conversation of a prompt and its completion, texts or messages; what the assistant says
    in the prompt is only read."""
    prompt = messages_of(row, columns["prompt"], "user")
    for message in prompt:
        if message.get("role", message.get("from")) in ("assistant", "gpt"):
            message["weight"] = 0
    completion = messages_of(row, columns["completion"], "assistant")
    return conversations.checked([*prompt, *completion], row, columns)
