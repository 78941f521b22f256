"""Conversations from files and TFDS to packed windows: checked, masked, whole."""

import json
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings

from research.data.chat import ChatEncoder, encode_chat
from research.data.chat_windows import PackedConversations, best_fit
from research.data.conversations import conversation, read_spelt
from research.data.corpus import DataConfig, open_corpus
from research.data.documents import UnreadableRecord
from research.data.files import FileDocuments
from research.data.labelled import LabelledTexts, Labels, label_names
from research.data.layouts import choose_columns, read_record
from research.data.sources import open_source
from research.data.tokenizers import load_tokenizer
from research.data.tokens import (
    BadRecords,
    TokenStore,
    tokenize,
    tokenize_conversations,
)
from tests.data.chat_templates import CONVERSATIONS, TEMPLATES, save_tokenizer

ASK = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def tokenizer(tmp_path):
    save_tokenizer(tmp_path / "tokenizer", TEMPLATES["chatml"]["plain"])
    return load_tokenizer(tmp_path / "tokenizer")


def write(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def read(path, query=""):
    documents = FileDocuments(path, query, path.parent / "cache", "conversations")
    assert documents.fields == ("conversation",)
    return [json.loads(documents[i]["conversation"]) for i in range(len(documents))]


@pytest.mark.parametrize(
    ("row", "query"),
    [
        ({"messages": ASK}, ""),
        ({"text": "x", "messages": ASK}, ""),
        ({"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}, ""),
        ({"instruction": "a?", "input": "", "output": "b"}, ""),
        ({"instruction": "a?", "output": "b"}, ""),
        ({"chat": ASK}, "messages=chat"),
        ({"q": "a?", "r": "b"}, "instruction=q&output=r"),
    ],
)
def test_every_layout_is_the_same_conversation(tmp_path, row, query):
    assert read(write(tmp_path / "x.jsonl", [row]), query) == [ASK]


def test_alpacas_input_follows_its_instruction_in_whichever_row_has_one(tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "i", "output": "b"}]
    assert [m[0]["content"] for m in read(write(tmp_path / "x.jsonl", rows))] == ["a", "a\n\ni"]


def test_what_else_a_message_has_is_kept_for_the_template(tmp_path):
    messages = [ASK[0], ASK[1] | {"reasoning_content": "r", "name": None}]
    [read_back] = read(write(tmp_path / "x.jsonl", [{"messages": messages}]))
    assert read_back[1] == ASK[1] | {"reasoning_content": "r"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        (None, "NoneType, wanted a list"),
        ("hello", "str, wanted a list"),
        (["hello"], "message 0 is str"),
        ([{"role": "robot", "content": "x"}], "role 'robot'; known are system"),
        ([{"role": ["user"], "content": "x"}], "the role"),
        ([{"content": "x"}], "role None"),
        ([ASK[0]], "nothing to learn"),
        ([ASK[0], {"role": "assistant", "content": " \n"}], "message 1, by assistant, is empty"),
        ([{"role": "user", "content": None}, ASK[1]], "NoneType for its content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}, ASK[1]],
            "message 0 has a part of type 'image_url' in its content; wanted text",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}, ASK[1]], "a part of type 'text'"),
        ([{"role": "user", "content": {"text": "x"}}, ASK[1]], "dict for its content"),
        ([ASK[0], ASK[1] | {"weight": 0.5}], "message 1 has weight 0.5; wanted 0"),
        ([ASK[0], ASK[1] | {"weight": "0"}], "message 1 has weight '0'"),
        ([ASK[0], ASK[1] | {"weight": 0}], "all have weight 0"),
        ([ASK[0], {"role": "assistant", "content": None, "tool_calls": []}], "NoneType for its"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        conversation({"messages": messages}, {"messages": "messages"})


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "", "output": "b"},
        {"instruction": "a", "output": ""},
        {"instruction": 1, "output": "b"},
    ],
)
def test_alpaca_rows_without_text_are_refused(row):
    with pytest.raises(ValueError):
        conversation(row, {"instruction": "instruction", "output": "output"})


