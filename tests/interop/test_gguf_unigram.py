"""sentencepiece's Unigram in GGUF files: XLM-R's and T5's tokenizers go there and come back."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from gguf import GGUFReader

from research.data.tokenizers import load_tokenizer
from research.interop.beside import TEXTS
from research.interop.convert import convert
from research.interop.gguf.tokenizer import tokenizer_files
from research.interop.gguf.tokenizer_metadata import tokenizer_metadata
from research.interop.load import open_checkpoint
from tests.families import FAMILIES
from tests.interop.test_gguf_encoders import write

CORPUS = [
    "the quick brown fox jumps over the lazy dog and naïve cafés serve 1234567 full width fine",
    "zwei Wörter und noch mehr Wörter, Việt Nam, 日本語 mixed with ordinary words: hello world",
]
KINDS = {
    "xlm_roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model"),
    "t5": ("T5Tokenizer", "spiece.model"),
}
# Spaces of every kind at every place, what the map of characters changes, what no piece has.
NASTY = [
    *TEXTS,
    "",
    " ",
    "   a",
    "a   ",
    "a \t b\u3000c\u00a0d",
    "①ﬁ™ Ⅷ",
    "𝔘 ϐ\u0000x",
    "x 🦊🦊 y🦊",
]


def files(kind, vocab_size=150):
    """The files of a small tokenizer of a class of transformers, with NFKC as its map."""
    model, (name, file) = io.BytesIO(), KINDS[kind]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **({"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if kind == "t5" else {}),
    )
    config = {"tokenizer_class": name, "extra_ids": 4}
    return {file: model.getvalue(), "tokenizer_config.json": json.dumps(config).encode()}


def as_json(kind, folder):
    """The tokenizer.json that such files are read as, with its settings."""
    folder.mkdir()
    for name, content in files(kind).items():
        (folder / name).write_bytes(content)
    return dict(load_tokenizer(folder).files)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_nasty_texts_come_back(kind, tmp_path):
    given = as_json(kind, tmp_path / "source")
    again = tmp_path / "again"
    again.mkdir()
    for name, content in tokenizer_files(tokenizer_metadata(given)).items():
        (again / name).write_bytes(content)
    before, after = load_tokenizer(tmp_path / "source"), load_tokenizer(again)
    for text in NASTY:
        assert before.encode(text) == after.encode(text), text
    assert (before.eos_id, before.pad_id) == (after.eos_id, after.pad_id)
    # What goes around a text goes with it.
    one, other = (
        json.loads(x["tokenizer.json"]) for x in (given, tokenizer_files(tokenizer_metadata(given)))
    )
    assert one["model"]["vocab"] == other["model"]["vocab"]
    assert one["normalizer"] == other["normalizer"]
    assert one["post_processor"]["single"] == other["post_processor"]["single"]


def test_a_folder_of_xlm_r_has_its_tokenizer_in_the_file(tmp_path):
    c = replace(FAMILIES["bert_base"], position_offset=2, pooler=False, vocab_size=160)
    folder = write(c, tmp_path / "hf", files("xlm_roberta"))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "xlm-roberta"}
    (folder / "config.json").write_text(json.dumps(config))
    certificate = convert(folder, tmp_path / "gguf", "gguf")
    compared = certificate["beside"]["tokenizer"]
    assert compared["equal"] == compared["compared"] > 12
    keys = GGUFReader(tmp_path / "gguf/model.gguf").fields
    assert keys["tokenizer.ggml.model"].contents() == "t5"
    assert len(keys["tokenizer.ggml.precompiled_charsmap"].contents()) > 1000
    with open_checkpoint(folder) as one, open_checkpoint(tmp_path / "gguf") as other:
        assert one.tokenizer.encode("Naïve ﬁne") == other.tokenizer.encode("Naïve ﬁne")
        assert not other.unused


SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("normalizers", "step", "same"),
    [
        ([], META, True),
        ([{"type": "Strip", "strip_left": False, "strip_right": True}, SPACES], META, True),
        ([{"type": "Lowercase"}], META, False),
        ([], {**META, "replacement": "_"}, False),
        ([], {**META, "prepend_scheme": "first"}, False),
        ([], {"type": "Whitespace"}, False),
    ],
)
def test_other_spellings_of_its_steps_are_known_or_refused(normalizers, step, same, tmp_path):
    given = as_json("xlm_roberta", tmp_path / "source")
    spec = json.loads(given["tokenizer.json"])
    spec["normalizer"] = {"type": "Sequence", "normalizers": [spec["normalizer"], *normalizers]}
    spec["pre_tokenizer"] = step
    given["tokenizer.json"] = json.dumps(spec).encode()
    if same:
        assert tokenizer_metadata(given)["tokenizer.ggml.add_space_prefix"]
    else:
        with pytest.raises(ValueError, match="no words for this step of Unigram"):
            tokenizer_metadata(given)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("remove_extra_whitespaces", False, "only True is supported"),
        ("unknown_token_id", 10**6, "unknown_token_id is 1000000"),
        ("scores", np.zeros(3, np.float32), "wanted a number for each"),
    ],
)
def test_what_a_file_cannot_mean_here_is_refused(key, value, says, tmp_path):
    metadata = tokenizer_metadata(as_json("t5", tmp_path / "source"))
    with pytest.raises(ValueError, match=says):
        tokenizer_files(metadata | {f"tokenizer.ggml.{key}": value})
