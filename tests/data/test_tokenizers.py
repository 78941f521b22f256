"""Tokenizers: lossless, the ids of the reference, one fingerprint for one behaviour, one line for
bad input."""

import argparse
import base64
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.tokenizers import load_tokenizer, train_tokenizer
from research.data.tokenizers.huggingface import byte_characters
from research.data.tokenizers.ranks import merges_from_ranks

OURS = ("bytes", "bpe:600", "sentencepiece:600")
SOURCE = [Path(argparse.__file__).read_text()]  # 100 kB of Python
TRICKY = [
    "<eos>",
    "<extra_7>",
    "<pa",
    "▁",
    "▁▁",
    " ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "\ufffd",
    "\u2047",
    "🙂",
    "e\u0301",
    "日本",
]


@functools.cache
def built(spelling):
    return train_tokenizer(spelling, SOURCE)


text = st.lists(st.text() | st.sampled_from(TRICKY)).map("".join)

# tiktoken 0.12's ids for these ranks, GPT-2's split and <|endoftext|> allowed.
GPT2 = {
    "": [],
    "Hello world": [15496, 995],
    "I'll say they've won; she'd, we're, it's DON'T": [
        40,
        1183,
        910,
        484,
        1053,
        1839,
        26,
        673,
        1549,
        11,
        356,
        821,
        11,
        340,
        338,
        23917,
        6,
        51,
    ],
    "3.14159 1234567890 12 345": [18, 13, 1415, 19707, 17031, 2231, 30924, 3829, 1105, 39937],
    "🙂👩\u200d👩\u200d👧\u200d👦 é e\u0301 ñ": [
        8582,
        25081,
        41840,
        102,
        447,
        235,
        41840,
        102,
        447,
        235,
        41840,
        100,
        447,
        235,
        41840,
        99,
        38251,
        304,
        136,
        223,
        6184,
        109,
    ],
    "日本語とｶﾀｶﾅ、中文，한국어": [
        33768,
        98,
        17312,
        105,
        45739,
        252,
        30201,
        171,
        121,
        114,
        171,
        122,
        222,
        171,
        121,
        114,
        171,
        122,
        227,
        23513,
        40792,
        23877,
        229,
        171,
        120,
        234,
        47991,
        250,
        166,
        113,
        255,
        168,
        244,
        112,
    ],
    "a  b   c\t\td    e": [64, 220, 275, 220, 220, 269, 197, 197, 67, 220, 220, 220, 304],
    "line\n\n\n  next\r\n\tend  \n": [1370, 628, 198, 220, 1306, 201, 198, 197, 437, 220, 220, 198],
    "def f(x):\n    return x**2  # ok": [
        4299,
        277,
        7,
        87,
        2599,
        198,
        220,
        220,
        220,
        1441,
        2124,
        1174,
        17,
        220,
        1303,
        12876,
    ],
    "end<|endoftext|>start": [437, 50256, 9688],
    "\u00a0nbsp\u2028sep\u3000wide": [1849, 77, 24145, 447, 101, 325, 79, 5099, 222, 4421],
    "antidisestablishmentarianism SolidGoldMagikarp": [415, 29207, 44390, 3699, 1042, 43453],
    "x\x00y½Ⅷ٣": [87, 188, 88, 23141, 158, 227, 100, 149, 96],
}


@pytest.mark.parametrize("spelling", OURS)
@given(text=text)
@settings(deadline=None)
def test_decode_inverts_encode_for_any_text(spelling, text):
    tokenizer = built(spelling)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


@pytest.mark.parametrize("spelling", OURS)
@given(text=text)
@settings(deadline=None, max_examples=30)
def test_decoding_as_tokens_come_only_leaves_the_last_character_open(spelling, text):
    tokenizer = built(spelling)
    ids = tokenizer.encode(text)
    for end in range(len(ids)):
        assert text.startswith(tokenizer.decode(ids[:end]).rstrip("\ufffd"))


@pytest.mark.parametrize("spelling", OURS)
def test_batch_equals_one_by_one(spelling):
    texts = ["", *TRICKY, "a<eos>b▁c"]
    assert built(spelling).encode_batch(texts) == [built(spelling).encode(text) for text in texts]