def test_a_bad_record_is_named_by_file_and_index_once_too_many_are_left_out(tmp_path, tokenizer):
    bad = [{"messages": [{"role": "robot", "content": "x"}]}, "not json", {"messages": "\ud800"}]
    path = write(tmp_path / "x.jsonl", [{"messages": ASK}, *bad, {"messages": ASK}])
    documents = FileDocuments(path, "", tmp_path / "cache", "conversations")
    store = tokenize_conversations(
        documents, ChatEncoder(tokenizer), tmp_path / "cache", max_bad_records=3
    )
    assert len(store) == 2 and len(store.bad_records) == 3
    for index in (1, 2, 3):
        with pytest.raises(UnreadableRecord, match=f"x.jsonl, record {index}: "):
            documents[index]
    with pytest.raises(BadRecords, match=r"x.jsonl, record 3: .*config.data.max_bad_records"):
        tokenize_conversations(
            documents, ChatEncoder(tokenizer), tmp_path / "cache", max_bad_records=2
        )


def test_a_conversation_that_the_template_refuses_is_a_bad_record_too(tmp_path, tokenizer):
    chat = replace(tokenizer, chat_template=TEMPLATES["mistral"]["plain"])
    path = write(tmp_path / "x.jsonl", [{"messages": ASK}, {"messages": [ASK[1], ASK[0]]}])
    documents = FileDocuments(path, "", tmp_path / "cache", "conversations")
    store = tokenize_conversations(
        documents, ChatEncoder(chat), tmp_path / "cache", max_bad_records=1
    )
    assert len(store) == 1
    with pytest.raises(
        BadRecords, match=r"x\.jsonl:1: the chat template refuses it: roles must alternate"
    ):
        tokenize_conversations(documents, ChatEncoder(chat), tmp_path / "other", max_bad_records=0)


def test_the_store_holds_ids_and_mask_of_encode_chat_and_knows_its_template(tmp_path, tokenizer):
    path = write(
        tmp_path / "x.jsonl", [{"messages": messages} for messages in CONVERSATIONS.values()]
    )
    documents = FileDocuments(path, "", tmp_path / "cache", "conversations")
    for again in range(2):  # made, and read from the cache
        store = tokenize_conversations(documents, ChatEncoder(tokenizer), tmp_path / "cache")
        for number, messages in enumerate(CONVERSATIONS.values()):
            here = slice(store.offsets[number], store.offsets[number + 1])
            assert (store.ids[here].tolist(), store.mask[here].tolist()) == encode_chat(
                tokenizer, messages
            )
    other = replace(tokenizer, chat_template=TEMPLATES["loops"]["plain"])
    changed = tokenize_conversations(documents, ChatEncoder(other), tmp_path / "cache")
    assert changed.fingerprint != store.fingerprint and changed.ids.tolist() != store.ids.tolist()


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_mask_is_made_again_with_a_warning(tmp_path, tokenizer, caplog, damage):
    path = write(tmp_path / "x.jsonl", [{"messages": ASK}])
    documents = FileDocuments(path, "", tmp_path / "cache", "conversations")
    before = tokenize_conversations(
        documents, ChatEncoder(tokenizer), tmp_path / "cache"
    ).mask.copy()
    [file] = (tmp_path / "cache" / "tokens").glob("*/mask.bin")
    file.write_bytes(
        bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]
    ) if damage == "flip" else file.unlink()
    np.testing.assert_array_equal(
        tokenize_conversations(documents, ChatEncoder(tokenizer), tmp_path / "cache").mask, before
    )
    assert "damaged" in caplog.text


class GraftChats(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        message = {"role": tfds.features.Text(), "content": tfds.features.Text()}
        features = {
            "messages": tfds.features.Sequence(message),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        features["text"] = tfds.features.Text()
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            yield (
                i,
                {
                    "messages": [*ASK, {"role": "user", "content": f"é{i}"}],
                    "text": f"text {i}",
                    "label": i % 3,
                },
            )


def test_tfds_has_conversations_and_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    source = open_source("tfds:graft_chats", tmp_path / "cache", "conversations")
    messages = json.loads(source.train[0]["conversation"])
    assert messages[:2] == ASK and messages[2]["content"].startswith("é")
    labelled = open_source("tfds:graft_chats", tmp_path / "cache", "labels")
    assert {labelled.train[i]["label"] for i in range(len(labelled.train))} == {"0", "1", "2"}
    assert label_names([labelled.train], tmp_path / "cache") == ("0", "1", "2")


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"text": "x"}, "conversations", r"\?messages=FIELD"),
        ({"messages": ASK}, "texts", r"\?text=FIELD"),
        ({"text": "x"}, "labels", r"\?text=FIELD&label=FIELD"),
    ],
)
def test_columns_that_do_not_fit_the_objective_are_refused(tmp_path, columns, wanted, message):
    with pytest.raises(ValueError, match=message):
        FileDocuments(write(tmp_path / "x.jsonl", [columns]), "", tmp_path / "cache", wanted)


