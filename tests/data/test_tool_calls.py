"""Conversations as other programs write them: empty system messages, contents in parts, calls of
tools, in whichever format the records are."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from research.data.chat import ChatEncoder, encode_chat
from research.data.chat_sandbox import ChatRefused
from research.data.conversations import conversation, read_spelt, spell, tools
from research.data.files import FileDocuments
from research.data.tokenizers import load_tokenizer
from research.data.tokens import tokenize_conversations
from tests.data.chat_templates import TEMPLATES, save_tokenizer
from tests.data.tool_templates import GOLDEN, PARTED, PARTS

ASK = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
TOOLS = [{"type": "function", "function": {"name": "get", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "get", "arguments": {"i": 3}}}
CALLS = [
    {"role": "user", "content": "rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    {"role": "assistant", "content": "No."},
]
# In the manner of Qwen 2.5's template.
TEMPLATE = (
    "{%- if tools %}{{- '<|start|>tools ' + (tools | tojson) + '<|eot|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' and m.tool_calls %}"
    "{{- '<|start|>assistant' }}OPEN{%- if m.content %}{{- ' ' + m.content }}{%- endif %}"
    "{%- for call in m.tool_calls %}{{- ' call ' + call.function.name + "
    "(call.function.arguments | tojson) }}{%- endfor %}{{- '<|eot|>' }}CLOSE{{- '\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|start|>assistant' }}OPEN{{- ' ' + m.content + "
    "'<|eot|>' }}CLOSE{{- '\n' }}"
    "{%- else %}{{- '<|start|>' + m.role + ' ' + m.content + '<|eot|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
MARKED = TEMPLATE.replace("OPEN", "{%- generation %}").replace("CLOSE", "{%- endgeneration %}")
PLAIN = TEMPLATE.replace("OPEN", "").replace("CLOSE", "")


def opened(folder, template):
    save_tokenizer(folder / "tokenizer", template)
    return load_tokenizer(folder / "tokenizer")


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_calls_and_tools_reach_the_template_and_are_learnt(tmp_path, template):
    tokenizer = opened(tmp_path, template)
    ids, mask = encode_chat(tokenizer, CALLS, tools=TOOLS)
    assert tokenizer.decode(ids) == (
        f"<|start|>tools {json.dumps(TOOLS)}<|eot|>\n<|start|>user rain?<|eot|>\n"
        '<|start|>assistant call get{"i": 3}<|eot|>\n<|start|>tool sunny<|eot|>\n'
        "<|start|>assistant No.<|eot|>\n"
    )
    learnt = tokenizer.decode([token for token, said in zip(ids, mask) if said])
    assert learnt == ' call get{"i": 3}<|eot|> No.<|eot|>'
    without, _ = encode_chat(tokenizer, CALLS)
    assert tokenizer.decode(without).startswith("<|start|>user rain?")


def test_a_template_that_would_lose_a_call_refuses_it_and_one_without_tools_says_so(
    tmp_path, caplog
):
    encoder = ChatEncoder(opened(tmp_path, TEMPLATES["chatml"]["plain"]))
    lost, kept = encoder.encode_batch([CALLS, ASK], [[], TOOLS])
    assert isinstance(lost, ChatRefused) and "does not write tool_calls" in str(lost)
    assert not isinstance(kept, ChatRefused)
    assert "the chat template writes no tools; 1 records list some" in caplog.text


@pytest.mark.parametrize(
    "spelt", [TOOLS, json.dumps(TOOLS), None, [], ""], ids=["list", "json", "null", "none", "empty"]
)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_the_tools_of_a_record_are_those_of_its_conversation(tmp_path, spelt, format):
    row = {"messages": ASK, "tools": spelt}
    path = tmp_path / f"a.{format}"
    if format == "jsonl":
        path.write_text(json.dumps(row))
    else:
        row["tools"] = json.dumps(spelt) if isinstance(spelt, list) else spelt
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    text = FileDocuments(path, "", tmp_path / "cache", "conversations")[0]["conversation"]
    assert read_spelt(text) == (ASK, TOOLS if spelt and "get" in str(spelt) else [])
    # Without tools the document is what it always was, so what is kept of it stays.
    assert ("tools" in text) == bool(read_spelt(text)[1])


def test_tools_of_another_name_and_of_no_kind(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"chat": ASK, "functions": TOOLS}))
    documents = FileDocuments(
        tmp_path / "a.jsonl", "messages=chat&tools=functions", tmp_path, "conversations"
    )
    assert read_spelt(documents[0]["conversation"])[1] == TOOLS
    with pytest.raises(ValueError, match="tools is dict, wanted a list"):
        tools({"tools": {"a": 1}}, {})
    assert spell(ASK) == json.dumps(ASK, ensure_ascii=False)


@pytest.mark.parametrize("empty", ["", None, " \n", []])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_instruction_that_says_nothing_is_no_message(empty, role):
    row = {"messages": [{"role": role, "content": empty}, *ASK]}
    assert conversation(row, {"messages": "messages"}) == ASK
    sharegpt = [
        {"from": "system", "value": empty},
        {"from": "human", "value": "a?"},
        {"from": "gpt", "value": "b"},
    ]
    assert conversation({"x": sharegpt}, {"messages": "x"}) == ASK


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "text", "text": "a?"}], "a?"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "?"}], "a?"),
        ([{"text": "a?"}], "a?"),
        (["a", "?"], "a?"),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_text_in_parts_is_one_text_to_a_template_without_parts(parts, text, role, tmp_path):
    messages, whole = ([ASK[0], {"role": role, "content": c}, ASK[1]] for c in (parts, text))
    read = conversation({"messages": messages}, {"messages": "messages"})
    assert read[1]["content"] == parts
    tokenizer = opened(tmp_path, PLAIN)
    assert encode_chat(tokenizer, read) == encode_chat(tokenizer, whole)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_parts_of_a_record_reach_a_template_that_goes_through_them(tmp_path, format):
    """As transformers renders the same messages; a joined text would keep the inner spaces."""
    answer = [{"type": "text", "text": "f"}, {"type": "text", "text": "g\n"}]
    messages = [*PARTS, {"role": "assistant", "content": answer}]
    path = tmp_path / f"a.{format}"
    if format == "jsonl":
        path.write_text(json.dumps({"messages": messages}))
    else:
        # A column of one type: texts are parts too, and every part has all fields.
        alike = [
            {**m, "content": [{"type": "text", "text": m["content"]}]}
            if isinstance(m["content"], str)
            else m
            for m in messages
        ]
        alike[0]["content"][0] = {**alike[0]["content"][0], "image": None}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": alike}]), path)
    documents = FileDocuments(path, "", tmp_path / "cache", "conversations")
    read, _ = read_spelt(documents[0]["conversation"])
    tokenizer = opened(tmp_path, PARTED)
    ids, mask = encode_chat(tokenizer, read)
    golden = json.loads(GOLDEN.read_text())["parts"]
    assert tokenizer.decode(ids) == golden + "fg<|im_end|>\n"
    learnt = tokenizer.decode([token for token, said in zip(ids, mask) if said])
    assert learnt == "one<|im_end|>fg<|im_end|>"


def test_a_part_that_is_no_text_is_a_counted_record(tmp_path, caplog):
    image = [{"type": "image"}, {"type": "text", "text": "what?"}]
    rows = [{"messages": [{"role": "user", "content": image}, ASK[1]]}, {"messages": ASK}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = FileDocuments(tmp_path / "a.jsonl", "", tmp_path / "cache", "conversations")
    encoder = ChatEncoder(opened(tmp_path, PARTED))
    with pytest.raises(ValueError, match="'image' in its content.*set config.data.max_bad_records"):
        tokenize_conversations(documents, encoder, tmp_path / "cache")
    store = tokenize_conversations(documents, encoder, tmp_path / "cache", max_bad_records=1)
    assert len(store) == 1 and len(store.bad_records) == 1
    assert "part of type 'image'" in caplog.text


def test_a_tool_may_return_nothing():
    messages = [*CALLS[:2], {"role": "tool", "content": ""}, CALLS[3]]
    read = conversation({"messages": messages}, {"messages": "messages"})
    assert [message["content"] for message in read] == ["rain?", None, "", "No."]


def test_calls_of_different_tools_are_the_same_from_parquet_as_from_lines(tmp_path):
    other = {"type": "function", "function": {"name": "say", "arguments": {"city": "Ulm"}}}
    rows = [
        {"messages": [CALLS[0], CALLS[1] | {"tool_calls": [call]}, *CALLS[2:]], "tools": TOOLS}
        for call in (CALL, other)
    ]
    rows[1]["tools"] = [{"type": "function", "function": {"name": "say", "strict": True}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:  # parquet has no empty struct
        row["tools"][0]["function"].pop("parameters", None)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    lines, table = (
        FileDocuments(tmp_path / name, "", tmp_path / "cache", "conversations")
        for name in ("a.jsonl", "b.parquet")
    )
    for row in range(2):
        read = [read_spelt(documents[row]["conversation"]) for documents in (lines, table)]
        assert read[0][0] == read[1][0] and "null" not in json.dumps(read[1][1])


# Further columns of a record.


@pytest.mark.parametrize(
    ("row", "query"),
    [
        ({"messages": ASK, "system": "Be brief."}, ""),
        (
            {
                "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}],
                "system": "Be brief.",
            },
            "",
        ),
        ({"instruction": "a?", "output": "b", "system": "Be brief."}, ""),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *ASK], "system": "Be brief."},
            "",
        ),
        (
            {"question": "a?", "response": "b", "system_prompt": "Be brief."},
            "instruction=question&output=response&system=system_prompt",
        ),
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_system_column_is_a_message_in_front(tmp_path, row, query, format):
    path = tmp_path / f"a.{format}"
    if format == "jsonl":  # also where the first record has none
        plain = {name: value for name, value in row.items() if not name.startswith("system")}
        path.write_text(json.dumps(plain | {"system_prompt": None}) + "\n" + json.dumps(row))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    documents = FileDocuments(path, query, tmp_path / "cache", "conversations")
    read = json.loads(documents[1]["conversation"])
    assert read == [{"role": "system", "content": "Be brief."}, *ASK]


def test_alpacas_history_comes_first_and_two_instructions_are_refused():
    names = {"instruction": "instruction", "output": "output"}
    row = {"instruction": "c?", "output": "d", "history": [["a?", "b"]]}
    assert [m["content"] for m in conversation(row, names)] == ["a?", "b", "c?", "d"]
    for history in ("a", ["a"], [["a"]], {"a": "b"}):
        with pytest.raises(ValueError, match="history is no list"):
            conversation(row | {"history": history}, names)
    own = [{"role": "system", "content": "Be long."}, *ASK]
    with pytest.raises(ValueError, match="say different things"):
        conversation({"messages": own, "system": "Be brief."}, {"messages": "messages"})
    assert conversation({"messages": ASK, "system": ""}, {"messages": "messages"}) == ASK
