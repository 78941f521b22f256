"""Answers that a chat template writes a little differently once others follow: Qwen 3's leaves out
an empty thought before all but the last one, Phi 3's ends the last one alone in the end of text.
"""

import os
from collections.abc import Mapping
from typing import Any

from research.data.conversations import texts_of
from research.data.tokenizers import Tokenizer


def kept_span(
    tokenizer: Tokenizer,
    message: Mapping[str, Any],
    history: str,
    asked: str,
    answered: str,
    whole: str,
) -> tuple[int, int] | None:
    """(first character, end) in `whole` of an answer with its end of turn. None where the whole
    conversation lacks anything that the message says or the texts before it are not the same.

    `history` are the rendered messages before the answer, `asked` these with a generation prompt,
    `answered` with the answer, and `whole` all messages.
    """
    start = _start(history, asked, whole)
    if start is None or not answered.startswith(asked):
        return None
    said, rest = answered[start:], whole[start:]
    texts = _texts(message)
    first, last = said.find(texts[0]), said.rfind(texts[-1]) + len(texts[-1])
    # What the template adds in front may be missing, what the message says may not.
    missing = (n for n in range(first + 1) if n + _common(said[n:], rest) >= last)
    left_out = next(missing, None)
    if left_out is None or not texts[0]:
        return None
    stop = last - left_out
    ending = _shared(tokenizer, said[last:], rest[stop:]).rstrip()
    return (start, start + stop + len(ending)) if ending else None


def _start(history: str, asked: str, whole: str) -> int | None:
    """Where the answer to `asked` begins in the whole conversation, whose prompt may lack the last
    part of `asked`, such as an empty thought. None where the messages before it differ."""
    if whole.startswith(asked):
        return len(asked)
    common = _common(asked, whole)
    # At the end of a mark or a line: "<" may begin the missing part and the answer as well.
    start = max(asked.rfind(mark, 0, common) for mark in ("\n", ">", "]")) + 1
    return start if history and len(history) < start and asked.startswith(history) else None


def _texts(message: Mapping[str, Any]) -> list[str]:
    """What is sure to be written of an answer, in order: the parts of its content, or the names of
    the tools that it calls."""
    if calls := message.get("tool_calls"):
        return [str((call.get("function") or call).get("name", "")) for call in calls]
    return [text for text in map(str.strip, texts_of(message)) if text] or [""]


def _shared(tokenizer: Tokenizer, a: str, b: str) -> str:
    """The text of the tokens that two texts have in common at their beginning: "<|end" is none,
    though "<|endoftext|>" and "<|end|>" share it."""
    ids = os.path.commonprefix([tokenizer.encode(a), tokenizer.encode(b)])
    text = tokenizer.decode(ids)
    return text if a.startswith(text) and b.startswith(text) else ""


def _common(a: str, b: str) -> int:
    """Characters that two texts have in common at their beginning."""
    return len(os.path.commonprefix([a, b]))