@pytest.mark.parametrize("spelling", OURS)
def test_reserved_tokens(spelling):
    tokenizer = built(spelling)
    special = [
        tokenizer.pad_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.mask_id,
        *tokenizer.sentinel_ids,
    ]
    assert len(set(special)) == 4 + 32
    assert tokenizer.decode(special[:6]) == "<pad><bos><eos><mask><extra_0><extra_1>"
    assert tokenizer.encode("<pad><bos><eos><mask><extra_0><extra_1>") == special[:6]
    assert tokenizer.encode("no special tokens are added") and not set(
        tokenizer.encode("as here")
    ) & set(special)


@pytest.mark.parametrize("spelling", OURS)
def test_ids_outside_the_vocabulary_are_shown_not_fatal(spelling):
    tokenizer = built(spelling)
    ids = np.array(
        [*tokenizer.encode("ab"), tokenizer.vocab_size, -1, *tokenizer.encode("c")], np.int32
    )
    assert tokenizer.decode(ids) == "ab\ufffd\ufffdc"


@pytest.mark.parametrize("spelling", OURS)
def test_lone_surrogates_are_refused_in_one_line(spelling):
    with pytest.raises(
        ValueError, match=r"text 1 has the lone surrogate '\\ud800' at 2.*errors='replace'"
    ):
        built(spelling).encode_batch(["fine", "ab\ud800"])


@pytest.mark.parametrize("spelling", OURS[1:])
def test_training_gives_the_asked_size_and_the_same_again(spelling):
    assert built(spelling).vocab_size == 600
    # The strings of special tokens may stand in the text: they stay one token each.
    again = train_tokenizer(spelling, iter([*SOURCE, "<eos> <mask>" * 1000]))
    assert again.vocab_size == 600 and again.encode("<eos>") == [again.eos_id]
    assert train_tokenizer(spelling, iter(SOURCE)).fingerprint == built(spelling).fingerprint


@pytest.mark.parametrize("spelling", OURS[1:])
def test_indentation_is_few_tokens(spelling):
    tokenizer = built(spelling)
    assert (
        len(tokenizer.encode("\n        ")) <= 2 and len(tokenizer.encode("\n        return")) <= 4
    )


def test_the_split_joins_line_breaks_to_their_surroundings_but_not_to_words():
    tokenizer = built("bpe:600")
    tokens = [tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size)]
    assert {")\n", "\n       "} <= set(tokens)
    assert tokenizer.encode("if x:\n        if x") == [
        *tokenizer.encode("if x:\n       "),
        *tokenizer.encode(" if x"),
    ]


@pytest.mark.parametrize("spelling", OURS)
def test_word_starts(spelling):
    tokenizer = built(spelling)
    assert (
        tokenizer.word_starts.shape == (tokenizer.vocab_size,)
        and tokenizer.word_starts.dtype == bool
    )
    ids = tokenizer.encode(" the arguments, of_all é🙂")
    words = np.split(ids, np.flatnonzero(tokenizer.word_starts[ids]))
    assert [tokenizer.decode(word) for word in words] == [
        "",
        " the",
        " arguments",
        ",",
        " of_all",
        " é🙂",
    ]
    assert tokenizer.word_starts[[tokenizer.eos_id, *tokenizer.sentinel_ids]].all()


@pytest.mark.parametrize("spelling", OURS)
def test_saved_and_loaded_is_the_same_tokenizer(spelling, tmp_path):
    before = built(spelling)
    before.save(tmp_path / "new" / "folder")
    after = load_tokenizer(tmp_path / "new" / "folder")
    for name in (
        "kind",
        "vocab_size",
        "bos_id",
        "eos_id",
        "pad_id",
        "mask_id",
        "sentinel_ids",
        "fingerprint",
    ):
        assert getattr(after, name) == getattr(before, name), name
    assert np.array_equal(after.word_starts, before.word_starts)
    assert after.encode(SOURCE[0]) == before.encode(SOURCE[0])


def test_kinds_do_not_share_a_fingerprint():
    assert len({built(spelling).fingerprint for spelling in OURS}) == len(OURS)


def test_a_changed_folder_is_refused(tmp_path):
    built("bpe:600").save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="has fingerprint .* but was saved with"):
        load_tokenizer(tmp_path)


