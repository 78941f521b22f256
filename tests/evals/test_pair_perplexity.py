"""The likelihood of target texts given source texts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.evals.pair_perplexity import read_pairs, score_pairs
from research.models.model import Model, forward
from research.models.spec import initialize
from tests.families import FAMILIES

BYTES = load_tokenizer("bytes")
MODEL = Model(replace(FAMILIES["t5_small"], vocab_size=BYTES.vocab_size))
PAIRS = [("one cat", "un chat"), ("a", "caf\u00e9"), ("x" * 20, "")]


def test_targets_are_scored_pair_by_pair_with_their_ends():
    params = initialize(jax.random.key(0), MODEL.specs(), jnp.float32)
    logits = jax.jit(forward, static_argnums=0)
    total, count, width = 0.0, 0, 24
    for source, target in PAIRS:
        ids = [*BYTES.encode(target), BYTES.eos_id]
        start = BYTES.eos_id if BYTES.pad_id is None else BYTES.pad_id
        rows = {"encoder_": [*BYTES.encode(source), BYTES.eos_id], "": [start, *ids[:-1]]}
        batch = {}
        for side, row in rows.items():
            batch[f"{side}inputs"] = np.pad(row, (0, width - len(row)))[None]
            batch[f"{side}segments"] = (np.arange(width) < len(row)).astype(np.int32)[None]
            batch[f"{side}positions"] = np.arange(width)[None]
        logp_TV = jax.nn.log_softmax(logits(MODEL, params, batch)[0])
        total -= sum(float(logp_TV[t, i]) for t, i in enumerate(ids))
        count += len(ids)
    got = score_pairs(MODEL, params, BYTES, PAIRS)
    assert got.tokens == count
    np.testing.assert_allclose(got.nll, total, rtol=1e-5)


@pytest.mark.parametrize("line", ['{"inputs": "a"}', '{"inputs": 1, "targets": "b"}', "text"])
def test_a_line_that_is_no_pair_is_named(line, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(f'{{"inputs": "a", "targets": "b"}}\r\n\r\n{line}\n')
    with pytest.raises(ValueError, match="line 3 is no pair like"):
        read_pairs(file)
    file.write_text('\ufeff{"inputs": "a", "targets": "b"}\r\n')
    assert read_pairs(file) == [("a", "b")]


def test_a_decoder_is_refused():
    with pytest.raises(ValueError, match="no encoder-decoder but of kind decoder"):
        score_pairs(Model(FAMILIES["gpt2"]), {}, BYTES, PAIRS)
