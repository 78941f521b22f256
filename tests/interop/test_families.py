"""Every family against transformers: what the reference computed with random weights, our model
computes too."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from research.data.tokenizers import load_tokenizer
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.interop.huggingface.folder import write_folder
from research.interop.load import load, open_checkpoint
from research.interop.storage.generation import decoder_ids
from research.models.config import Execution
from research.models.embedding import relative_bias
from tests.interop.golden import (
    GOLDENS,
    TWO_SIDED,
    WRITERS,
    golden,
    inputs,
    real,
    tensors,
    write,
)

# Logits and states are of the order of 5, whose float32 spacing is 5e-7, and pass through a few
# tens of sums whose order differs between the two libraries.
TOLERANCE = 1e-5
SCORERS = [name for name in GOLDENS if "logits" in golden(name)]
STATES = [name for name in GOLDENS if "hidden" in golden(name)]


def compare(got, name, field="logits"):
    wanted = golden(name)[field]
    where = real(name) if wanted.ndim == 3 else ...
    np.testing.assert_allclose(np.asarray(got)[where], wanted[where], atol=TOLERANCE, rtol=0)


# DeepSeek-V2's are V3's layers with another router: their rest is among what is slow.
REST = {name: pytest.mark.slow if "deepseek_v2" in name else () for name in GOLDENS}
SCANNED = [
    pytest.param(name, 1, marks=pytest.mark.slow if name == "deepseek_v2_lite" else ())
    for name in SCORERS
]
UNROLLED = [pytest.param(name, 0, marks=REST[name]) for name in SCORERS]


@pytest.mark.parametrize(("name", "unroll"), [*SCANNED, *UNROLLED])
def test_logits_are_the_references(name, unroll, tmp_path):
    loaded = load(write(name, tmp_path))
    model = replace(loaded.model, execution=Execution(unroll=unroll))
    compare(replace(loaded, model=model).logits(**inputs(name)), name)


@pytest.mark.parametrize("name", STATES)
def test_states_and_pooled_text_are_the_references(name, tmp_path):
    loaded = load(write(name, tmp_path))
    hidden_BTD = loaded.hidden(**inputs(name))
    compare(hidden_BTD, name, "hidden")
    of_tokens = np.ndim(golden(name).get("classes")) == 3
    pools = "pooled" in golden(name) or "classes" in golden(name)
    assert loaded.config.pooler == (pools and not of_tokens)
    if "pooled" in golden(name):
        compare(loaded.pooled(**inputs(name)), name, "pooled")
    if "classes" in golden(name):
        compare(loaded.scores(**inputs(name)), name, "classes")


@pytest.mark.parametrize("name", GOLDENS)
def test_both_spellings_of_a_config_are_the_same_model(name, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, config in ((new, "config"), (old, "config_v4")):
        folder.mkdir()
        write(name, folder, config)
    with open_checkpoint(new) as first, open_checkpoint(old) as second:
        assert first.config == second.config


@pytest.mark.parametrize("name", [pytest.param(name, marks=REST[name]) for name in WRITERS])
def test_a_cache_writes_the_references_continuation(name, tmp_path):
    # The golden's likeliest tokens lead by 1e-3 or more, which float sums do not close.
    loaded, fields = load(write(name, tmp_path)), golden(name)
    prompts = [ids[:length].tolist() for ids, length in zip(fields["ids"], fields["lengths"])]
    if name in TWO_SIDED:
        assert loaded.decoder_ids == (fields["decoder_ids"][0, 0],)
    tokenizer = replace(load_tokenizer("bytes"), eos_id=None, pad_id=None)
    ids = {"decoder_ids": loaded.decoder_ids}
    config = SamplingConfig(temperature=0, max_tokens=fields["greedy"].shape[1], **ids)
    generations = generate(loaded.model, loaded.params, tokenizer, prompts, config)
    np.testing.assert_array_equal([g.token_ids for g in generations], fields["greedy"])


# One key head and one row of four experts do not divide by the mesh; T5's tables and BERT's heads
# lie across it.
@pytest.mark.parametrize(
    "name", ["gpt2", "llama_mqa", "mixtral", "gemma3", "phi3", "olmo2", "bert_pretraining", "t5"]
)
def test_a_mesh_changes_nothing(name, tmp_path):
    loaded = load(write(name, tmp_path), mesh="fsdp:4,tensor:2")
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(loaded.params))
    rows = {key: np.concatenate([value, value]) for key, value in inputs(name).items()}
    compare(np.asarray(loaded.logits(**rows))[:2], name)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("xlm_roberta", "XLMRobertaModel"), ("mt5", "MT5ForConditionalGeneration")],
)
def test_a_class_with_the_models_of_another_keeps_its_name(name, architecture, tmp_path):
    source, again = tmp_path / "source", tmp_path / "again"
    source.mkdir(), again.mkdir()
    with open_checkpoint(write(name, source)) as checkpoint:
        write_folder(checkpoint, again)
    theirs, ours = (json.loads((f / "config.json").read_text()) for f in (source, again))
    assert ours["architectures"] == theirs["architectures"] == [architecture]
    assert ours["model_type"] == theirs["model_type"]


def test_bart_as_it_was_first_published(tmp_path):
    # The bare model's names, each use of the shared table, and no bias of the logits.
    arrays = {key.removeprefix("model."): values for key, values in tensors("bart").items()}
    del arrays["final_logits_bias"]
    more = {
        f"{side}.embed_tokens.weight": arrays["shared.weight"] for side in ("encoder", "decoder")
    }
    save_file({**arrays, **more}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(str(golden("bart")["config_v4"]))
    logits_BTV = np.asarray(load(tmp_path).logits(**inputs("bart")))
    compare(logits_BTV + golden("bart")["tensor/final_logits_bias"], "bart")


def test_a_forced_first_token_is_written_behind_the_decoders_start(tmp_path):
    write("mbart", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"forced_bos_token_id": 7}')
    with open_checkpoint(tmp_path) as checkpoint:
        assert decoder_ids(checkpoint.special) == (2, 7)
        assert checkpoint.config.decoder_start == "end"


def test_a_classifier_of_choices_is_refused(tmp_path):
    config = json.loads(str(golden("modernbert_classifier")["config"]))
    config["architectures"] = ["ModernBertForMultipleChoice"]
    write("modernbert_classifier", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="heads of ForSequenceClassification, .* are supported"):
        open_checkpoint(tmp_path)


def test_a_classifier_of_tokens_may_have_a_pooler_that_it_does_not_read(tmp_path):
    # As models were saved before transformers 4.
    width = golden("bert_tokens")["tensor/classifier.weight"].shape[1]
    more = {"bert.pooler.dense.weight": np.ones((width, width), np.float32)}
    more["bert.pooler.dense.bias"] = np.ones(width, np.float32)
    loaded = load(write("bert_tokens", tmp_path, more=more))
    assert not loaded.config.pooler and loaded.config.labels_over == "tokens"
    compare(loaded.scores(**inputs("bert_tokens")), "bert_tokens", "classes")


def test_gpt2_as_it_was_first_published(tmp_path):
    # Without the class's prefix, with the causal mask saved as a tensor.
    mask = {
        f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for layer in (0, 1)
    }
    folder = write(
        "gpt2", tmp_path, "config_v4", lambda key: key.removeprefix("transformer."), mask
    )
    compare(load(folder).logits(**inputs("gpt2")), "gpt2")


def test_bert_as_it_was_first_published(tmp_path):
    # Norms under TensorFlow's names, positions and the tied head saved as tensors.
    table = tensors("bert_pretraining")["bert.embeddings.word_embeddings.weight"]
    more = {
        "bert.embeddings.position_ids": np.arange(64)[None],
        "cls.predictions.decoder.weight": table,
    }
    more["cls.predictions.decoder.bias"] = tensors("bert_pretraining")["cls.predictions.bias"]

    def rename(key):
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    folder = write("bert_pretraining", tmp_path, "config_v4", rename, more)
    compare(load(folder).logits(**inputs("bert_pretraining")), "bert_pretraining")


def test_t5_as_it_was_first_published(tmp_path):
    # Each use of the shared table saved again, and a table of positions for cross-attention that
    # nothing reads.
    arrays = tensors("t5")
    again = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    more = {name: arrays["shared.weight"] for name in again}
    more["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones(
        (32, 4), np.float32
    )
    folder = write("t5", tmp_path, "config_v4", more=more)
    compare(load(folder).logits(**inputs("t5")), "t5")


def test_biases_of_keys_load_though_no_logit_shows_them(tmp_path):
    # They move all scores of a query alike, which softmax does not see.
    loaded = load(write("gpt2", tmp_path))
    bias = np.stack(
        [tensors("gpt2")[f"transformer.h.{layer}.attn.c_attn.bias"] for layer in (0, 1)]
    )
    got = loaded.params["layers"]["attention"]["key_bias"]
    np.testing.assert_array_equal(got.reshape(2, -1), np.split(bias, 3, axis=1)[1])


def test_bfloat16_loads_without_a_change(tmp_path):
    loaded = load(write("llama_bfloat16", tmp_path), dtype="bfloat16")
    table = loaded.params["embed"]["table"]
    assert table.dtype == jnp.bfloat16
    np.testing.assert_array_equal(table, tensors("llama_bfloat16")["model.embed_tokens.weight"])


@pytest.mark.parametrize("causal", [False, True])
def test_distances_fall_into_the_references_buckets(causal):
    # The edges of the logarithmic buckets are powers of two, where a rounding of the logarithm
    # decides.
    numbers = {"table": jnp.arange(32.0)[:, None]}
    bias_BNTS = relative_bias(
        numbers, jnp.zeros((1, 1), jnp.int32), jnp.arange(-300, 300)[None], causal=causal
    )
    np.testing.assert_array_equal(bias_BNTS[0, 0, 0], golden("t5")["buckets"][int(causal)])
