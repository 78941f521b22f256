"""Conversations as prompts: messages, their token ids, and the tokens that end an answer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from research.data.chat import end_of_turn, render_chat
from research.data.conversations import with_text
from research.data.template_variables import sources_of
from research.data.tokenizers import Tokenizer

Message = dict[str, Any]


def conversation(
    said: str | Sequence[Mapping[str, Any]], system: str | None = None
) -> list[Message]:
    """The messages to answer: a question, or messages with "role" and "content" as they are. A
    `system` message goes in front. ValueError for one beside a system message of `said`, for
    messages without a question at their end, and for a part of a content that is no text.

        conversation("What is a graft?", system="Answer in one line.")
    """
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f'{str(message)[:60]!r} is no message like {{"role": "user", "content": "Hi"}}'
            )
    for number, message in enumerate(messages):
        with_text(number, message)  # refuses parts that are no text; the template may want parts
    if not messages or messages[-1]["role"] == "assistant":
        raise ValueError("the messages end in an answer; end them with one that asks for one")
    if system is None:
        return [dict(message) for message in messages]
    if messages[0]["role"] == "system":
        raise ValueError("the messages have a system message of their own; give one of the two")
    return [{"role": "system", "content": system}, *map(dict, messages)]


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    *,
    encode: Callable[[str], list[int]] | None = None,
) -> list[int]:
    """Ids of the messages in the model's chat template, with the `tools` that the assistant may
    call, up to where it answers; `encode` makes them of the text, by default the tokenizer.
    ValueError for a tokenizer without a template, for messages that it rejects, and for tools that
    it does not write."""
    if tools and not any("tools" in source for source in sources_of(tokenizer)):
        raise ValueError(
            f"the chat template writes no tools, and {len(tools)} are given; take a model that was "
            "tuned to call tools, or leave them out"
        )
    return (encode or tokenizer.encode)(render_chat(tokenizer, messages, tools=tools))


def answer_ends(tokenizer: Tokenizer, stop_ids: Iterable[int]) -> tuple[int, ...]:
    """The ids that end an answer: those of the checkpoint and the template's end of a turn."""
    # Both: a base model's end token stays in a checkpoint that was tuned on another template's.
    ends = dict.fromkeys((*stop_ids, end_of_turn(tokenizer)))
    return tuple(n for n in ends if n is not None)


def drop_oldest(messages: list[Message]) -> bool:
    """Drops the oldest question and its answer; False if only the last question is left. A system
    message stays."""
    first = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None or first + 1 >= len(messages):
        return False
    del messages[first : first + 2]
    return True
