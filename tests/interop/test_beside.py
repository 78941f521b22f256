"""A certificate says what the target's reader makes of tokenizer, template and ends of a text."""

import json
from dataclasses import replace

import pytest

from research.data.tokenizers.tokenizer import RECORD
from research.interop.certificate_lines import describe
from research.interop.convert import convert
from tests.checkpoints import save_checkpoint
from tests.data.chat_templates import TEMPLATES, tokenizer_json
from tests.families import FAMILIES
from tests.interop import golden as tensors


def source(folder, family="llama_gqa", spec=None, roles=()):
    """A checkpoint of a family with a tokenizer whose ids fit GGUF's splits."""
    folder.mkdir()
    path = tensors.write(family, folder)
    spec = spec or tokenizer_json()
    spec["pre_tokenizer"]["use_regex"] = True
    (path / "tokenizer.json").write_text(json.dumps(spec))
    roles = {"bos_token": "<s>", "eos_token": "</s>", **dict(roles)}
    (path / "tokenizer_config.json").write_text(json.dumps(roles))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": 265}))
    (path / "chat_template.jinja").write_text(TEMPLATES["chatml"]["plain"])
    return path


@pytest.mark.parametrize("to", ["hf", "native"])
def test_a_folder_that_is_right_is_vouched_for(to, tmp_path):
    certificate = convert(source(tmp_path / "a"), tmp_path / "b", to)
    beside = certificate["beside"]
    for part in ("tokenizer", "template"):
        assert beside[part]["compared"] == beside[part]["equal"] > 3
    assert beside["ends"]["source"] == beside["ends"]["reader"]
    told = "\n".join(describe(certificate))
    assert "texts are the same in" in told and "warning" not in told
    written = json.loads((tmp_path / "b/certificate.json").read_text())
    assert written["beside"] == beside and written["notes"] == certificate["notes"]


def test_a_class_that_transformers_rebuilds_is_told(tmp_path):
    # GPT-2's class has no digits one by one, which this file has.
    spec = tokenizer_json()
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, {**spec["pre_tokenizer"], "use_regex": True}]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    spec["model"]["merges"] = [["1", "2"]]
    spec["model"]["vocab"]["12"] = 299
    path = source(tmp_path / "a", spec=spec, roles={"tokenizer_class": "GPT2Tokenizer"})
    certificate = convert(path, tmp_path / "b", "hf")
    [line] = [line for line in describe(certificate) if "warning" in line]
    assert "transformers reads the tokenizer otherwise" in line and "'1234567 3.14 1e-5'" in line


def gguf_source(folder):
    """A checkpoint with more rows than tokens, as a GGUF file wants it."""
    folder.mkdir()
    spec = tokenizer_json()
    spec["pre_tokenizer"]["use_regex"] = True
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    config = replace(FAMILIES["llama2_7b"], vocab_size=320)
    template = TEMPLATES["chatml"]["plain"]
    save_checkpoint(folder / "base", config, str(folder), template=template)
    return folder / "base"


def test_ends_that_llama_cpp_takes_besides_are_told(tmp_path):
    base = gguf_source(tmp_path / "a")
    certificate = convert(base, tmp_path / "b", "gguf")
    beside = certificate["beside"]
    assert beside["tokenizer"]["equal"] == beside["tokenizer"]["compared"]
    assert beside["template"]["equal"] == beside["template"]["compared"]
    # llama.cpp knows "<|im_end|>" and "<|end|>" by their texts; the source ends at "</s>" alone.
    assert beside["ends"] == {"source": [265], "reader": [265, 267, 269]}
    assert any("llama.cpp ends a text at" in line for line in describe(certificate))


def test_variables_of_the_template_are_said_where_they_are_lost(tmp_path):
    base = gguf_source(tmp_path / "a")
    record = json.loads((base / RECORD).read_text())
    (base / RECORD).write_text(json.dumps(record | {"template_variables": {"loud": True}}))
    for to, lost in (("hf", 1), ("native", 0)):
        notes = convert(base, tmp_path / to, to)["notes"]
        assert sum("{'loud': True}" in note for note in notes) == lost


def test_a_tokenizer_that_cannot_be_read_keeps_no_model_from_being_converted(tmp_path):
    path = source(tmp_path / "a")
    (path / "tokenizer.json").write_text("{}")
    certificate = convert(path, tmp_path / "b", "hf")
    assert any("not vouched for" in line for line in describe(certificate))
    assert certificate["round_trip"]["bit_equal"] == certificate["round_trip"]["tensors"]
