"""Calls of tools: found in what the usual templates write, whole and in any pieces."""

import json
from dataclasses import replace

import pytest

from research.data.tokenizers import load_tokenizer
from research.serve.answers import Answers
from research.serve.asked import Asked
from research.serve.refusal import Refused
from research.serve.request import Completion, Request
from research.serve.tool_calls import FORMS, form_of
from research.serve.tools import Tools, tools_of, with_calls
from research.serve.worker import Piece

HERMES, MISTRAL, LLAMA = FORMS
ONE, TWO = ("look_up", {"of": "Bern"}), ("add", {})
CASES = [
    (HERMES, "Let me see.\n<tool_call>\n{0}\n</tool_call>\n<tool_call>\n{1}\n</tool_call>",
     "Let me see.", [ONE, TWO]),
    (HERMES, "a < b, <tool_cal", "a < b, <tool_cal", []),
    (HERMES, "<tool_call>no call</tool_call> so", "<tool_call>no call</tool_call> so", []),
    (HERMES, "<tool_call>{0}", "", [ONE]),
    (MISTRAL, "[TOOL_CALLS][{0}, {1}]", "", [ONE, TWO]),
    (MISTRAL, "no call", "no call", []),
    (LLAMA, "{0}", "", [ONE]),
    (LLAMA, "<|python_tag|>{0}; {1}", "", [ONE, TWO]),
    (LLAMA, '{"name": 3}', '{"name": 3}', []),
    (LLAMA, "no call", "no call", []),
]  # fmt: skip


def written(form, text):
    for number, (name, arguments) in enumerate((ONE, TWO)):
        call = json.dumps({"name": name, form.arguments: arguments})
        text = text.replace(f"{{{number}}}", call)
    return text


@pytest.mark.parametrize("form, text, content, calls", CASES)
def test_calls_are_found_and_told_in_pieces(form, text, content, calls):
    text = written(form, text)
    got, found = form.split(text, True)
    assert got == content
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    # What is told of the beginning of a text stays true of all of it.
    for length in range(len(text)):
        before, some = form.split(text[:length], False)
        assert content.startswith(before) and found[: len(some)] == some


def answers(form):
    asked = Asked([Request("a")], 1, 1, True, False, tools=Tools((), form))
    return Answers("chat", asked, "tiny", load_tokenizer("bytes"))


def test_an_answer_has_calls_whole_and_as_a_stream():
    text = written(HERMES, CASES[0][1])
    done = Completion("a", text, (1,), (0.0,), "eos", prompt_ids=(0,))
    [choice] = answers(HERMES).whole([done])["choices"]
    assert choice["finish_reason"] == "tool_calls"
    names = [one["function"]["name"] for one in choice["message"]["tool_calls"]]
    assert names == ["look_up", "add"] and choice["message"]["content"] == "Let me see."
    stream, said, told = answers(HERMES), "", []
    for at, letter in enumerate(text):
        finish = "eos" if at == len(text) - 1 else ""
        piece = Piece(0, letter, 0, replace(done, finish=finish))
        [choice] = stream.piece(piece)["choices"]
        said += choice["delta"].get("content", "")
        told += choice["delta"].get("tool_calls", [])
    assert said == "Let me see." and choice["finish_reason"] == "tool_calls"
    assert [(one["index"], one["function"]["name"]) for one in told] == [(0, "look_up"), (1, "add")]


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "template, form",
    [
        ("{{ tools }}<tool_call>", HERMES),
        ("{{ tools }}[TOOL_CALLS]", MISTRAL),
        ('Environment: ipython {{ tools }} {"name": ..., "parameters": ...}', LLAMA),
        ("{{ tools }}<tool_call><function=", None),
        ("{{ messages }}", None),
    ],
)
def test_a_template_that_writes_no_known_calls_is_refused(template, form):
    tokenizer = replace(load_tokenizer("bytes"), chat_template=template)
    assert form_of(tokenizer) is form
    if form is None:
        with pytest.raises(Refused, match="no calls of tools that are known"):
            tools_of({"tools": [TOOL]}, tokenizer)
    else:
        assert tools_of({"tools": [TOOL]}, tokenizer).forced == ()
        [forced] = tools_of({"tools": [TOOL], "tool_choice": "required"}, tokenizer).forced
        assert forced["name"] == "look_up"
        assert tools_of({"tools": [TOOL], "tool_choice": "none"}, tokenizer) is None


@pytest.mark.parametrize("body", [
    {"tools": [{"type": "function"}]},
    {"tools": "look_up"},
    {"tools": [TOOL], "tool_choice": "any"},
    {"tools": [TOOL], "tool_choice": {"function": {"name": "add"}}},
    {"tools": [TOOL], "parallel_tool_calls": 1},
])  # fmt: skip
def test_what_is_no_tool_is_refused(body):
    tokenizer = replace(load_tokenizer("bytes"), chat_template="<tool_call>{{ tools }}")
    with pytest.raises(Refused):
        tools_of(body, tokenizer)


def test_arguments_of_earlier_calls_are_objects_for_templates():
    call = {"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    [made] = with_calls([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert made["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    with pytest.raises(Refused):
        with_calls([{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}])
