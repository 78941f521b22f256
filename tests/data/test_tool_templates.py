"""Tools, calls without a content, results, thoughts and variables reach a template as transformers
gives them, and the assistant's part is learnt whatever it consists of."""

import json
from dataclasses import replace

import pytest

from research.data.chat import ChatEncoder, encode_chat, render_chat
from research.data.template_variables import parse_variables, with_variables
from research.data.tokenizers import load_tokenizer
from research.infer.conversation import conversation, encode_conversation
from tests.data.chat_templates import save_tokenizer
from tests.data.tool_templates import GOLDEN, PARTED, PARTS, TALKS, TEMPLATES, TOOLS, VARIABLES

WANTED = json.loads(GOLDEN.read_text())
CASES = [(name, talk) for name in TEMPLATES for talk in TALKS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(("name", "talk"), CASES)
def test_text_and_mask_are_those_of_transformers(tokenizer, name, talk):
    for tools in ([], TOOLS):
        for number, variables in enumerate(VARIABLES):
            golden = WANTED[f"{name} {talk} {bool(tools)} {number}"]
            for kind in ("plain", "marked"):
                chat = replace(
                    tokenizer,
                    chat_template=TEMPLATES[name][kind],
                    template_variables=variables,
                )
                assert render_chat(chat, TALKS[talk], tools=tools) == golden["prompt"]
                if kind == "plain" and "enable_thinking" in variables and name == "qwen":
                    continue  # its prompt ends in a thought that no answer here begins with
                ids, mask = encode_chat(chat, TALKS[talk], tools=tools)
                assert (ids, list(map(int, mask))) == (golden["ids"], golden["mask"])


def test_parts_stay_apart_for_a_template_that_goes_through_them(tokenizer):
    parted = replace(tokenizer, chat_template=PARTED)
    assert render_chat(parted, PARTS) == WANTED["parts"]
    ids = encode_conversation(parted, conversation(PARTS))
    assert tokenizer.decode(ids) == WANTED["parts"]
    # Others get one text, where transformers cannot go on.
    plain = replace(tokenizer, chat_template=TEMPLATES["mistral"]["plain"])
    assert "[INST]two  parts[/INST]" in render_chat(plain, PARTS)
    answer = {"role": "assistant", "content": [{"text": "b"}, {"type": "text", "text": "c"}]}
    for chat in (parted, plain):
        ids, mask = encode_chat(chat, [TALKS["plain"][0], answer])
        assert "bc" in tokenizer.decode([n for n, said in zip(ids, mask) if said])
    # One that knows no texts gets each as a part.
    loop = (
        "{% for m in messages %}{% for x in m['content'] %}{{ x['text'] }}|{% endfor %}{% endfor %}"
    )
    assert render_chat(replace(tokenizer, chat_template=loop), PARTS) == "two | parts| one |and|"
    with pytest.raises(ValueError, match="message 0 has a part of type 'image'"):
        render_chat(parted, [{"role": "user", "content": [{"type": "image"}]}])


def test_conversations_with_tools_have_the_template_of_that_name(tokenizer, tmp_path):
    other = "{{ 'T' + (tools | tojson) }}{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = replace(
        tokenizer, chat_template=TEMPLATES["qwen"]["plain"], templates={"tool_use": other}
    )
    assert render_chat(chat, TALKS["plain"], tools=TOOLS).startswith("T[{")
    assert render_chat(chat, TALKS["plain"]).startswith("<|im_start|>user")
    # Both are kept beside a run, and in every spelling of transformers.
    chat.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.chat_template, again.templates) == (chat.chat_template, {"tool_use": other})
    save_tokenizer(tmp_path / "list")
    config = json.loads((tmp_path / "list/tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": chat.chat_template},
        {"name": "tool_use", "template": other},
    ]
    (tmp_path / "list/tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path / "list").templates == {"tool_use": other}
    (tmp_path / "list/chat_template.jinja").write_text("x")  # a file goes before the entry
    assert load_tokenizer(tmp_path / "list").chat_template == "x"
    assert load_tokenizer(tmp_path / "list").templates == {}


def test_a_template_of_image_models_is_read_from_its_json(tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "y"}))
    assert load_tokenizer(tmp_path).chat_template == "y"


def test_variables_are_spelt_kept_and_change_what_is_encoded(tokenizer, tmp_path):
    assert parse_variables(["a=false", "b=high", "c=[1]", "d="]) == {
        "a": False, "b": "high", "c": [1], "d": "",
    }  # fmt: skip
    plain = replace(tokenizer, chat_template=TEMPLATES["qwen"]["plain"])
    chat = with_variables(plain, parse_variables(["enable_thinking=false"]))
    assert render_chat(chat, TALKS["plain"][:1]).endswith("<think></think>")
    assert not render_chat(plain, TALKS["plain"][:1]).endswith("<think></think>")
    assert ChatEncoder(chat).fingerprint != ChatEncoder(plain).fingerprint
    chat.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").template_variables == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("spelt", "says"),
    [
        ("enable_thinking", "is no variable of a template; wanted NAME=VALUE"),
        ("a b=1", "is no variable of a template"),
        ("messages=1", "set by each conversation"),
        ("thinkin=1", "has no variable 'thinkin'; it asks for enable_thinking"),
    ],
)
def test_a_variable_that_would_change_nothing_is_refused(tokenizer, spelt, says):
    chat = replace(tokenizer, chat_template=TEMPLATES["qwen"]["plain"])
    with pytest.raises(ValueError, match=says) as refused:
        with_variables(chat, parse_variables([spelt]))
    assert "\n" not in str(refused.value)


# Qwen 3's manner: an empty thought before the last answer alone, or at the end of the prompt.
EMPTY_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and "
    "loop.last %}{{ '<think></think>' }}{% endif %}{{ m.content or '' }}{% for call in "
    "m.tool_calls or [] %}{{ '<tool>' + call.function.name }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if quick is "
    "defined %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
# Phi 3's: the whole text ends in the end of a text, and "<|e" begins that and an end of turn.
END_OF_TEXT = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>' + m.content + '<|eot|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>' }}{% else %}"
    "{{ '<|end|>' }}{% endif %}"
)
TWO = [*TALKS["plain"], {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]


@pytest.mark.parametrize(
    ("template", "variables", "talk", "learnt"),
    [
        (EMPTY_THOUGHT, {}, TWO, "b<|im_end|><think></think>d<|im_end|>"),
        (EMPTY_THOUGHT, {"quick": True}, TWO, "b<|im_end|>d<|im_end|>"),
        (EMPTY_THOUGHT, {"quick": True}, TALKS["null"], "<tool>get<|im_end|>No.<|im_end|>"),
        (END_OF_TEXT, {}, TWO, "b<|eot|>d<|eot|>\n<|end|>"),
    ],
)
def test_answers_that_a_template_writes_otherwise_when_they_are_last(
    tokenizer, template, variables, talk, learnt
):
    chat = replace(tokenizer, chat_template=template, template_variables=variables)
    ids, mask = encode_chat(chat, talk)
    assert chat.decode(ids) == render_chat(chat, talk, add_generation_prompt=False)
    assert chat.decode([token for token, said in zip(ids, mask) if said]) == learnt


def test_tools_that_a_template_does_not_write_are_refused(tokenizer):
    chat = replace(tokenizer, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="writes no tools, and 1 are given"):
        encode_conversation(chat, TALKS["plain"][:1], TOOLS)
    assert encode_conversation(chat, TALKS["plain"][:1]) == chat.encode("a")
