"""Encoders in GGUF files: their body alone, with BERT's tokenizer and the pooling of a text."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from research import tree
from research.files import building
from research.interop.convert import convert
from research.interop.gguf.model import plan_gguf_model
from research.interop.gguf.tokenizer import tokenizer_files
from research.interop.gguf.tokenizer_metadata import tokenizer_metadata
from research.interop.huggingface import folder as hf
from research.interop.load import load, open_checkpoint
from research.models.config import Shape
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

BERT, MODERN = FAMILIES["bert_base"], FAMILIES["modernbert_base"]
MODELS = {
    "bert": replace(BERT, pooler=True, mlm_head=True),
    "bert_body": replace(BERT, pooler=False, mlm_head=False),
    "roberta": replace(BERT, position_offset=2, pooler=False, mlm_head=True),
    "distilbert": replace(
        BERT,
        token_types=0,
        embedding_norm=True,
        pooler=False,
        mlm_head=False,
        pooler_layer="relu",
    ),
}
TEXT = "Playing, played and plays: the quick brown fox jumps over 12 lazy dogs. Éclair, naïve."


def wordpiece(lowercase=True, count=BERT.vocab_size):
    """Files of a small tokenizer like BERT's."""
    made = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=count, special_tokens=special, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, **roles}
    return {
        "tokenizer.json": made.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def write(c, folder, files=None):
    """A folder of a random encoder."""
    with building(folder) as made:
        hf.write_folder(in_memory(c, random_params(c)), made)
        for name, content in (files or {}).items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_the_body_of_an_encoder_comes_back_and_its_heads_are_told(name, tmp_path):
    c = MODELS[name]
    folder = write(c, tmp_path / "hf")
    certificate = convert(folder, tmp_path / "gguf", "gguf")
    round_trip = certificate["round_trip"]
    assert round_trip["bit_equal"] == round_trip["tensors"] > 30
    told = [line for line in certificate["notes"] if "of an encoder" in line]
    assert len(told) == (c.pooler or c.mlm_head)
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    before, after = (tree.paths(load(path).params) for path in (folder, tmp_path / "again"))
    rows = after["embed/positions"].shape[0]
    before["embed/positions"] = before["embed/positions"][-rows:]
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    left = {path.split("/")[0] for path in before.keys() - after.keys()}
    assert left == {*(["pooler"] * c.pooler), *(["head"] * c.mlm_head)}


def test_a_classifiers_classes_keep_their_names(tmp_path):
    c = replace(BERT, pooler=True, mlm_head=False, labels=3)
    folder = write(c, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    names = {"0": "bad", "1": "so so", "2": "good"}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
    notes = convert(folder, tmp_path / "gguf", "gguf")["notes"]
    assert not any("classifier" in line for line in notes)
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    assert json.loads((tmp_path / "again/config.json").read_text())["id2label"] == names
    ids = np.arange(9)[None]
    before, after = (load(path).scores(ids) for path in (folder, tmp_path / "again"))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_kinds": ("global", "local", "local", "global")},
        {"layer_kinds": ("global", "local", "global", "local"), "activation": "silu"},
        {"window": 0, "layer_kinds": (), "local_rope_theta": 0.0},
        {"layer_kinds": ("global", "local", "local", "local"), "local_rope_theta": 0.0},
    ],
)
def test_modernberts_body_comes_back(changes, tmp_path):
    c = replace(MODERN, **changes)
    folder = write(c, tmp_path / "hf")
    certificate = convert(folder, tmp_path / "gguf", "gguf")
    assert certificate["round_trip"]["bit_equal"] == certificate["round_trip"]["tensors"] > 9
    told = [line for line in certificate["notes"] if "of an encoder" in line]
    assert len(told) == 1 and "masked-LM head" in told[0]
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    before, after = load(folder), load(tmp_path / "again")
    bare = replace(c, mlm_head=False, pooler_layer="head", pooling="first", transform_bias=False)
    for field in fields(Shape):
        assert getattr(after.config, field.name) == getattr(bare, field.name), field.name
    mine, theirs = tree.paths(after.params), tree.paths(before.params)
    assert {path.split("/")[0] for path in theirs.keys() - mine.keys()} == {"head"}
    for path, leaf in mine.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_kinds": ("local", "global", "local", "local")}, "period from the first on"),
        ({"rope_scaling": RopeScaling(2.0, kind="linear")}, "scales the positions of all layers"),
        ({"attention_bias": "all"}, "has no attention_bias='all'"),
        ({"activation": "gelu_tanh"}, "'gelu_tanh'"),
    ],
)
def test_a_modernbert_that_llama_cpp_does_not_compute_is_refused(changes, says):
    c = replace(MODERN, **changes)
    with pytest.raises(ValueError, match=says):
        plan_gguf_model(in_memory(c, random_params(c)), "F32")


def byte_level(count, mask=False):
    """Files of a small tokenizer like ModernBERT's: GPT-2's split, text in NFC, marks around it."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    special += [AddedToken("[MASK]", lstrip=mask, special=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=count,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    made.train_from_iterator([TEXT * 9], trainer)
    ids = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    return {
        "tokenizer.json": made.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def test_modernberts_tokenizer_travels_and_its_mask_is_told(tmp_path):
    c = replace(MODERN, vocab_size=290)
    folder = write(c, tmp_path / "hf", byte_level(290, mask=True))
    certificate = convert(folder, tmp_path / "gguf", "gguf")
    assert any("'[MASK]' takes the blank beside it" in line for line in certificate["notes"])
    with open_checkpoint(folder) as one, open_checkpoint(tmp_path / "gguf") as other:
        ids = [[x.tokenizer.encode(text) for x in (one, other)] for text in (TEXT, " \u00e9\t\n")]
        assert all(mine == theirs for mine, theirs in ids)
        mine, theirs = (x.tokenizer.encode("a [MASK]") for x in (one, other))
        assert mine != theirs and mine[-1] == theirs[-1]
        assert (one.tokenizer.bos_id, one.tokenizer.eos_id) == (
            other.tokenizer.bos_id,
            other.tokenizer.eos_id,
        )


def test_berts_tokenizer_and_pooling_travel(tmp_path):
    pooling = {"1_Pooling/config.json": b'{"pooling_mode_cls_token": true}'}
    folder = write(MODELS["bert_body"], tmp_path / "hf", wordpiece() | pooling)
    beside = convert(folder, tmp_path / "gguf", "gguf")["beside"]["tokenizer"]
    assert beside["compared"] == beside["equal"]
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        assert checkpoint.sentence_settings.pooling == "cls"
        vocab = json.loads(checkpoint.files["tokenizer.json"])["model"]["vocab"]
    assert vocab == json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]


def test_words_begin_with_a_mark_in_the_file():
    metadata = tokenizer_metadata(wordpiece(), vocab_size=120)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens[:3] == ["[PAD]", "[UNK]", "[CLS]"] and len(tokens) == 120
    assert "▁p" in tokens and "##" not in "".join(tokens)
    assert tokens[metadata["tokenizer.ggml.bos_token_id"]] == "[CLS]"
    assert tokens[metadata["tokenizer.ggml.seperator_token_id"]] == "[SEP]"
    spec = json.loads(tokenizer_files(metadata)["tokenizer.json"])
    ids = Tokenizer.from_str(json.dumps(spec)).encode("played").ids
    assert ids[0] == tokens.index("[CLS]") and ids[-1] == tokens.index("[SEP]")


def test_a_cased_tokenizer_is_refused():
    with pytest.raises(ValueError, match="lower-cases a text.*use --to=hf"):
        tokenizer_metadata(wordpiece(lowercase=False))
