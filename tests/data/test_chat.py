"""Chat templates: rendered as transformers renders them, masked to what the assistant says, and
harmless."""

import json
import resource
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from research.data.chat import ChatEncoder, encode_chat, end_of_turn, render_chat
from research.data.chat_renderer import CPU_SECONDS, unmarked
from research.data.chat_sandbox import (
    WALL_SECONDS,
    ChatRefused,
    Sandbox,
    shared_sandbox,
)
from research.data.tokenizers import load_tokenizer, train_tokenizer
from tests.data.chat_templates import (
    CONVERSATIONS,
    STRIPS_THOUGHTS,
    TEMPLATES,
    save_tokenizer,
    tokenizer_json,
)

GOLDEN = json.loads(Path(__file__).with_name("golden_chat.json").read_text())
DAY = datetime(2024, 7, 26)
CASES = [
    (name, kind, key) for name in TEMPLATES for kind in ("plain", "marked") for key in CONVERSATIONS
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tiny one; give it a template with `with_template`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


def with_template(tokenizer, template: str):
    return replace(tokenizer, chat_template=template)


@pytest.mark.parametrize(("name", "kind", "key"), CASES)
def test_text_ids_and_mask_are_those_of_transformers(tokenizer, name, kind, key):
    # The golden mask is that of the marked template; rendering prefixes of the plain one has to
    # find the same.
    golden, messages = GOLDEN["templates"][name][key], CONVERSATIONS[key]
    chat = with_template(tokenizer, TEMPLATES[name][kind])
    if "error" in golden:
        with pytest.raises(ChatRefused, match="roles must alternate"):
            encode_chat(chat, messages)
        return
    assert render_chat(chat, messages, add_generation_prompt=False, now=DAY) == golden["text"]
    assert render_chat(chat, messages, now=DAY) == golden["prompt"]
    ids, mask = encode_chat(chat, messages)
    assert ids == golden["ids"] == chat.encode(golden["text"])
    assert [int(said) for said in mask] == golden["mask"] and any(mask) and not all(mask)


@pytest.mark.parametrize("key", CONVERSATIONS)
def test_smollm2s_own_template(tokenizer, key):
    chat = with_template(tokenizer, GOLDEN["smollm2"]["template"])
    texts = [
        render_chat(chat, CONVERSATIONS[key], add_generation_prompt=prompt)
        for prompt in (False, True)
    ]
    assert texts == GOLDEN["smollm2"]["rendered"][key]
    ids, mask = encode_chat(chat, CONVERSATIONS[key])
    answers = [m["content"] + "<|im_end|>" for m in CONVERSATIONS[key] if m["role"] == "assistant"]
    # Up to the line break that a token has in common with an answer's first one.
    said = chat.decode([token for token, counts in zip(ids, mask) if counts])
    assert said.replace("\n", "") == "".join(answers).replace("\n", "")


def test_a_template_that_rewrites_earlier_turns_is_refused_and_not_masked_wrongly(tokenizer):
    chat = with_template(tokenizer, STRIPS_THOUGHTS)
    thoughtful = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "<think>y</think>d"},
    ]
    with pytest.raises(ValueError, match="differently once it follows") as caught:
        encode_chat(chat, thoughtful)
    assert not isinstance(caught.value, ChatRefused) and "\n" not in str(caught.value)
    ids, mask = encode_chat(chat, thoughtful[:2])
    assert (
        chat.decode([token for token, said in zip(ids, mask) if said])
        == "<think>x</think>b<|im_end|>"
    )


def test_a_template_without_a_generation_prompt_is_refused(tokenizer):
    template = TEMPLATES["chatml"]["plain"].replace("add_generation_prompt", "false")
    with pytest.raises(ValueError, match="no generation prompt"):
        encode_chat(with_template(tokenizer, template), CONVERSATIONS["one"])


def test_a_marked_template_that_marks_nothing_is_refused(tokenizer):
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if false %}{% generation %}x{% endgeneration %}{% endif %}"
    )
    with pytest.raises(ChatRefused, match="nothing of the assistant's"):
        encode_chat(with_template(tokenizer, template), CONVERSATIONS["one"])


@pytest.mark.parametrize(
    ("name", "token"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot|>"), ("mistral", "</s>"), ("loops", None)],
)
def test_the_token_that_ends_an_answer_is_found(tokenizer, name, token):
    for kind in ("plain", "marked"):
        found = end_of_turn(with_template(tokenizer, TEMPLATES[name][kind]))
        assert found == (None if token is None else tokenizer.encode(token)[0])


def test_the_cached_encoding_is_known_by_template_and_tokenizer(tokenizer):
    first = ChatEncoder(with_template(tokenizer, TEMPLATES["chatml"]["plain"]))
    assert (
        first.fingerprint
        == ChatEncoder(with_template(tokenizer, TEMPLATES["chatml"]["plain"])).fingerprint
    )
    assert (
        first.fingerprint
        != ChatEncoder(with_template(tokenizer, TEMPLATES["mistral"]["plain"])).fingerprint
    )
    other = replace(with_template(tokenizer, TEMPLATES["chatml"]["plain"]), fingerprint="other")
    assert first.fingerprint != ChatEncoder(other).fingerprint
    assert with_template(tokenizer, "x").fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match="config.data.chat_template"):
        ChatEncoder(tokenizer)


