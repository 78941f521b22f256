"""transformers reads the scores of our reward models."""

import numpy as np
import pytest

from research.interop.convert import convert
from research.interop.load import load
from tests.interop.test_scoring import DECODERS, scorer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_gives_the_same_scores(name, tmp_path):
    c = scorer(name, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "hf", "hf", certified=False)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", attn_implementation="eager"
    ).eval()
    model.config.pad_token_id = 0
    ids = np.random.default_rng(0).integers(1, c.vocab_size, (3, 12))
    mask = (np.arange(12) < np.array([[12], [7], [3]])).astype(np.int64)
    with torch.no_grad():
        theirs = model(torch.tensor(ids * mask), attention_mask=torch.tensor(mask)).logits.numpy()
    ours = np.asarray(load(tmp_path / "hf").scores(ids * mask, mask))
    # Float32 through a few layers in another order of sums.
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    assert np.ptp(theirs) > 0.01
