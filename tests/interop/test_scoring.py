"""Decoders that score texts go to Hugging Face's sequence classification and come back."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.data.tokenizers import load_tokenizer
from research.files import building, read_json
from research.interop import native
from research.interop.beside import lost
from research.interop.convert import convert
from research.interop.load import load
from research.models import heads
from research.models.config import ModelConfig
from research.models.model import Model
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

DECODERS = ["llama2_7b", "gpt2", "qwen3_8b", "gemma2_2b"]


def scorer(name: str, folder, labels: int = 1) -> ModelConfig:
    """A folder of ours with a random model of a family that scores texts."""
    c = replace(FAMILIES[name], labels=labels)
    with building(folder) as made:
        native.write_native(in_memory(c, random_params(c)), made)
    return c


@pytest.mark.parametrize("name", DECODERS)
def test_scores_go_out_and_come_back_bit_by_bit(name, tmp_path):
    c = scorer(name, tmp_path / "ours")
    certificate = convert(tmp_path / "ours", tmp_path / "hf", "hf")
    assert certificate["round_trip"]["bit_equal"] == certificate["round_trip"]["tensors"] > 10
    config = read_json(tmp_path / "hf/config.json")
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "LABEL_0"}
    assert load(tmp_path / "hf").config.labels == c.labels == 1
    wanted, got = (tree.paths(load(tmp_path / one).params) for one in ("ours", "hf"))
    assert "head/table" not in got and got["classifier/kernel"].shape == (c.d_model, 1)
    assert wanted.keys() == got.keys()


def test_a_score_is_read_from_the_last_token_of_each_row(tmp_path):
    c = scorer("llama2_7b", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    ids = np.random.default_rng(0).integers(0, c.vocab_size, (2, 8))
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
    both = np.asarray(loaded.scores(ids, mask))
    alone = np.asarray(loaded.scores(ids[1:, :5]))
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)  # float32, another length
    assert both.shape == (2, 1)
    with pytest.raises(ValueError, match="scores texts .* and predicts no words"):
        loaded.logits(ids)
    with pytest.raises(ValueError, match="has no place for model.labels=1"):
        convert(tmp_path / "ours", tmp_path / "gguf", "gguf")


@pytest.mark.parametrize(
    "special, said",
    [
        ({"pad_token_id": 5, "eos_token_id": 6}, ""),
        ({"pad_token_id": 6, "eos_token_id": 6}, "token 6 is padding and ends texts"),
    ],
)
def test_a_padding_token_that_ends_texts_is_told(special, said):
    c = replace(FAMILIES["llama2_7b"], labels=1)
    checkpoint = in_memory(c, random_params(c), special=special)
    vars(checkpoint)["tokenizer"] = load_tokenizer("bytes")
    found = lost(checkpoint, "hf")
    assert said in found[0] if said else found == []
    assert lost(checkpoint, "native") == []


def test_a_row_without_tokens_has_the_state_zero():
    hidden_BTD = jnp.ones((2, 3, 4))
    c = replace(FAMILIES["llama2_7b"], labels=1)
    segments_BT = jnp.array([[1, 1, 0], [0, 0, 0]])
    pooled_B1D = heads.pooled({}, hidden_BTD, c, segments_BT)
    np.testing.assert_array_equal(pooled_B1D[:, 0, 0], [1, 0])
    assert "head" not in Model(c).specs()
