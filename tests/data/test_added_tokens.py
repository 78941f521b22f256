"""Tokens that files beside a sentencepiece model add to it, as chat models have them."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from research.data.chat import end_of_turn
from research.data.tokenizers import load_tokenizer, train_tokenizer
from research.interop.gguf.tokenizer import tokenizer_files
from research.interop.gguf.tokenizer_metadata import tokenizer_metadata
from tests.data.chat_templates import TEMPLATES

TEXT = "<|im_start|>user\nhi there<|im_end|><|im|> and <|im_end|>"
ADDED = {"<|im_end|>": 400, "<|im_start|>": 401, "<|im|>": 403}


@pytest.fixture(scope="module")
def model():
    """A sentencepiece model of 400 tokens, which has its own "<eos>"."""
    return train_tokenizer("sentencepiece:400", [Path(json.__file__).read_text() * 3])


def folder(model, path, how):
    """The model with its added tokens said in one file, in the other, or in both."""
    path.mkdir()
    (path / "tokenizer.model").write_bytes(model.files["tokenizer.model"])
    config = {"eos_token": "<|im_end|>", "bos_token": {"content": "<bos>"}, "pad_token": None}
    if how != "decoder":
        (path / "added_tokens.json").write_text(json.dumps(ADDED))
    if how != "json":
        pieces = {"2": {"content": "<bos>", "special": True}}
        added = {str(n): {"content": token, "special": n != 403} for token, n in ADDED.items()}
        config["added_tokens_decoder"] = pieces | added
    config["chat_template"] = TEMPLATES["chatml"]["plain"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("how", ["json", "decoder", "both"])
def test_added_tokens_are_tokens_and_have_the_roles_that_the_config_gives(how, model, tmp_path):
    tokenizer = load_tokenizer(folder(model, tmp_path / "model", how))
    ids = tokenizer.encode(TEXT)
    # Between the added tokens the text is what the model alone makes of it.
    parts = [401, "user\nhi there", 400, 403, " and ", 400]
    wanted = [model.encode(part) if isinstance(part, str) else [part] for part in parts]
    assert ids == sum(wanted, []) and tokenizer.decode(ids) == TEXT
    assert tokenizer.align_batch([TEXT])[0][0] == ids
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (404, 400, None)
    assert tokenizer.bos_id == model.bos_id and len(tokenizer.word_starts) == 404
    assert end_of_turn(tokenizer) == 400 and tokenizer.decode([402]) == ""
    # Saved beside a run they are there again.
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.fingerprint, again.encode(TEXT)) == (tokenizer.fingerprint, ids)
    assert again.chat_template == tokenizer.chat_template


def test_a_gguf_file_holds_the_added_tokens(model, tmp_path):
    files = {
        file.name: file.read_bytes() for file in folder(model, tmp_path / "model", "both").iterdir()
    }
    metadata = tokenizer_metadata(files, vocab_size=408)
    tokens, types = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert [tokens[n] for n in (400, 401, 402, 403, 407)] == [
        "<|im_end|>", "<|im_start|>", "[PAD402]", "<|im|>", "[PAD407]",
    ]  # fmt: skip
    assert list(types[400:404]) == [3, 3, 5, 4]  # control, control, unused, user-defined
    assert metadata["tokenizer.ggml.eos_token_id"] == 400
    (tmp_path / "again").mkdir()
    for name, content in tokenizer_files(metadata).items():
        (tmp_path / "again" / name).write_bytes(content)
    again = load_tokenizer(tmp_path / "again")
    assert again.eos_id == 400 and again.encode("<|im_start|>to be<|im_end|>")[0] == 401


def test_a_model_without_added_tokens_is_what_it_was(model, tmp_path):
    model.save(tmp_path / "alone")
    assert load_tokenizer(tmp_path / "alone").fingerprint == model.fingerprint
    assert set(model.files) == {"tokenizer.model"}


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"<x>": 5}, "the added token '<x>' has the id 5 of the piece"),
        ({"<x>": "5"}, "the added token '<x>' has the id '5'"),
        ([1], "the added tokens in .* cannot be read"),
    ],
)
def test_added_tokens_that_do_not_fit_are_refused_in_one_line(added, says, model, tmp_path):
    path = folder(model, tmp_path / "model", "json")
    (path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ValueError, match=says) as refused:
        load_tokenizer(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("legacy", "bare"), [(None, False), (True, False), (False, True)])
def test_a_text_behind_a_token_begins_as_the_settings_say(legacy, bare, tmp_path):
    written = io.BytesIO()
    words = "hello there user hi and more words of the user ".split() * 40
    lines = (" ".join(words[n : n + 7]) for n in range(200))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=written, vocab_size=60, model_type="bpe",
        minloglevel=2, hard_vocab_limit=False, remove_extra_whitespaces=False,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {"70": "<|im|>"}}
    config |= {} if legacy is None else {"legacy": legacy}
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    text = "hello<|im|>user<|im|> hi"
    ids = tokenizer.encode(text)
    spaced = tokenizer.encode("user")
    assert (ids[ids.index(70) + 1 :][: len(spaced)] == spaced) != bare
    assert ids == tokenizer.align_batch([text])[0][0]
    assert tokenizer.decode(ids) == text
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.encode(text), again.fingerprint) == (ids, tokenizer.fingerprint)


def test_a_run_from_before_the_setting_was_read_keeps_its_ids(model, tmp_path):
    path = folder(model, tmp_path / "model", "both")
    load_tokenizer(path).save(tmp_path / "saved")
    file = tmp_path / "saved/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"legacy": False}))
    assert load_tokenizer(tmp_path / "saved").encode(TEXT) == load_tokenizer(path).encode(TEXT)


@pytest.mark.parametrize("split", [True, False, None])
def test_special_tokens_are_split_where_the_config_says_it(split, tmp_path):
    trained = train_tokenizer("bpe:300", [TEXT])
    (tmp_path / "model").mkdir()
    for name, content in trained.files.items():
        if name == "tokenizer_config.json":
            content = json.dumps(json.loads(content) | {"split_special_tokens": split}).encode()
        (tmp_path / "model" / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path / "model")
    special = tokenizer.decode([tokenizer.eos_id])
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    reference.encode_special_tokens = bool(split)
    ids = tokenizer.encode(f"hi{special}")
    assert ids == reference.encode(f"hi{special}", add_special_tokens=False).ids
    assert (tokenizer.eos_id in ids) != bool(split)
    assert tokenizer.align_batch([f"hi{special}"])[0][0] == ids
    # It decides ids, so it is in the fingerprint, and it is saved.
    assert (tokenizer.fingerprint == trained.fingerprint) != bool(split)
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode(f"hi{special}") == ids
