"""peft computes what a run with more tokens than its base does, once the base has as many."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
peft = pytest.importorskip("peft", reason="peft is not installed; pip install -e '.[parity]'")

import transformers

from research.interop.convert import convert, export_adapter
from research.interop.load import load
from tests.interop.test_grown_adapters import CASES, classifier_run, write_grown

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of every tied table


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_peft_computes_what_the_run_does(kind, how, tmp_path):
    ids, wanted = write_grown(kind, how, tmp_path)
    convert(tmp_path / "base", tmp_path / "hf", "hf", certified=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    model.resize_token_embeddings(wanted.shape[-1])
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(wanted, theirs, atol=5e-5 * np.abs(theirs).max())


def test_peft_labels_texts_as_the_run_does(tmp_path):
    classifier_run(tmp_path)
    export_adapter(tmp_path / "run", tmp_path / "peft")
    convert(tmp_path / "words", tmp_path / "hf", "hf", certified=False)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", num_labels=2, dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    ids = np.array([[5, 70, 11, 33, 90, 20]])
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    ours = load(tmp_path / "words", adapter=tmp_path / "run")
    logits = ours.model.class_logits(ours.params, ours.hidden(ids))[:, 0]
    np.testing.assert_allclose(np.asarray(logits), theirs, atol=1e-5)
