"""Beam search finds what transformers' generate finds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer.beam import BeamConfig, beam_search
from research.infer.sampling import SamplingConfig
from research.interop.huggingface import folder as hf
from research.models.model import Model
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
PROMPTS = [[3, 1, 4, 1], [5, 9, 2, 6], [2, 7, 1, 8], [9, 9, 9, 9]]


@pytest.mark.parametrize("name", ["llama2_7b", "t5_small"])
def test_the_same_texts_as_transformers(name, tmp_path):
    c = replace(FAMILIES[name], vocab_size=320)
    params = jax.tree.map(lambda w: w * 2, random_params(c))
    tokenizer = load_tokenizer("bytes")
    special = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    if c.kind == "encoder_decoder":
        special["decoder_start_token_id"] = tokenizer.pad_id
    (tmp_path / "model").mkdir()
    hf.write_folder(in_memory(c, params, special=special), tmp_path / "model")
    two_sided = c.kind == "encoder_decoder"
    kind = transformers.AutoModelForSeq2SeqLM if two_sided else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(tmp_path / "model", dtype=torch.float32)
    # Their penalty divides by tokens ** penalty, which is Wu's for 0 alone.
    ids = theirs.generate(
        torch.tensor(PROMPTS), num_beams=4, do_sample=False, max_new_tokens=12, length_penalty=0.0,
        attention_mask=torch.ones(4, 4, dtype=torch.long),
    )  # fmt: skip
    sampling = SamplingConfig(max_tokens=12, bos=False, decoder_ids=(tokenizer.pad_id,))
    sampling = sampling if two_sided else replace(sampling, decoder_ids=())
    ours = beam_search(Model(c), params, tokenizer, PROMPTS, sampling, BeamConfig(4, 0.0))
    start = 1 if two_sided else 4
    for one, row in zip(ours, ids.tolist()):
        wanted = row[start:]
        if tokenizer.eos_id in wanted:
            wanted = wanted[: wanted.index(tokenizer.eos_id) + 1]
        assert list(one.token_ids) == wanted
    assert len({one.token_ids for one in ours}) > 1 and np.isfinite(ours[0].logprobs[0])