def wordpiece(**changes):
    """A BERT-like tokenizer.json, as a dict."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##want", "##ed", "want", ","]
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    spec = {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [{"id": n, "content": words[n], **flags} for n in range(5)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: n for n, word in enumerate(words)},
        },
    }
    return spec | changes


def load_json(folder, spec, **dump):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec, **dump))
    return load_tokenizer(path)


def test_a_foreign_tokenizer_json(tmp_path):
    tokenizer = load_json(tmp_path, wordpiece())
    # Neither cut to the file's truncation length nor wrapped in [CLS] and [SEP].
    assert tokenizer.encode("Unwanted, want [MASK]") == [5, 6, 7, 9, 8, 4]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (2, 3, 0, 4)
    assert tokenizer.word_starts.tolist() == [True] * 6 + [False, False, True, True]


def test_roles_follow_the_config_beside_the_file(tmp_path):
    config = {"bos_token": None, "eos_token": {"content": "[MASK]"}, "pad_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_json(tmp_path, wordpiece())
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (
        None,
        4,
        1,
        4,
    )
    tokenizer.save(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert (saved.bos_id, saved.eos_id, saved.pad_id, saved.mask_id) == (None, 4, 1, 4)


def test_fingerprint_of_tokenizer_json_is_of_what_decides_ids(tmp_path):
    spec = json.loads(built("bpe:600").files["tokenizer.json"])
    same = load_json(tmp_path, spec).fingerprint
    model, old = spec["model"], [" ".join(pair) for pair in spec["model"]["merges"]]
    for changed in (
        {key: spec[key] for key in sorted(spec)},
        spec | {"truncation": wordpiece()["truncation"], "version": "1.0"},
        spec | {"post_processor": spec["decoder"]},
        spec | {"model": model | {"merges": old, "continuing_subword_prefix": "", "dropout": 0.5}},
        spec
        | {
            "model": {
                "type": "BPE",
                "vocab": dict(sorted(model["vocab"].items())),
                "merges": model["merges"],
            }
        },
    ):
        assert load_json(tmp_path, changed, indent=3).fingerprint == same

    swapped = dict(model["vocab"], a=model["vocab"]["b"], b=model["vocab"]["a"])
    split, byte_level = spec["pre_tokenizer"]["pretokenizers"]
    others = [
        spec | {"model": model | {"vocab": swapped}},
        spec
        | {
            "model": model
            | {"merges": [model["merges"][1], model["merges"][0], *model["merges"][2:]]}
        },
        spec | {"model": model | {"ignore_merges": True}},
        spec
        | {"added_tokens": [spec["added_tokens"][0] | {"lstrip": True}, *spec["added_tokens"][1:]]},
        spec | {"pre_tokenizer": byte_level},
        spec
        | {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [split, byte_level | {"use_regex": True}],
            }
        },
        spec | {"normalizer": {"type": "NFC"}},
    ]
    fingerprints = {load_json(tmp_path, other).fingerprint for other in others}
    assert len(fingerprints) == len(others) and same not in fingerprints


def test_fingerprint_of_sentencepiece_is_of_what_decides_ids(tmp_path):
    content = built("sentencepiece:600").files["tokenizer.model"]

    def fingerprint(extra):  # messages of a protocol buffer written one after the other are merged
        (tmp_path / "x.model").write_bytes(content + extra)
        return load_tokenizer(tmp_path / "x.model").fingerprint

    same = built("sentencepiece:600").fingerprint
    assert fingerprint(b"") == same
    assert fingerprint(b"\x12\x03\x12\x01x") == same  # trainer_spec.model_prefix = "x"
    assert fingerprint(b"\x1a\x02\x18\x01") != same  # normalizer_spec.add_dummy_prefix = true
    assert fingerprint(b"\x12\x02\x18\x01") != same  # trainer_spec.model_type = unigram
    assert (
        fingerprint(b"\x0a\x09\x0a\x02zq\x15\x00\x00\x80\xbf") != same
    )  # one more piece "zq" with score -1


def ranks_file(folder, *merged):
    """GPT-2's order of the bytes, then the merged tokens."""
    first = sorted(range(256), key=lambda byte: (byte_characters()[byte] != chr(byte), byte))
    tokens = [bytes([byte]) for byte in first] + [token.encode() for token in merged]
    path = folder / "small.tiktoken"
    path.write_text(
        "".join(f"{base64.b64encode(token).decode()} {n}\n" for n, token in enumerate(tokens))
    )
    return path


