"""Calls of tools in what a model writes: the forms of the usual chat templates, found in a text.

A form is known by what its template writes. Hermes and Qwen 2.5 and 3 write
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` for each call, Mistral
`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and Llama 3.1 `{"name": ..., "parameters":
{...}}` and nothing else.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from research.data.template_variables import sources_of
from research.data.tokenizers import Tokenizer

_LLAMA_TAG = "<|python_tag|>"  # which Llama writes in front of some calls


class Call(NamedTuple):
    """A call: the tool's name, and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallForm:
    """How a template writes calls: what its source has and has not, what stands around a call, or
    with `listed` in front of a list of them, and what the arguments are called."""

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    opens: str
    closes: str
    arguments: str
    listed: bool = False

    def split(self, text: str, ended: bool) -> tuple[str, list[Call]]:
        """(what is no call, the calls) of a text. Before it has `ended`, only what is sure: neither
        what may become a call, nor white space that may stand in front of one."""
        said, calls = list[str](), list[Call]()
        at, held = 0, len(text)
        for start, stop, found in self._blocks(text, ended):
            if found is None:
                held = start
                break
            if found:
                said.append(text[at:start])
                calls += found
                at = stop
        content = "".join([*said, text[at:held]])
        if held == len(text) and not ended:
            content = content[: len(content) - _begun(content, self.opens)]
        return (content.rstrip() if calls or not ended else content), calls

    def _blocks(self, text: str, ended: bool) -> Iterator[tuple[int, int, list[Call] | None]]:
        """(start, end, calls) of what looks like calls; [] for what is none, None for what is not
        there as a whole."""
        start = 0 if not self.opens else text.find(self.opens)
        if not self.opens and not text.lstrip().removeprefix(_LLAMA_TAG).startswith("{"):
            # A tag that has only begun, too, is held.
            unsure = not ended and _LLAMA_TAG.startswith(text.lstrip())
            yield from [(0, 0, None)] if unsure else []
            return
        while 0 <= start < len(text):
            first = start + len(self.opens)
            if text.startswith(_LLAMA_TAG, first) and not self.opens:
                first += len(_LLAMA_TAG)
            value, stop = _value(text, first)
            whole = stop >= 0 and self.closes in text[stop : stop + len(self.closes) + 8]
            if not whole and not ended:
                yield start, len(text), None
                return
            calls = self._calls(value)
            if stop >= 0 and self.closes and (end := text.find(self.closes, stop)) >= 0:
                stop = end + len(self.closes)
            stop = max(stop, first)
            if not self.opens and calls:  # of several, which a semicolon divides
                stop = len(text) - len(text[stop:].lstrip("; \n"))
            yield start, stop, calls
            start = self._next(text, stop)

    def _next(self, text: str, at: int) -> int:
        if self.opens:
            return text.find(self.opens, at)
        return at if text.startswith("{", at) else -1

    def _calls(self, value: Any) -> list[Call]:
        """The calls that a JSON value is."""
        calls = []
        for one in value if self.listed and isinstance(value, list) else [value]:
            given = one.get(self.arguments, {}) if isinstance(one, dict) else None
            if not isinstance(given, dict) or not isinstance(one.get("name"), str):
                return []
            calls.append(Call(one["name"], json.dumps(given, ensure_ascii=False)))
        return calls

    def schema(self, tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The JSON schema of a call of one of these functions."""
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["name"]},
                    self.arguments: tool.get("parameters") or {"type": "object"},
                },
                "required": ["name", self.arguments],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        one = {"anyOf": calls}
        return {"type": "array", "items": one, "minItems": 1} if self.listed else one


FORMS = (
    CallForm("hermes", ("<tool_call>",), ("<function=", "<arg_key>"), "<tool_call>", "</tool_call>",
             "arguments"),
    CallForm("mistral", ("[TOOL_CALLS]",), ("[ARGS]",), "[TOOL_CALLS]", "", "arguments", True),
    CallForm("llama", ('"parameters"', "ipython"), ("<tool_call>",), "", "", "parameters"),
)  # fmt: skip


def form_of(tokenizer: Tokenizer) -> CallForm | None:
    """The form of the calls that a tokenizer's chat template writes, None for an unknown one."""
    # As `research.data.chat` chooses among several.
    source = tokenizer.templates.get("tool_use") or "".join(sources_of(tokenizer))
    for form in FORMS:
        if all(mark in source for mark in form.has) and not any(m in source for m in form.lacks):
            return form
    return None


def _value(text: str, at: int) -> tuple[Any, int]:
    """(the JSON value that begins there, where it ends); (None, -1) where there is no whole one."""
    while at < len(text) and text[at].isspace():
        at += 1
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, -1


def _begun(text: str, mark: str) -> int:
    """Length of the longest end of a text with which a mark may begin."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in lengths if mark.startswith(text[-n:])), 0)
