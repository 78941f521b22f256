"""Files of prompts: lines of text, or JSON objects with a prompt or a conversation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Conversation:
    """Messages to answer, and the tools that the assistant may call, () if it is not said."""

    messages: list[dict[str, Any]]
    tools: tuple[Any, ...] = ()


# A text to continue, or a conversation to answer.
Prompt = str | Conversation


def shown(prompt: Prompt) -> Any:
    """A prompt as JSON: its text or its messages."""
    return prompt if isinstance(prompt, str) else prompt.messages


def last_words(prompt: Prompt) -> Any:
    """A prompt, or the content of the last message of a conversation."""
    return prompt if isinstance(prompt, str) else prompt.messages[-1].get("content")


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a file, without blank lines: of a .jsonl file each line's "prompt", a string,
    or "messages", a list, perhaps with a list of "tools"; of any other file the lines themselves.
    ValueError with the number of a line that is no prompt."""
    try:
        # Not `splitlines`, which also cuts at characters that JSON strings may contain (U+2028).
        # A byte order mark, which some editors write, is no part of the first line.
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompt_file={file} cannot be read as text: {error}") from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"--prompt_file={file} has no prompt; wanted one a line")
    if file.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt(file, number, line) for number, line in numbered]


def _prompt(file: Path, number: int, line: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        prompt, messages = record.get("prompt"), record.get("messages")
        if isinstance(prompt, str) and messages is None:
            return prompt
        tools = record.get("tools") or []
        asks = isinstance(messages, list) and messages and isinstance(tools, list)
        if asks and prompt is None:
            return Conversation(messages, tuple(tools))
    raise ValueError(
        f'--prompt_file={file}, line {number} is no object like {{"prompt": "def "}} or '
        f'{{"messages": [{{"role": "user", "content": "Hi"}}]}}: {line[:60]!r}'
    )