def test_ranks_become_merges(tmp_path):
    merged = ("ll", "He", "Hell", "Hello", " w", "or", " wor", "ld", " world", "\n\n", "'s")
    tokenizer = load_tokenizer(ranks_file(tmp_path, *merged))
    assert tokenizer.encode("Hello world") == [256 + 3, 256 + 8]
    assert tokenizer.encode("Hello's worlds\n\nHe<|endoftext|>") == [
        259,
        266,
        264,
        82,
        198,
        198,
        257,
        267,
    ]
    assert tokenizer.encode("\n\n") == [
        265
    ]  # the split keeps the last blank apart where a word follows
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (268, 267, None)
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def merged_in_order(token, merges):
    """The parts left when each merge in turn is done wherever it applies: GPT-2's way to encode."""
    parts = [bytes([byte]) for byte in token]
    for pair in merges:
        at = 0
        while at + 1 < len(parts):
            if (parts[at], parts[at + 1]) == pair:
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            at += 1
    return parts


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=40))
def test_merges_are_recovered_from_ranks(choices):
    """Learn any merges, each of two earlier tokens whose join is new and which merging in order
    really meets."""
    tokens, learnt = {bytes([byte]): byte for byte in b"abc"}, []
    for left, right in choices:
        pair = [list(tokens)[n % len(tokens)] for n in (left, right)]
        joined = b"".join(pair)
        if joined not in tokens and merged_in_order(joined, learnt) == pair:
            tokens[joined] = 256 + len(learnt)
            learnt.append(tuple(pair))
    assert list(merges_from_ranks(tokens)) == learnt


@pytest.fixture(scope="module")
def gpt2():
    try:
        return load_tokenizer("gpt2")
    except ValueError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"GPT-2's ranks need the network once: {error}")


def test_gpt2_gives_the_published_ids(gpt2):
    assert [gpt2.decode([token_id]) for token_id in gpt2.encode("Hello world")] == [
        "Hello",
        " world",
    ]
    assert gpt2.encode_batch(list(GPT2)) == list(GPT2.values())
    assert [gpt2.decode(ids) for ids in GPT2.values()] == list(GPT2)
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)


BAD_FILES = {
    "list.json": b"[1]",
    "empty.json": b"{}",
    "text.model": b"hello",
    "empty.model": b"",
    "words.tiktoken": b"hello world",
    "few.tiktoken": b"YQ== 0\nYg== 1\n",
    "binary.tiktoken": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_of_the_wrong_kind_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(BAD_FILES[name])
    with pytest.raises(ValueError, match=rf"{name} as a tokenizer: .*wanted") as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("merged", "problem"), [(["(self"], "GPT-2's split"), (["abc"], "no earlier pair")]
)
def test_ranks_that_gpt2s_rules_cannot_make_are_refused(merged, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        load_tokenizer(ranks_file(tmp_path, *merged))


def test_ranks_with_a_gap_are_refused(tmp_path):
    path = ranks_file(tmp_path, "ab")
    path.write_text(path.read_text().replace(" 256\n", " 257\n"))
    with pytest.raises(ValueError, match="257 different tokens are not 0 to 256, each once"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (lambda folder: load_tokenizer("bpee:40"), "'bpee:40' is not known; wanted bytes, gpt2"),
        (lambda folder: load_tokenizer("bpe:4096"), "has to be trained"),
        (lambda folder: load_tokenizer(folder / "no.json"), "no.json is missing; wanted"),
        (
            lambda folder: load_tokenizer(folder),
            "has no tokenizer; wanted tokenizer.json or tokenizer.model",
        ),
        (lambda folder: train_tokenizer("bpe:291", SOURCE), "too small: .* take 292"),
        (lambda folder: train_tokenizer("bpe:400", ["hello"]), "give 296 tokens; use bpe:296"),
        (lambda folder: train_tokenizer("bpe:400", []), "give 292 tokens"),
        (
            lambda folder: train_tokenizer("sentencepiece:400", ["hello"]),
            "cannot train .* value <= 305",
        ),
        (
            lambda folder: train_tokenizer("sentencepiece:400", []),
            "cannot train .* there is no text",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(load, problem, tmp_path):
    with pytest.raises(ValueError, match=problem) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_spellings_without_training_read_no_text():
    assert (
        train_tokenizer("bytes", iter(lambda: 1 / 0, None)).fingerprint
        == built("bytes").fingerprint
    )


@pytest.mark.parametrize("spelling", OURS[1:])
def test_training_lets_the_error_of_its_texts_through(spelling):
    def texts():
        yield "fine"
        raise OSError("record 7 of x.jsonl is damaged")

    with pytest.raises(OSError, match="record 7"):
        train_tokenizer(spelling, texts())
    with pytest.raises(ValueError, match="text 1 has the lone surrogate"):
        train_tokenizer(spelling, ["fine", "\ud800"])
