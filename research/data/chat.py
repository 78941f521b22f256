"""Conversations as token ids, with a mask of the tokens that the assistant says.

The whole rendered text is encoded at once, as a server would encode it. The assistant's text is
what the template encloses in `{% generation %}`. Without such blocks it is found by rendering
twice: the messages before an answer with a generation prompt, and the same messages with the
answer. What the second adds to the first is what the model has to write when it is asked, including
the end of turn. A token belongs to the assistant if any of its characters does.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from research.data.chat_messages import for_template, reads_more, reads_parts
from research.data.chat_sandbox import ChatRefused, Rendered, Sandbox, shared_sandbox
from research.data.chat_spans import kept_span
from research.data.conversations import texts_of
from research.data.documents import digest
from research.data.tokenizers import Tokenizer

Messages = Sequence[Mapping[str, Any]]

# The date that templates see in training, fixed so that the texts do not change from day to day.
# Llama 3.1's template has this one as its default.
TRAINING_DAY = datetime(2024, 7, 26)
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Part of the fingerprint: raise it when the ids or masks of the same conversation change.
_FORMAT = "2"
_FORMAT_OF_MORE = "3"  # of templates that read null contents and thoughts, which changed since
_FORMAT_OF_PARTS = "4"  # of templates that go through parts, which reach them since


def render_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    tools: Sequence[Any] = (),
    add_generation_prompt: bool = True,
    now: datetime | None = None,
    sandbox: Sandbox | None = None,
) -> str:
    """The conversation as text, with special tokens as strings. By default it ends in a generation
    prompt, after which the assistant's answer would follow.

    `tools` are as in `encode_chat`, `now` is the time that the template sees. ValueError without a
    template, for one that rejects the messages or fails, and for one that runs too long or writes
    too much.
    """
    template = _template(tokenizer, tools)
    variables = {
        "messages": for_template(messages, template),
        "add_generation_prompt": add_generation_prompt,
    } | _specials(tokenizer, tools)
    return (
        (sandbox or shared_sandbox()).render(template, [variables], now or datetime.now())[0].text
    )


def encode_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    sandbox: Sandbox | None = None,
    tools: Sequence[Any] = (),
) -> tuple[list[int], list[bool]]:
    """(token ids of the conversation, for each id whether the assistant says it and is to learn
    it). A message of the assistant with "weight" 0 is only read. `tools` are the descriptions of
    tools that the template gets, in the form of transformers' apply_chat_template.

    ChatRefused, a ValueError, for messages that the template rejects. ValueError for a template
    that leaves out something of earlier messages once later ones follow, for example their
    thoughts: no single text would then show what the model reads before each answer.
    """
    [encoded] = ChatEncoder(tokenizer, sandbox).encode_batch([messages], [tools])
    if isinstance(encoded, ChatRefused):
        raise encoded
    return encoded


def end_of_turn(tokenizer: Tokenizer, sandbox: Sandbox | None = None) -> int | None:
    """The id of the token with which the template ends a turn of the assistant. None if the turn
    does not end in a token of its own but, say, in a line break, which answers contain as well."""
    ids, mask = encode_chat(
        tokenizer,
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        sandbox,
    )
    # The last token of an answer of one letter; where that token holds the letter too, the turn
    # has no end of its own.
    last = [token for token, said in zip(ids, mask) if said][-1]
    text = tokenizer.decode([last])
    return (
        last if len(text) > 1 and text.strip() != "b" and tokenizer.encode(text) == [last] else None
    )


def endless_turns(tokenizer: Tokenizer) -> str | None:
    """A line for the user where the template ends an assistant's turn in nothing that is a token of
    its own, so that a model cannot tell where to stop; None where it does."""
    if end_of_turn(tokenizer) is not None:
        return None
    return (
        "the chat template ends an answer in no token of its own, so the model has nothing to stop "
        "at and answers run to their limit; let the assistant's part end with {{ eos_token }} "
        "in a template of config.data.chat_template"
    )


class ChatEncoder:
    """Encodes conversations with a tokenizer and its chat template. Equal `fingerprint`s mean equal
    ids and masks. ValueError for a tokenizer without a template."""

    def __init__(self, tokenizer: Tokenizer, sandbox: Sandbox | None = None):
        _template(tokenizer)  # refuses a tokenizer without one
        self._tokenizer = tokenizer
        self._sandbox = sandbox or shared_sandbox()
        self.vocab_size = tokenizer.vocab_size
        # Named only where there are some, so that older tokens keep their fingerprint.
        more = (tokenizer.templates, tokenizer.template_variables)
        further = [json.dumps(one, sort_keys=True) for one in more] if any(more) else []
        form = _FORMAT_OF_MORE if reads_more(tokenizer.chat_template or "") else _FORMAT
        self.fingerprint = digest(
            _FORMAT_OF_PARTS if reads_parts(tokenizer.chat_template or "") else form,
            tokenizer.fingerprint,
            tokenizer.chat_template or "",
            TRAINING_DAY.isoformat(),
            *further,
        )

    def encode_batch(
        self, conversations: Sequence[Messages], tools: Sequence[Sequence[Any]] = ()
    ) -> list[tuple[list[int], list[bool]] | ChatRefused]:
        """`encode_chat` of each conversation; `tools` are those of each, by default none. A
        conversation that the template rejects gives the error in its place, and the others are
        encoded."""
        tools = tools or [()] * len(conversations)
        with_tools = _template(self._tokenizer, [{}])
        if unwritten := sum(map(bool, tools)) if "tools" not in with_tools else 0:
            logging.warning("the chat template writes no tools; %d records list some", unwritten)
        rendered: list[Rendered | ChatRefused] = []
        for messages, its_tools in zip(conversations, tools):
            try:
                rendered.append(self._assistant(messages, list(its_tools)))
            except ChatRefused as error:
                rendered.append(error)
        # All texts in one call, which runs on all cores.
        encoded = iter(self._align([one.text for one in rendered if isinstance(one, Rendered)]))
        return [
            masked(*next(encoded), one.spans) if isinstance(one, Rendered) else one
            for one in rendered
        ]

    def _align(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The ids of rendered texts, and for each the characters that it stands for."""
        return self._tokenizer.align_batch(texts)

    def _assistant(self, messages: Messages, tools: list[Any]) -> Rendered:
        """The rendered conversation, with the spans of characters that the assistant says and that
        are to be learnt."""
        template = _template(self._tokenizer, tools)
        if "tool_calls" not in template and any(one.get("tool_calls") for one in messages):
            raise ChatRefused(
                "the chat template does not write tool_calls, so a call would be lost"
            )
        if _GENERATION.search(template):
            return self._marked(messages, tools)
        # All renderings of a conversation in one request: the whole, and two for each answer.
        turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        jobs = [
            job
            for turn in turns
            for job in ((messages[:turn], True), (messages[: turn + 1], False))
        ]
        whole, *parts = (one.text for one in self._render(tools, (messages, False), *jobs))
        spans = []
        for turn, asked, answered in zip(turns, parts[::2], parts[1::2]):
            span = self._span(messages, turn, tools, asked, answered, whole)
            # What has weight 0 is context: read, and never a target.
            if messages[turn].get("weight", 1):
                spans.append(span)
        return Rendered(whole, spans)

    def _span(
        self,
        messages: Messages,
        turn: int,
        tools: list[Any],
        asked: str,
        answered: str,
        whole: str,
    ) -> tuple[int, int]:
        """(first character, end) of the answer `turn` in the text `whole` of the conversation;
        `asked` and `answered` are the texts that end in its question and in itself."""
        if not (answered.startswith(asked) and whole.startswith(answered)):
            history = self._render(tools, (messages[:turn], False))[0].text if turn else ""
            texts = (history, asked, answered, whole)
            if kept := kept_span(self._tokenizer, messages[turn], *texts):
                return kept
            raise ValueError(
                f"the chat template writes the text before message {turn + 1} differently "
                "once it follows, so what the assistant says cannot be told; mark that with "
                "{% generation %} in a template of your own and set config.data.chat_template, "
                "or give conversations of one answer"
            )
        said = answered[len(asked) :]
        texts = _texts(messages[turn])
        # Without a generation prompt the answer would begin with "assistant:" or the like, which
        # the model is not to write.
        if (
            not said.lstrip().startswith(texts[0])
            and asked == self._render(tools, (messages[:turn], False))[0].text
        ):
            raise ValueError(
                "the chat template has no generation prompt (add_generation_prompt changes "
                "nothing), so where the assistant begins cannot be told; give one that has "
                "with config.data.chat_template"
            )
        # A line break after an end-of-turn token is the template's, since the model has stopped by
        # then. Without such a token the line break itself is the end of the turn. A call of a tool
        # always has an end behind it.
        ended = not texts[-1] or not said.rstrip().endswith(texts[-1])
        return len(asked), len(asked) + len(said.rstrip() if ended else said)

    def _marked(self, messages: Messages, tools: list[Any]) -> Rendered:
        """The conversation by a template that marks what the assistant says."""
        # How many blocks there are before and after a message says which are its own.
        unlearnt = [n for n, message in enumerate(messages) if not message.get("weight", 1)]
        jobs = [(messages[:stop], False) for n in unlearnt for stop in (n, n + 1)]
        whole, *parts = self._render(tools, (messages, False), *jobs)
        if not whole.spans:
            raise ChatRefused(
                "the chat template writes nothing of the assistant's inside {% generation %}"
            )
        dropped: set[int] = set()
        for before, after in zip(parts[::2], parts[1::2]):
            dropped |= set(range(len(before.spans), len(after.spans)))
        return Rendered(
            whole.text, [span for n, span in enumerate(whole.spans) if n not in dropped]
        )

    def _render(self, tools: list[Any], *jobs: tuple[Messages, bool]) -> list[Rendered]:
        shared, template = _specials(self._tokenizer, tools), _template(self._tokenizer, tools)
        variables = [
            {"messages": for_template(m, template), "add_generation_prompt": prompt, **shared}
            for m, prompt in jobs
        ]
        return self._sandbox.render(template, variables, TRAINING_DAY)


