"""Records of preferences: two answers to one prompt, of which people liked one better.

Read in the spellings that data sets have:

    {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}
    {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
    {"chosen": MESSAGES, "rejected": MESSAGES}              the prompt is what both begin with
    {"chosen": TEXT, "rejected": TEXT}                      Anthropic's "Human:" and "Assistant:"
    {"conversations": MESSAGES, "chosen": MESSAGE, "rejected": MESSAGE}

A further "margin", a number, says how much better the chosen answer is.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from research.data import conversations

SIDES = ("chosen", "rejected")
MARGIN = "margin"
MOST_MARGIN = 1e6  # a sum of losses in float32 has no room for other pairs beside a larger one

Message = dict[str, Any]
# arXiv:2204.05862, the form of its published dialogues.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def read_preference(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"chosen", "rejected"}: two conversations that differ in the assistant's last answer, as
    `conversations.spell` writes them; of each the loss is on the last answer alone. And "margin",
    the number of that column, "0" without.

    ValueError for an empty prompt or answer, answers that are equal, prompts that differ, and a
    margin that is no number of at least 0.
    """
    prompt = messages_of(row, columns["prompt"], "user") if "prompt" in columns else []
    sides = [[*prompt, *messages_of(row, columns[side], "assistant")] for side in SIDES]
    chosen, rejected = (answered(said, side, row, columns) for said, side in zip(sides, SIDES))
    plain = [[conversations.with_text(n, m) for n, m in enumerate(s)] for s in (chosen, rejected)]
    if plain[0][:-1] != plain[1][:-1]:
        raise ValueError(
            "chosen and rejected answer different prompts; a pair is two answers to one prompt"
        )
    if plain[0][-1] == plain[1][-1]:
        raise ValueError("chosen and rejected are the same, so neither is preferred")
    offered = conversations.tools(row, columns)
    spelt = (conversations.spell(side, offered) for side in (chosen, rejected))
    texts = {name: text.encode("utf-8").decode("utf-8") for name, text in zip(SIDES, spelt)}
    return {**texts, MARGIN: _margin(row, columns)}


def _margin(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    # Columns are those of the first record, and others may have more.
    column = columns.get(MARGIN, MARGIN)
    if MARGIN not in columns and column not in row:
        return "0"
    given = conversations.plain(row.get(column))
    try:
        margin = float(given)
    except (TypeError, ValueError):
        margin = math.nan
    if not 0 <= margin <= MOST_MARGIN or isinstance(given, bool):
        raise ValueError(
            f"field {column!r} is {given!r}, wanted how much better the chosen answer is, "
            f"a number of at least 0 and at most {MOST_MARGIN:g}"
        )
    return repr(margin)


def messages_of(row: Mapping[str, Any], column: str, role: str) -> list[Message]:
    """The messages of a column: a list of them, one alone, a dialogue as one text, or a text by
    `role`. ValueError for an empty text and any other value."""
    value = conversations.plain(row.get(column))
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"field {column!r} is empty, wanted a text or messages")
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        return [dict(value)]
    if isinstance(value, str) and (dialogue := _dialogue(value)):
        return dialogue
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return [{"role": role, "content": value}]
    if not isinstance(value, str | list | Mapping):
        got = "missing or null" if value is None else type(value).__name__
        raise ValueError(f"field {column!r} is {got}, wanted a text or messages")
    return conversations.listed(row, column)


def _dialogue(text: str) -> list[Message]:
    """The turns of a text in Anthropic's form, [] for any other text."""
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return []
    turns = list(zip(parts[1::2], parts[2::2]))
    # A prompt may end where the answer begins: "\n\nHuman: Hi\n\nAssistant:".
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()
    return [{"role": _SPEAKERS[who], "content": said.strip()} for who, said in turns]


def answered(
    messages: list[Message], name: str, row: Mapping[str, Any], columns: Mapping[str, str]
) -> list[Message]:
    """The conversation called `name`, checked as those of chats are, and that it is an answer to
    something. The assistant's messages before the last one are only read."""
    try:
        said = conversations.checked(messages, row, columns)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    *before, answer = said
    if answer["role"] != "assistant":
        raise ValueError(f"{name} ends with the {answer['role']}; wanted the assistant's answer")
    if not any(one["role"] in ("user", "tool") for one in before):
        raise ValueError(f"{name} has an empty prompt; name it as in '?prompt=FIELD'")
    read = ({**one, "weight": 0} if one["role"] == "assistant" else one for one in before)
    return [*read, {field: value for field, value in answer.items() if field != "weight"}]
