"""Families that read images in an engine: the continuations are those of the references."""

from dataclasses import replace

import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer.sampling import SamplingConfig
from research.interop.load import load
from research.serve.engine import Engine
from research.serve.request import Request
from tests.interop.test_image_families import golden, write


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvlm", "llava", "paligemma2", "gemma3"])
def test_an_engine_writes_the_references_continuation(name, tmp_path):
    # The golden's likeliest tokens lead by 1e-2 or more, which float sums do not close.
    loaded, fields = load(write(name, tmp_path)), golden(name)
    tokenizer = replace(load_tokenizer("bytes"), eos_id=None, pad_id=None)
    config = SamplingConfig(temperature=0, max_tokens=fields["greedy"].shape[1])
    asked = [
        Request(ids, config, media={"images": images})
        for ids, images in zip(fields["ids"].tolist(), fields["images"], strict=True)
    ]
    sizes = {"pages": 32, "page_size": 4, "rows": 2, "chunk": 24, "length": 48, "few": True}
    served = Engine(loaded.model, loaded.params, tokenizer, **sizes)
    written = [one.token_ids for one in served.generate(asked)]
    np.testing.assert_array_equal(written, fields["greedy"])
