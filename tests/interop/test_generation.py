"""What a checkpoint says about generating: end tokens and sampling, in every format."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from research.data.tokenizers import load_tokenizer
from research.files import building, read_json
from research.interop.convert import convert, notes_on_ends
from research.interop.gguf.file import open_gguf
from research.interop.huggingface import folder as hf
from research.interop.load import load, open_checkpoint
from research.run.lines import announce
from research.run.opened import open_run
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.data.chat_templates import TEMPLATES, tokenizer_json
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params
from tests.runs import started_run

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9}
C = replace(FAMILIES["llama2_7b"], vocab_size=320)
# The ids of the tests' tokenizer: "</s>", "<|im_end|>" and "<|eot|>".
EOS, IM_END, EOT = 265, 267, 270


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The start of a run on chats, from a checkpoint that recommends a sampling and has one end."""
    folder = tmp_path_factory.mktemp("chat")
    spec = tokenizer_json()  # with GPT-2's split, for which a GGUF file has a name
    spec["pre_tokenizer"]["use_regex"] = True
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    base = folder / "base"
    save_checkpoint(base, C, str(folder), template=TEMPLATES["chatml"]["plain"])
    (base / "generation_config.json").write_text(json.dumps(SAMPLING))
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
    (folder / "chats.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 60)
    e = experiment("finetune", f"task=chat,data={folder / 'chats.jsonl'},smoke", init=str(base))
    return started_run(e, folder / "run")


@pytest.fixture(scope="module")
def run(session):
    return session.workdir


@pytest.mark.parametrize(
    ("template", "turn", "ends"),
    [("chatml", IM_END, [EOS, IM_END]), ("llama3", EOT, [EOS, EOT]), ("mistral", EOS, EOS)],
)
def test_the_end_of_a_turn_that_a_run_learnt_ends_its_exports(run, template, turn, ends, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    source = TEMPLATES[template]["plain"]
    (tmp_path / "run/tokenizer/chat_template.jinja").write_text(source)
    for to in ("hf", "native", "gguf"):
        convert(tmp_path / "run", tmp_path / to, to, certified=to == "gguf")
        loaded = load(tmp_path / to)
        assert set(loaded.stop_ids) == {turn, EOS}
        assert loaded.sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.9}
    assert read_json(tmp_path / "hf/config.json")["eos_token_id"] == ends
    # transformers' generate asks this file alone where there is one.
    generation = read_json(tmp_path / "hf/generation_config.json")
    assert generation == {**SAMPLING, "eos_token_id": ends}
    assert load_tokenizer(tmp_path / "hf").eos_id == turn
    with open_gguf(tmp_path / "gguf/model.gguf") as file:
        assert file.metadata["tokenizer.ggml.eos_token_id"] == EOS
        assert file.metadata.get("tokenizer.ggml.eot_token_id", EOS) == turn
    assert set(open_run(tmp_path / "run").stop_ids) == {turn, EOS}


def test_an_exported_adapter_says_what_its_base_does_not_end_at(run):
    with open_checkpoint(run.parent / "base") as parent:
        [line] = notes_on_ends(run, parent)
        assert f"<|im_end|> ({IM_END})" in line and f"eos_token_id=[{EOS}, {IM_END}]" in line
        ends = replace(parent, special={"eos_token_id": [EOS, IM_END]})
        assert notes_on_ends(run, ends) == []


def test_a_run_has_the_sampling_of_the_checkpoint_that_it_started_from(run):
    assert open_run(run).sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.9}


def test_a_template_that_ends_turns_in_nothing_is_said_before_the_first_step(session):
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    # What the line advises, followed to the letter.
    advised = plain.replace("\n", "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n")
    for template, told in ((plain, 1), (advised, 0), (TEMPLATES["chatml"]["plain"], 0)):
        tokenizer = replace(session.corpus.tokenizer, chat_template=template)
        lines = []
        corpus = replace(session.corpus, tokenizer=tokenizer)
        announce(replace(session, corpus=corpus), SimpleNamespace(note=lines.append))
        assert sum("{{ eos_token }}" in line for line in lines) == told


@pytest.mark.parametrize(
    ("ids", "left"), [([5, 6], []), ([5, 6, 7], []), ([5, 6, 7, 8, 9], [8, 9])]
)
def test_a_gguf_file_keeps_three_ends_and_names_the_others(ids, left, tmp_path):
    with building(tmp_path / "hf") as folder:
        hf.write_folder(in_memory(C, random_params(C), special={"eos_token_id": ids}), folder)
    notes = convert(tmp_path / "hf", tmp_path / "gguf", "gguf")["notes"]
    assert [str(left) in line for line in notes] == [True] * bool(left)
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        assert checkpoint.special["eos_token_id"] == ids[:3]
    convert(tmp_path / "gguf", tmp_path / "back", "hf")
    assert load(tmp_path / "back").stop_ids == tuple(ids[:3])


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        ({}, {}),
        ({"do_sample": True, "temperature": 0.7, "top_p": None}, {"temperature": 0.7}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 50}, {"temperature": 0.0}),
        (
            {"do_sample": False, "repetition_penalty": 1.2, "top_p": 1},
            {"temperature": 0.0, "repetition_penalty": 1.2},
        ),
        ({"temperature": 1, "min_p": 0.05}, {"temperature": 1.0, "min_p": 0.05}),
    ],
)
def test_generation_config_gives_the_defaults_of_sampling(values, sampling, tmp_path):
    with building(tmp_path / "hf") as folder:
        hf.write_folder(in_memory(C, random_params(C)), folder)
        (folder / "generation_config.json").write_text(json.dumps(values))
    assert load(tmp_path / "hf").sampling == sampling
    convert(tmp_path / "hf", tmp_path / "native")
    assert load(tmp_path / "native").sampling == sampling
    convert(tmp_path / "hf", tmp_path / "gguf", "gguf", certified=False)  # without a tokenizer


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", float("inf")),
        ("top_p", 1.5),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", True),
    ],
)
def test_a_sampling_out_of_range_is_left_out_by_name(field, value, tmp_path, caplog):
    with building(tmp_path / "hf") as folder:
        hf.write_folder(in_memory(C, random_params(C)), folder)
        values = {field: value, "repetition_penalty": 1.5}
        (folder / "generation_config.json").write_text(json.dumps(values))
    assert load(tmp_path / "hf").sampling == {"repetition_penalty": 1.5}
    [record] = caplog.records
    assert f"generation_config.json has {field}={value!r}, which is left out" in record.message
