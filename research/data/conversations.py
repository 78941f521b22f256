"""Records of chat data sets as conversations: checked lists of {"role", "content"}."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's names for them.
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "function": "tool"}


def conversation(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The messages of a record as [{"role", "content", ...}].

    `columns` is {"messages": COLUMN}, a list of {"role", "content"} or of ShareGPT's {"from",
    "value"}; or Alpaca's "instruction", "output" and optionally "input", a text each. A content in
    parts of type text stays in parts, for a template that goes through them. System messages
    without text are left out. Other fields of a message are kept for the template; an assistant's
    message with `weight` 0 gets no loss. Two further columns are read if a record has them:
    "system", the text of a system message, and "history" of Alpaca's records, a list of earlier
    (instruction, output) pairs.

    ValueError for a conversation without messages, without one of the assistant to learn from, for
    an unknown role, a part that is no text, a weight that is not 0 or 1, and a message that says
    nothing. An assistant's message may have `tool_calls` in place of a content, and a tool may
    return nothing.
    """
    if "instruction" in columns:
        messages = _alpaca(row, columns)
    else:
        messages = listed(row, columns["messages"])
    return checked(messages, row, columns)


def checked(
    messages: Sequence[Any], row: Mapping[str, Any] = {}, columns: Mapping[str, str] = {}
) -> list[dict[str, Any]]:
    """The messages in the form that `conversation` describes, and with its errors; the row may have
    a further "system"."""
    if not messages:
        raise ValueError("it has no messages")
    numbered = [_message(number, message) for number, message in enumerate(messages)]
    # Messages are numbered as in the record, so empty ones are dropped after the check.
    said = [message for message in _system(row, columns, numbered) if message is not None]
    answers = [message for message in said if message["role"] == "assistant"]
    if not answers:
        raise ValueError("no message is by the assistant, so there is nothing to learn")
    if not any(message.get("weight", 1) for message in answers):
        raise ValueError("the assistant's messages all have weight 0; there is nothing to learn")
    return said


def tools(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    """The descriptions of tools that a record offers to the assistant, from its column "tools": a
    list, or the JSON text of one; [] if it has none. ValueError for any other value."""
    value = plain(row.get(columns.get("tools", "tools"))) or []
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"tools is {type(value).__name__}, wanted a list of tools")
    return value


def spell(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> str:
    """The conversation as the text of a document; `read_spelt` is the inverse."""
    value = {"messages": messages, "tools": tools} if tools else messages
    return json.dumps(value, ensure_ascii=False)


def read_spelt(text: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """(messages, tools) of a document that `spell` has written."""
    # A list is a conversation without tools, as all were at first: caches of these stay valid.
    value = json.loads(text)
    return (value, []) if isinstance(value, list) else (value["messages"], value["tools"])


def _alpaca(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    names = (columns.get(name, name) for name in ("instruction", "input", "output"))
    instruction, added, output = (plain(row.get(name)) for name in names)
    if not isinstance(instruction, str):
        raise ValueError(
            f"field {columns['instruction']!r} is {type(instruction).__name__}, wanted text"
        )
    asked = f"{instruction}\n\n{added}" if added else instruction
    turns = [*_history(row, columns), (asked, output)]
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn)]


def _history(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    history = plain(row.get(columns.get("history", "history"))) or []
    if not isinstance(history, list) or any(
        not isinstance(turn, list) or len(turn) != 2 for turn in history
    ):
        raise ValueError("history is no list of (instruction, output)")
    return history


def _system(
    row: Mapping[str, Any], columns: Mapping[str, str], messages: list[dict[str, Any] | None]
) -> list[dict[str, Any] | None]:
    """The messages with the text of the column "system" in front."""
    system = plain(row.get(columns.get("system", "system")))
    if not system:
        return messages
    first = _message(0, {"role": "system", "content": system})
    own = [one for one in messages if one is not None and one["role"] == "system"]
    # The same text in both places is one instruction; of two it is not clear which counts.
    if own and with_text(0, own[0]) != first:
        raise ValueError("the field 'system' and a message of the system say different things")
    return messages if own else [first, *messages]


def listed(row: Mapping[str, Any], column: str) -> list[Any]:
    """The list of messages in a column, as data sets, tables and TFDS keep one. ValueError for any
    other value."""
    messages = plain(row.get(column))
    # Tables have only text in their cells.
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = json.loads(messages)
    # TFDS turns a sequence of records into a record of sequences.
    if isinstance(messages, Mapping):
        messages = [dict(zip(messages, values)) for values in zip(*messages.values())]
    if not isinstance(messages, list):
        raise ValueError(
            f"field {column!r} is {type(messages).__name__}, wanted a list of messages"
        )
    return messages


def _message(number: int, message: Any) -> dict[str, Any] | None:
    """The checked message; None for one of the system that says nothing."""
    if not isinstance(message, Mapping):
        raise ValueError(
            f"message {number} is {type(message).__name__}, wanted an object with role and content"
        )
    # OpenAI's names of the fields, else ShareGPT's.
    role = message.get("role", message.get("from"))
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}; known are {', '.join(ROLES)}")
    content = _parts(message.get("content", message.get("value")))
    empty = not (_joined(number, content) or "").strip()
    if empty and role in ("system", "developer"):
        return None
    # A call of a tool stands for an answer, and what a tool returns may be nothing.
    calls = role == "assistant" and message.get("tool_calls")
    if content is None and not calls:
        raise ValueError(f"message {number} has NoneType for its content, wanted text")
    if empty and not calls and role != "tool":
        raise ValueError(f"message {number}, by {role}, is empty")
    rest = {
        name: value
        for name, value in message.items()
        # Parquet and TFDS give every message the fields of all, null where it has none.
        if name not in ("role", "from", "content", "value") and value is not None
    }
    weight = rest.get("weight", 1)
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise ValueError(f"message {number} has weight {weight!r}; wanted 0 for no loss, or 1")
    return {"role": role, "content": content, **rest}


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """What a checked message says, each part of its content by itself; [] for a content of null."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text for text in texts if text]


def _parts(content: Any) -> Any:
    """A content, of whose parts each has what it says alone: parquet and TFDS give every part the
    fields of all, null where it has none."""
    if not isinstance(content, list):
        return content
    return [
        {name: value for name, value in part.items() if value is not None}
        if isinstance(part, Mapping)
        else part
        for part in content
    ]


def with_text(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message, number `number` of its conversation, with one text for a content in parts.
    ValueError for a part that is no text."""
    if not isinstance(message.get("content"), list):
        return dict(message)
    return {**message, "content": _joined(number, message["content"])}


def _joined(number: int, content: Any) -> str | None:
    """The text of a content, which may be a list of parts."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        for part, text in zip(content, texts):
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if kind != "text" or not isinstance(text, str):
                raise ValueError(
                    f"message {number} has a part of type {kind!r} in its content; wanted text"
                )
        return "".join(texts)
    if content is not None and not isinstance(content, str):
        raise ValueError(
            f"message {number} has {type(content).__name__} for its content, wanted text"
        )
    return content


def plain(value: Any) -> Any:
    """JSON values of what TFDS and parquet give: bytes as text, arrays as lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
