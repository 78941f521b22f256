"""peft computes what the run does with an adapter on a table that is also the head."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
peft = pytest.importorskip("peft", reason="peft is not installed; pip install -e '.[parity]'")

import transformers

from research.interop.convert import convert
from research.interop.load import load
from research.interop.peft.write import write_peft
from tests.checkpoints import save_checkpoint
from tests.interop.test_tied_adapters import IDS, TIED, logits_with, on_the_table

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of every tied table


@pytest.mark.parametrize("whole", [False, True], ids=["lora", "whole"])
@pytest.mark.parametrize("kind", TIED)
def test_peft_computes_what_the_run_does(kind, whole, tmp_path):
    c = TIED[kind]
    save_checkpoint(tmp_path / "base", c)
    convert(tmp_path / "base", tmp_path / "hf", "hf", certified=False)
    adapters = on_the_table(c, whole)
    (tmp_path / "peft").mkdir()
    write_peft(tmp_path / "peft", adapters, c)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    ours = np.asarray(logits_with(load(tmp_path / "base"), adapters))
    np.testing.assert_allclose(ours, theirs, atol=5e-5 * np.abs(theirs).max())
