"""Prompts as users give them: files, conversations, recommended sampling, long texts."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer import decode, progress
from research.infer.conversation import conversation, drop_oldest
from research.infer.decode import generate
from research.infer.dialogue import converse
from research.infer.prompt_file import Conversation, read_prompts
from research.infer.prompts import at_the_last_position
from research.infer.sampling import SamplingConfig, choose_sampling, recommendation
from research.interop.loaded import Loaded
from research.interop.storage.checkpoint import Checkpoint
from research.models.model import Model
from research.models.spec import initialize
from tests.families import FAMILIES

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SHORT = 16  # positions


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    tokenizer = replace(load_tokenizer("bytes"), chat_template=TEMPLATE)
    c = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=SHORT)
    model = Model(c)
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    checkpoint = Checkpoint(tmp_path_factory.mktemp("tiny"), "run", c, {})
    return Loaded(c, params, tokenizer, model, None, checkpoint)


def test_a_loaded_model_writes_answers_and_takes_ids_in_any_form(loaded):
    one = loaded.generate("ab", max_tokens=4, temperature=0)
    config = SamplingConfig(max_tokens=4, temperature=0, stop_ids=loaded.stop_ids)
    [wanted] = generate(loaded.model, loaded.params, loaded.tokenizer, ["ab"], config)
    assert one == wanted.text
    assert loaded.generate(["ab", [5, 6]], max_tokens=4, temperature=0)[0] == one
    ids = [loaded.tokenizer.bos_id or loaded.tokenizer.eos_id, *loaded.tokenizer.encode("ab")]
    assert loaded.generate(np.array(ids, np.uint16), max_tokens=4, temperature=0) == one
    answer = loaded.chat("hi", max_tokens=4, temperature=0)
    assert answer == loaded.generate(
        loaded.tokenizer.encode("u:hi\na:"), max_tokens=4, temperature=0
    )
    assert answer == loaded.chat([{"role": "user", "content": "hi"}], max_tokens=4, temperature=0)
    logits = loaded.logits(ids)
    for form in (np.array(ids, np.uint16), np.array(ids, np.int64), tuple(ids), jnp.array(ids)):
        np.testing.assert_array_equal(loaded.logits(form), logits)
    np.testing.assert_array_equal(loaded.logits([ids])[0], logits)


def test_what_a_loaded_model_refuses_names_the_remedy(loaded):
    with pytest.raises(ValueError, match="the nearest is 'top_p'"):
        loaded.generate("a", topp=0.5)
    with pytest.raises(ValueError, match="pad them"):
        loaded.logits([[1, 2], [3]])
    with pytest.raises(ValueError, match="tokenizer.json"):
        replace(loaded, tokenizer=None).generate("a")
    with pytest.raises(ValueError, match="system message of their own"):
        loaded.chat(
            [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], system="z"
        )


@pytest.mark.parametrize(
    "recommended, chosen, drawn, said",
    [
        ({}, {}, (0.7, 0.95, 0), ""),
        ({"temperature": 0.2, "top_p": 0.9}, {}, (0.2, 0.9, 0), "temperature=0.2, top_p=0.9"),
        # What the checkpoint leaves open is off, and not the command's own default.
        ({"top_k": 20}, {"temperature": 0.5}, (0.5, 1.0, 20), "top_k=20"),
        ({"temperature": 0.2, "top_p": 0.9}, {"temperature": 0}, (0, 0.9, 0), ""),
        ({"repetition_penalty": 1.3}, {"temperature": 0}, (0, 1.0, 0), "repetition_penalty=1.3"),
    ],
)
def test_a_checkpoint_recommends_and_a_flag_decides(recommended, chosen, drawn, said):
    chosen = {"temperature": None, "top_p": None} | chosen
    config = choose_sampling(recommended, chosen, {"temperature": 0.7, "top_p": 0.95})
    assert (config.temperature, config.top_p, config.top_k) == drawn
    line = recommendation(recommended, chosen)
    assert said in line and bool(said) == bool(line)


FILES = {
    "questions.txt": (b"\xef\xbb\xbfone\r\n\r\ntwo\n", ["one", "two"]),
    "questions.jsonl": (
        b'{"prompt": "a\\u2028b"}\n\n{"messages": [{"role": "user", "content": "c"}]}\r\n'
        b'{"messages": [{"role": "user", "content": "c"}], "tools": [{"name": "d"}]}',
        [
            "a\u2028b",
            Conversation([{"role": "user", "content": "c"}]),
            Conversation([{"role": "user", "content": "c"}], ({"name": "d"},)),
        ],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_prompts(name, tmp_path):
    content, prompts = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    "line", ['{"text": "b"}', "[1]", '{"messages": []}', "[" * 5000, '{"prompt": 3}']
)
def test_a_line_without_a_prompt_is_named(line, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match="line 2 is no object like") as refused:
        read_prompts(file)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "messages", [[], [{"content": "x"}], [{"role": "assistant", "content": "x"}]]
)
def test_messages_without_a_question_are_refused(messages):
    with pytest.raises(ValueError, match="messages end in|is no message"):
        conversation(messages)


def test_a_conversation_knows_its_commands(capsys):
    lines = iter(
        ["hi", "/help", "/stop now", "/usr/bin is what?", " /reset?", "/reset", "new", "/quit", "x"]
    )
    asked = []

    def _answer(messages):
        asked.append([message["content"] for message in messages])
        yield "ok"

    converse(lambda: next(lines, None), _answer, "short", lambda kind, file: file)
    assert asked[0] == ["short", "hi"]
    assert asked[1][-1] == "/usr/bin is what?" and asked[2][-1] == "/reset?"
    assert asked[3] == ["short", "new"] and len(asked) == 4
    out, notes = capsys.readouterr()
    assert out == "ok\n" * 4
    assert notes.count("/reset forgets") == 2 and "no command /stop" in notes


def test_files_go_with_the_next_line_and_one_that_cannot_be_read_is_told(capsys):
    lines = iter(["/image a b.png", "/audio no.wav", "/image", "/audio x.wav", "what?", "and?"])
    lines = iter([*lines, "/image late.png", "/reset", "new"])
    asked = []

    def _attach(kind, file):
        if file.name == "no.wav":
            raise ValueError("there is no such file")
        return kind, file.name

    def _answer(messages):
        asked.append(messages[-1]["content"])
        yield "ok"

    converse(lambda: next(lines, None), _answer, None, _attach)
    assert asked == [[("image", "a b.png"), ("audio", "x.wav"), "what?"], "and?", "new"]
    notes = capsys.readouterr().err
    assert "(no.wav: there is no such file)" in notes and "wants a file" in notes


def test_the_oldest_turn_goes_first_and_a_system_message_stays():
    messages = [{"role": "system"}, {"role": "user"}, {"role": "assistant"}, {"role": "user"}]
    assert drop_oldest(messages) and messages == [{"role": "system"}, {"role": "user"}]
    assert not drop_oldest(messages)


@pytest.mark.parametrize(
    "prompts, said",
    [
        ([[7] * 20], "the prompt has 20 tokens; the model was made for 16 positions"),
        ([[7] * 20, [7] * 18, [7]], "2 of 3 prompts have up to 20 tokens"),
        ([[7] * 16], ""),
    ],
)
def test_a_prompt_beyond_rotary_positions_is_announced_once(loaded, caplog, prompts, said):
    with caplog.at_level(logging.WARNING):
        # The part of `generate` before anything is computed.
        decode._rows(loaded.config, loaded.tokenizer, prompts, SamplingConfig())
    assert [said in record.message for record in caplog.records] == [True] * bool(said)


@pytest.mark.parametrize(
    ("position", "texts", "line"),
    [
        ("rope", [16], None),
        ("rope", [17], "the text went on to 17 tokens; the model was made for 16 positions"),
        ("rope", [17, 40, 3], "2 of 3 texts went on to 40 tokens"),
        ("learned", [16], "the text went on to the end of the model's 16 positions, before 50 new"),
        ("learned", [15, 16], "1 of 2 texts went on to the end"),
        ("relative", [99], None),
    ],
)
def test_a_text_that_comes_to_the_end_of_the_positions_is_announced(position, texts, line):
    c = SimpleNamespace(position=position, max_length=16)
    said = at_the_last_position(c, [2] * len(texts), texts, 50)
    assert said is None if line is None else said.startswith(line)
    assert at_the_last_position(c, [20], [40], 20) is None  # the prompt was said to be too long


def test_a_prompt_beyond_learned_positions_is_refused():
    model = Model(replace(FAMILIES["gpt2"], max_length=SHORT))
    with pytest.raises(ValueError, match="17 tokens, the model 16 positions; shorten it"):
        generate(model, {"layers": {}}, load_tokenizer("bytes"), [[7] * 17])


def test_an_empty_prompt_is_a_source_and_no_beginning(loaded):
    c = replace(FAMILIES["t5_small"], vocab_size=loaded.config.vocab_size)
    [row] = decode._rows(c, loaded.tokenizer, [""], SamplingConfig(bos=False))
    assert row.source == [loaded.tokenizer.eos_id] and len(row.ids) == 1
    with pytest.raises(ValueError, match="prompt 1 is empty.*give it a word"):
        decode._rows(loaded.config, loaded.tokenizer, ["a", ""], SamplingConfig(bos=False))


def test_reading_a_long_prompt_shows_where_it_is(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    show = progress.reading(4000)
    show(512, jnp.zeros(1))
    assert capsys.readouterr().err == "\r\x1b[Kreading the prompt: 512 of 4,000 tokens"
    show(4000, jnp.zeros(1))
    progress.reading(100)(16, jnp.zeros(1))  # short: nothing
    assert capsys.readouterr().err == "\r\x1b[K"