@pytest.mark.parametrize("form", ["file", "string", "list"])
def test_a_template_is_read_from_a_file_or_the_config_and_saved_with_the_tokenizer(tmp_path, form):
    template = "{{ messages }}\r\né"
    save_tokenizer(
        tmp_path / "a", template if form == "string" else "another" if form == "file" else None
    )
    if form == "file":
        (tmp_path / "a" / "chat_template.jinja").write_bytes(template.encode())
    if form == "list":
        config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        (tmp_path / "a" / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": named})
        )
    loaded = load_tokenizer(tmp_path / "a")
    assert (
        loaded.chat_template
        == template
        == load_tokenizer(tmp_path / "a" / "tokenizer.json").chat_template
    )
    loaded.save(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").chat_template == template
    (tmp_path / "b" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="chat template in .* cannot be read"):
        load_tokenizer(tmp_path / "b")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A tokenizer of each kind; the one of Hugging Face's has GPT-2's post-processor, which trims
    places."""
    folder, texts = (
        tmp_path_factory.mktemp("kinds"),
        ["the cat sat on the mat, naïve\n\n  the the "] * 40,
    )
    spec = tokenizer_json()
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": spec["decoder"]}))
    trained = train_tokenizer("sentencepiece:315", texts)
    return [load_tokenizer("bytes"), load_tokenizer(folder / "tokenizer.json"), trained]


@settings(deadline=None)
@given(st.text(alphabet="the nai\n ▁é日🎉", max_size=30), st.text(max_size=8))
def test_the_places_of_tokens_cover_the_text_in_order(kinds, known, other):
    text = f"{known}<eos></s>{other}"
    for tokenizer in kinds:
        [(ids, places)] = tokenizer.align_batch([text])
        assert ids == tokenizer.encode(text)
        assert places[0][0] == 0 and places[-1][1] == len(text)
        for (_, stop), (start, _) in zip(places, places[1:]):
            assert start <= stop, (
                tokenizer.kind,
                places,
            )  # tokens that share a letter overlap, no letter is left out
        assert sorted(places) == places


HOSTILE = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "endless text": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "xxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "a loop inside C": "{{ ([3] * 10**7)|sort|length }}"
    "{{ ([3, 2] * 10**7)|sort|sort(reverse=true)|sort|length }}"
    "{{ ('ab' * 10**7)|wordwrap(1)|length }}",
    "a huge range": "{{ range(10**12)|list }}",
    "a huge product": "{{ 'a' * 10**11 }}",
    "a product under the limit of memory": "{% set x = 'a' * 10**8 %}{{ x * 9 }}",
    "a huge power": "{{ (7 ** (10 ** 9)) % 3 }}",
    "a wide format": "{{ '%1000000000000d' % 1 }}",
    "another wide format": "{{ '{:>1000000000000}'.format(1) }}",
    "a wide centre": "{{ 'a'|center(10**10) }}",
    "a wide indent": "{{ messages|tojson(indent=10**9) }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a deep list": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "an attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "a change of the messages": "{% set _ = messages.append(1) %}",
    "a file": "{% include '/etc/passwd' %}",
    "a wide clock": "{{ strftime_now('%Y' * 10**8) }}",
    "no template": "{% if %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_one_line_and_in_time(name):
    sandbox, started, before = Sandbox(), time.monotonic(), cpu_seconds_of_children()
    with pytest.raises(ValueError) as caught:
        sandbox.render(HOSTILE[name], [{"messages": [{"role": "user", "content": "x"}]}], DAY)
    sandbox.close()
    assert (
        "\n" not in str(caught.value)
        and "the chat template" in str(caught.value)
        and len(str(caught.value)) < 400
    )
    # Starting Python and jinja2 takes some 0.2 s more, twice that on a crowded machine.
    assert cpu_seconds_of_children() - before < CPU_SECONDS + 1
    assert time.monotonic() - started < WALL_SECONDS + 5  # whatever else the machine does
    assert sandbox.render("{{ 1 }}", [{}], DAY)[0].text == "1"
    sandbox.close()


def cpu_seconds_of_children() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ strftime_now.__self__ }}",
    ],
)
def test_attributes_of_pythons_own_are_as_good_as_absent(template):
    assert shared_sandbox().render(template, [{}], DAY)[0].text == ""


def test_the_renderer_sees_nothing_of_the_runs_environment_and_writes_no_file(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    sandbox = Sandbox()
    assert sandbox.render("{{ 1 }}", [{}], DAY)[0].text == "1"
    environment = Path(f"/proc/{sandbox._process.pid}/environ")
    if environment.exists():
        assert b"secret" not in environment.read_bytes()
        assert (
            "0"
            in Path(f"/proc/{sandbox._process.pid}/limits")
            .read_text()
            .split("Max file size")[1]
            .split()[:1]
        )
    sandbox.close()
    assert sandbox.render("{{ 2 }}", [{}], DAY)[0].text == "2"  # started anew
    sandbox.close()


def test_a_message_cannot_pass_for_a_mark():
    assert unmarked("a\0(b\0)c\0(d\0)", "\0(", "\0)") == ("abcd", [(1, 2), (3, 4)])
    assert unmarked("\0(a\0(b\0)c\0)", "\0(", "\0)") == ("abc", [(0, 3)])
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    [first] = shared_sandbox().render(
        template, [{"messages": [{"content": "\0x\0" + "0" * 32}]}], DAY
    )
    assert first.text == "\0x\0" + "0" * 32 and first.spans == [(0, 35)]
