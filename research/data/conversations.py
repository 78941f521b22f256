"""Records of chat data sets as conversations: checked lists of {"role", "content"}."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's names for them.
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "function": "tool"}


def conversation(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The messages of a record as [{"role", "content", ...}].

    `columns` are {"messages": COLUMN}, a list of {"role", "content"} or ShareGPT's {"from",
    "value"}; or Alpaca's "instruction", "output" and optionally "input", each a text. Other fields
    of a message are kept, for the template. ValueError for a conversation without messages or
    without one of the assistant, for an unknown role, and for a content that is no text or empty.
    """
    if "instruction" in columns:
        names = (columns.get(name, name) for name in ("instruction", "input", "output"))
        instruction, added, output = (_plain(row.get(name)) for name in names)
        asked = f"{instruction}\n\n{added}" if added else instruction
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
        if not isinstance(instruction, str):
            raise ValueError(
                f"field {columns['instruction']!r} is {type(instruction).__name__}, wanted text"
            )
    else:
        messages = _plain(row.get(columns["messages"]))
        # TFDS turns a sequence of records into a record of sequences.
        if isinstance(messages, Mapping):
            messages = [dict(zip(messages, values)) for values in zip(*messages.values())]
        if not isinstance(messages, list):
            raise ValueError(
                f"field {columns['messages']!r} is {type(messages).__name__}, wanted a list of "
                f"messages"
            )
    if not messages:
        raise ValueError("it has no messages")
    checked = [_message(number, message) for number, message in enumerate(messages)]
    if not any(message["role"] == "assistant" for message in checked):
        raise ValueError("no message is by the assistant, so there is nothing to learn")
    return checked


def spell(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as the text of a document."""
    return json.dumps(messages, ensure_ascii=False)


def _message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(
            f"message {number} is {type(message).__name__}, wanted an object with role and content"
        )
    role, content = (
        message.get("role", message.get("from")),
        message.get("content", message.get("value")),
    )
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(
            f"message {number} has {type(content).__name__} for its content, wanted text"
        )
    if not content.strip():
        raise ValueError(f"message {number}, by {role}, is empty")
    rest = {
        name: value
        for name, value in message.items()
        if name not in ("role", "from", "content", "value")
    }
    return {
        "role": role,
        "content": content,
        **{name: value for name, value in rest.items() if value is not None},
    }


def _plain(value: Any) -> Any:
    """JSON values of what TFDS and parquet give: bytes as text, arrays as lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