# Packing.


def a_store(lengths, rng):
    """Conversations of these lengths whose tokens are all different numbers, with masks drawn at
    random."""
    offsets = np.cumsum([0, *lengths])
    mask = rng.random(offsets[-1]) < 0.4
    return TokenStore(
        np.arange(offsets[-1]).astype(np.uint16) + 1, offsets, np.array(lengths), "test", (), mask
    )


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=15),
    length=st.integers(2, 17),
    seed=st.none() | st.integers(0, 3),
    draw=st.integers(0, 2**32 - 1),
)
def test_every_conversation_is_in_one_window_whole_or_cut_at_the_window(
    lengths, length, seed, draw
):
    store = a_store(lengths, np.random.default_rng(draw))
    places = [slice(a, min(a + length, b)) for a, b in zip(store.offsets, store.offsets[1:])]
    parts = [(store.ids[place].tolist(), store.mask[place].tolist()) for place in places]
    wanted = [part for part in parts if any(part[1][1:])]
    if not wanted:
        with pytest.raises(ValueError, match="config.data.sequence_length"):
            PackedConversations(store, length, seed=seed)
        return
    windows = PackedConversations(store, length, seed=seed)
    found = []
    for i in range(len(windows)):
        window = windows[i]
        assert all(
            array.shape == (length,) and array.dtype == np.int32 for array in window.values()
        )
        count = int(window["segments"].max())
        real = window["segments"] > 0
        assert count >= 1 and real[: real.sum()].all()
        assert not any(window[name][~real].any() for name in window)
        for segment in range(1, count + 1):
            here = window["segments"] == segment
            assert window["positions"][here].tolist() == list(range(here.sum()))
            found.append(
                (window["tokens"][here].tolist(), window["assistant"][here].astype(bool).tolist())
            )
    assert sorted(found) == sorted(wanted)


@given(st.lists(st.integers(1, 16), max_size=40))
def test_best_fit_opens_a_bin_only_where_no_other_has_room(sizes):
    bins = best_fit(sizes, 16)
    assert sorted(i for one in bins for i in one) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in one) for one in bins]
    assert all(total <= 16 for total in filled)
    # The first piece of a bin had no room in the bins before it, which only fill up with smaller
    # ones later.
    assert all(before + sizes[one[0]] > 16 for n, one in enumerate(bins) for before in filled[:n])


@pytest.mark.parametrize(
    ("sizes", "room", "bins"),
    [
        (
            [3, 4, 1],
            4,
            [[1], [0, 2]],
        ),  # TRL's own case: [[1,2,3],[4..7],[8]] at 4 is [[4,5,6,7],[1,2,3,8]]
        ([5, 4, 3, 2], 8, [[0, 2], [1, 3]]),
        ([], 4, []),
    ],
)
def test_best_fit_decreasing_on_known_cases(sizes, room, bins):
    assert best_fit(sizes, room) == bins


# Labels.


