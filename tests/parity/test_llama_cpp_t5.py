"""llama.cpp computes what we compute of T5, from the file that we write."""

from dataclasses import replace

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from research.interop.convert import convert
from research.interop.load import load
from research.models.layers import ACTIVATIONS
from tests.families import FAMILIES
from tests.interop.test_gguf_encoders import write
from tests.interop.test_gguf_unigram import as_json
from tests.parity import ggml

C = replace(FAMILIES["t5_small"], vocab_size=170, d_model=64, head_size=16)
MODELS = {
    "t5": replace(C, head_scale=64**-0.5),
    "t5_v1_1": replace(
        C, gated=True, activation="gelu_tanh", tied=False, head_scale=1.0, encoder_layers=3
    ),
}
TEXT, BEGUN = [5, 90, 31, 7, 150, 22, 63, 8, 41, 1], [0, 17, 120, 9, 33]


def batch(ids):
    made = llama_cpp.llama_batch_init(len(ids), 0, 1)
    made.n_tokens = len(ids)
    for n, token in enumerate(ids):
        made.token[n], made.pos[n], made.n_seq_id[n], made.logits[n] = token, n, 1, True
        made.seq_id[n][0] = 0
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_llama_cpps(name, tmp_path, monkeypatch):
    """Up to ggml's GELU, whose table in float16 is 1e-2 of the logits off: with it ours are its."""
    monkeypatch.setitem(ACTIVATIONS, "gelu_tanh", ggml.gelu)
    c = MODELS[name]
    folder = write(c, tmp_path / "hf", as_json("t5", tmp_path / "source"))
    convert(folder, tmp_path / "gguf", "gguf", certified=False)
    theirs = llama_cpp.Llama(
        str(tmp_path / "gguf/model.gguf"),
        n_ctx=128,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        logits_all=True,
        n_threads=2,
        verbose=False,
    )
    context = theirs._ctx.ctx
    assert llama_cpp.llama_encode(context, batch(TEXT)) == 0
    assert llama_cpp.llama_decode(context, batch(BEGUN)) == 0
    rows = [llama_cpp.llama_get_logits_ith(context, n) for n in range(len(BEGUN))]
    wanted = np.array([np.ctypeslib.as_array(row, (c.vocab_size,)) for row in rows])
    ours = load(folder)
    got = np.asarray(ours.logits(np.array([TEXT]), decoder_tokens=np.array([BEGUN])))[0]
    # llama.cpp does not scale the states before the head.
    apart, spread = got / c.head_scale - wanted, np.std(wanted)
    print(f"{name}: {np.sqrt(np.mean(apart**2)):.1e} of {spread:.2f}")
    # In another order of sums, whose last bit may take GELU's table to the next entry.
    assert np.sqrt(np.mean(apart**2)) < (1e-4 if c.gated else 1e-5) * max(spread, 1)
    assert got.argmax(-1).tolist() == wanted.argmax(-1).tolist()