def masked(
    ids: list[int], places: list[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """(ids, for each id whether one of its characters, `places`, is inside a span). Spans are
    sorted and disjoint."""
    start, stop = np.array(places, np.int64).reshape(-1, 2).T
    edges = np.array(spans, np.int64).reshape(-1, 2)
    # A token is inside a span if the first span that ends after the token's start begins before the
    # token's end. A token without characters counts as one character wide.
    which = np.searchsorted(edges[:, 1], start, side="right")
    begins = np.append(edges[:, 0], np.iinfo(np.int64).max)[which]
    return ids, (begins < np.maximum(stop, start + 1)).tolist()


def _texts(message: Mapping[str, Any]) -> list[str]:
    """What is sure to be written of an answer, part by part: templates may strip it, and drop it
    beside calls of tools. At least one text, which may be empty."""
    said = [] if message.get("tool_calls") else texts_of(message)
    return [text for text in map(str.strip, said) if text] or [""]


def _template(tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> str:
    """The template of a conversation. As in transformers, one with tools has the template of that
    name if there is one."""
    if tools and "tool_use" in tokenizer.templates:
        return tokenizer.templates["tool_use"]
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template; give the file of one with "
            "config.data.chat_template, or start from a "
            "model that was tuned for chat"
        )
    return tokenizer.chat_template


def _specials(tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> dict[str, Any]:
    """The variables of a template beside the messages: the tokenizer's special tokens as strings,
    its own `template_variables`, and tools and documents, None without any."""
    roles = {role: getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad", "mask")}
    named = {
        f"{role}_token": tokenizer.decode([number])
        for role, number in roles.items()
        if number is not None
    }
    given = {"tools": list(tools) or None, "documents": None}
    return {**given, **named, **tokenizer.template_variables}