def test_labels_are_names_in_order_or_numbers_up_to_the_largest(tmp_path):
    for name, labels, wanted in (
        ("a", ["neg", "pos", "neg"], ("neg", "pos")),
        ("b", [3, 0, True], ("0", "1", "2", "3")),
        ("f", [0.0, 2.0, "1"], ("0", "1", "2")),
        ("g", ["0", "1.0", 1], ("0", "1")),
    ):
        path = write(
            tmp_path / f"{name}.jsonl",
            [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)],
        )
        documents = FileDocuments(path, "", tmp_path / "cache", "labels")
        assert label_names([documents], tmp_path / "cache") == wanted
    path = write(tmp_path / "year.jsonl", [{"text": "t", "label": 10**12}])
    documents = FileDocuments(path, "", tmp_path / "cache", "labels")
    with pytest.raises(ValueError, match="label 1000000000000 would make"):
        label_names([documents], tmp_path / "cache")
    with pytest.raises(ValueError, match="label 'new' is in the held-out data alone"):
        Labels(("neg", "pos")).encode_batch(["neg", "new"])
    for label in (-1, None, "", 0.5, ["x"]):
        path = write(tmp_path / "c.jsonl", [{"text": "t", "label": label}])
        with pytest.raises(UnreadableRecord, match="name or number of a class"):
            FileDocuments(path, "", tmp_path / "cache", "labels")[0]


def test_a_labelled_text_has_its_marks_its_label_and_no_neighbour(tmp_path, tokenizer):
    rows = [{"text": "abc", "label": "y"}, "broken", {"text": "a" * 50, "label": "x"}]
    documents = FileDocuments(write(tmp_path / "x.jsonl", rows), "", tmp_path / "cache", "labels")
    names = label_names([documents], tmp_path / "cache")
    stores = [
        tokenize(documents, encoder, tmp_path / "cache", field=field, max_bad_records=1)
        for field, encoder in (("text", tokenizer), ("label", Labels(names)))
    ]
    windows = LabelledTexts(*stores, 8, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    assert len(windows) == 2 and [windows[i]["label"].tolist() for i in (0, 1)] == [[1], [0]]
    assert (
        tokenizer.decode(windows[0]["tokens"][:5]) == "<s>abc</s>"
        and windows[0]["segments"].tolist() == [1] * 5 + [0] * 3
    )
    assert tokenizer.decode(windows[1]["tokens"]) == "<s>aaaaaa</s>" and windows[1][
        "positions"
    ].tolist() == list(range(8))


def test_a_corpus_takes_the_given_tokenizer_and_a_template_of_ones_own(tmp_path, tokenizer):
    path = write(
        tmp_path / "x.jsonl", [{"messages": messages} for messages in [*CONVERSATIONS.values()] * 2]
    )
    (tmp_path / "own.jinja").write_text(TEMPLATES["llama3"]["marked"])
    config = DataConfig(source=str(path), tokenizer="", chat_template=str(tmp_path / "own.jinja"))
    corpus = open_corpus(
        config, wanted="conversations", given=replace(tokenizer, chat_template=None)
    )
    assert corpus.tokenizer.chat_template == TEMPLATES["llama3"]["marked"]
    window = corpus.train_windows(201, 0, 0)[0]
    said = corpus.tokenizer.decode(window["tokens"][window["assistant"] == 1])
    assert said.count("<|eot|>") >= 1 and "<|start|>" not in said and "user" not in said
    assert len(corpus.heldout_windows(201, 0)) >= 1
    with pytest.raises(ValueError, match="config.data.tokenizer"):
        open_corpus(config, wanted="conversations")
    with pytest.raises(ValueError, match="data.chat_template='nowhere' cannot be read"):
        open_corpus(
            replace(config, chat_template="nowhere"), wanted="conversations", given=tokenizer
        )


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "weights"),
    [
        ({"prompt": "q", "completion": "a"}, [None, None]),
        ({"prompt": [ASKED], "completion": [SAID]}, [None, None]),
        (
            {"prompt": [ASKED, SAID, ASKED], "completion": [SAID, ASKED, SAID]},
            [None, 0] + [None] * 4,
        ),
    ],
)
def test_of_a_prompt_and_its_completion_the_completion_is_learnt(row, weights):
    query = "prompt=prompt&completion=completion"
    columns = choose_columns(query, list(row), "x.jsonl", "conversations")
    messages, _ = read_spelt(read_record(row, columns, "conversations", "x", 0)["conversation"])
    assert [one.get("weight") for one in messages] == weights
    assert [one["content"] for one in messages] == ["q", "a"] * (len(messages) // 2)
    # Judged answers have these columns, too, so they are read only where a query says so.
    with pytest.raises(ValueError, match=r"\?prompt=FIELD&completion=FIELD"):
        choose_columns("", list(row), "x.jsonl", "conversations")
