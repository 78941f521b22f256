"""Tokenizers in the files of older releases of transformers give that library's own ids."""

import base64
import json
from pathlib import Path

import pytest

from research.data.files import FileDocuments
from research.data.pairs import pair_windows
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions
from research.interop.convert import convert
from research.interop.load import load, open_checkpoint
from tests.interop import golden as tensors

GOLDEN = json.loads((Path(__file__).parent / "legacy" / "golden.json").read_text())
CASES = GOLDEN["cases"]


def write(folder, files):
    """The files of a case in a new folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])
        (folder / name).write_bytes(raw)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ids_and_special_tokens_are_those_of_transformers(case, tmp_path):
    wanted = CASES[case]
    tokenizer = load_tokenizer(write(tmp_path / "folder", wanted["files"]))
    assert dict(zip(GOLDEN["texts"], tokenizer.encode_batch(GOLDEN["texts"]))) == dict(
        zip(GOLDEN["texts"], wanted["ids"])
    )
    roles = {role: getattr(tokenizer, f"{role}_id") for role in wanted["roles"]}
    assert {k: v for k, v in roles.items() if wanted["roles"][k] is not None} == {
        k: v for k, v in wanted["roles"].items() if v is not None
    }
    assert tokenizer.vocab_size == wanted["size"]
    assert [ids for ids, _ in tokenizer.align_batch(GOLDEN["texts"])] == wanted["ids"]
    if "targets" in wanted:
        assert tokenizer.targets.encode_batch(GOLDEN["texts"]) == wanted["targets"]
    # Saved beside a run it is the same again.
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(GOLDEN["texts"]) == wanted["ids"]


@pytest.mark.parametrize("to", ["hf", "native"])
@pytest.mark.parametrize(
    ("family", "case"),
    [("gpt2", "gpt2_added"), ("bert", "bert"), ("t5", "t5"), ("marian", "marian")],
)
def test_a_checkpoint_has_its_tokenizer_in_every_format(family, case, to, tmp_path):
    golden = CASES[case]
    source = tensors.write(family, tmp_path)
    files = {name: text for name, text in golden["files"].items() if name != "config.json"}
    write(source, files)
    convert(source, tmp_path / "target", to)
    for folder in (source, tmp_path / "target"):
        with open_checkpoint(folder) as checkpoint:
            tokenizer = checkpoint.tokenizer
            assert tokenizer.encode_batch(GOLDEN["texts"]) == golden["ids"]
            # Whether a text begins with a token, as transformers frames it.
            begins = len(golden["framed"]) > 1 and golden["framed"][0] == tokenizer.bos_id
            assert checkpoint.begins_texts == begins


def test_a_model_that_translates_reads_one_language_and_writes_the_other(tmp_path):
    case = CASES["marian"]
    tokenizer = load_tokenizer(write(tmp_path / "folder", case["files"]))
    number = next(n for n, ids in enumerate(case["ids"]) if ids != case["targets"][n])
    text = GOLDEN["texts"][number]
    (tmp_path / "a.jsonl").write_text(json.dumps({"inputs": text, "targets": text}))
    documents = FileDocuments(tmp_path / "a.jsonl", "", tmp_path / "cache", "pairs")
    windows = pair_windows(documents, WindowOptions(tokenizer, tmp_path / "cache", 64))
    for side, ids in (("inputs", case["ids"][number]), ("targets", case["targets"][number])):
        assert windows[0][side][: len(ids) + 1].tolist() == [*ids, tokenizer.eos_id]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"vocab.json": "{}"}, "does not say its class; write it into tokenizer_config.json"),
        (
            {"vocab.txt": "a", "tokenizer_config.json": '{"tokenizer_class": "XTokenizer"}'},
            "of class XTokenizer; without a tokenizer.json there are GPT2Tokenizer, .*save_pretr",
        ),
        ({"vocab.json": "{}", "config.json": '{"model_type": "gpt2"}'}, "it wants vocab.json and"),
        (
            {"vocab.json": "[", "merges.txt": "", "config.json": '{"model_type": "gpt2"}'},
            "cannot use the GPT2Tokenizer",
        ),
        (
            {"spiece.model": "no", "config.json": '{"model_type": "t5"}'},
            "cannot use the T5Tokenizer .* not a sentencepiece model",
        ),
        (
            {
                "vocab.json": '{"a": 4000000000}',
                "merges.txt": "",
                "config.json": '{"model_type": "gpt2"}',
            },
            "a token has the id 4,000,000,000; wanted ids below",
        ),
        (
            {"vocab.txt": "[UNK]", "special_tokens_map.json": '{"eos_token": 5}'},
            "cannot be read .*a token is 5, wanted its text",
        ),
        (
            {"vocab.txt": "a", "tokenizer_config.json": '{"added_tokens_decoder": {"5": 7}}'},
            "cannot be read .*a token is 7, wanted its text",
        ),
        ({"source.spm": "", "config.json": '{"model_type": "marian"}'}, "has no target.spm"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(files, says, tmp_path):
    with pytest.raises(ValueError, match=says) as refused:
        load_tokenizer(write(tmp_path / "folder", files))
    assert "\n" not in str(refused.value)


def test_weights_are_read_without_a_tokenizer_of_an_unknown_class(tmp_path, caplog):
    source = tensors.write("gpt2", tmp_path)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "XTokenizer"}')
    (source / "vocab.json").write_text("{}")
    assert load(source).tokenizer is None
    assert "of class XTokenizer" in caplog.text and "read without it" in caplog.text
