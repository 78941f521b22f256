"""llama.cpp makes of a text the vector that we make of it, from the file that we write."""

from dataclasses import replace

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from research.infer.sentences import embed
from research.interop.convert import convert
from research.interop.load import load, open_checkpoint
from research.models.layers import ACTIVATIONS
from tests.interop.test_gguf_encoders import MODELS, MODERN, TEXT, byte_level, wordpiece, write
from tests.parity import ggml
from tests.parity.test_llama_cpp_t5 import batch

TEXTS = [TEXT, "The fox played.", "ÉCLAIR over\tdogs!"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "distilbert"])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_sentence_vectors_are_llama_cpps(name, pooling, tmp_path):
    mode = f'{{"pooling_mode_{pooling}": true}}'.encode()
    files = wordpiece() | {"1_Pooling/config.json": mode}
    c = replace(MODELS[name], max_length=128)
    convert(write(c, tmp_path / "hf", files), tmp_path / "gguf", "gguf")
    path = str(tmp_path / "gguf/model.gguf")
    theirs = llama_cpp.Llama(path, n_ctx=128, embedding=True, n_threads=2, verbose=False)
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        settings = checkpoint.sentence_settings
    ours = load(tmp_path / "hf")
    got = embed(ours.model, ours.params, ours.tokenizer, TEXTS, settings)
    for text, vector in zip(TEXTS, got, strict=True):
        wanted = np.array(theirs.embed(text, normalize=True))
        # llama.cpp's GELU is the approximation by tanh, from a table of float16.
        np.testing.assert_allclose(vector, wanted, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "pooling"), [("gelu", "mean_tokens"), ("silu", "cls_token")]
)
def test_modernberts_vectors_are_llama_cpps(activation, pooling, tmp_path):
    files = byte_level(290) | {
        "1_Pooling/config.json": f'{{"pooling_mode_{pooling}": true}}'.encode()
    }
    c = replace(
        MODERN,
        activation=activation,
        vocab_size=290,
        max_length=128,
        layer_kinds=("global", "local", "local", "global"),
        local_rope_theta=100.0,
        mlm_head=False,
    )
    convert(write(c, tmp_path / "hf", files), tmp_path / "gguf", "gguf")
    path = str(tmp_path / "gguf/model.gguf")
    theirs = llama_cpp.Llama(path, n_ctx=128, embedding=True, n_threads=2, verbose=False)
    ours = load(tmp_path / "hf")
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        settings = checkpoint.sentence_settings
    got = embed(ours.model, ours.params, ours.tokenizer, TEXTS, settings)
    for text, vector in zip(TEXTS, got, strict=True):
        wanted = np.array(theirs.embed(text, normalize=True))
        # llama.cpp's GELU is the approximation by tanh, from a table of float16.
        np.testing.assert_allclose(vector, wanted, atol=3e-3 if activation == "gelu" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 2])
def test_scores_of_classes_are_llama_cpps(offset, tmp_path, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "gelu", ggml.gelu)
    changes = dict(pooler=True, labels=3, max_length=128, mlm_head=False, position_offset=offset)
    c = replace(MODELS["bert"], **changes)
    folder = write(c, tmp_path / "hf", wordpiece())
    convert(folder, tmp_path / "gguf", "gguf", certified=False)
    rank = llama_cpp.LLAMA_POOLING_TYPE_RANK
    how = dict(n_ctx=128, embedding=True, pooling_type=rank, n_threads=2, verbose=False)
    theirs = llama_cpp.Llama(str(tmp_path / "gguf/model.gguf"), **how)
    ids = [2, 9, 31, 17, 40, 22, 3]
    context = theirs._ctx.ctx
    assert llama_cpp.llama_encode(context, batch(ids)) == 0
    wanted = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), (3,))
    got = np.asarray(load(folder).scores(np.array([ids]))).reshape(-1)
    print(got, wanted)
    # In another order of sums, whose last bit may take GELU's table to the next entry.
    np.testing.assert_allclose(got, wanted, atol=1e-4)
