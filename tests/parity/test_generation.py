"""transformers' generate stops where an exported checkpoint says."""

from dataclasses import replace

import pytest

from research.interop.convert import convert
from research.interop.huggingface import folder as hf
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
C = replace(FAMILIES["llama2_7b"], vocab_size=320)


def write(folder):
    """Ids that transformers' model of a folder writes greedily."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([[3, 1, 4]])
    ids = model.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0)
    return ids[0, 3:].tolist()


@pytest.mark.parametrize("to", ["native", "gguf"])
def test_generate_stops_at_every_end_of_an_exported_checkpoint(to, tmp_path):
    params = random_params(C)
    (tmp_path / "endless").mkdir()
    hf.write_folder(in_memory(C, params, special={"eos_token_id": 319}), tmp_path / "endless")
    whole = write(tmp_path / "endless")
    end = next(n for n in whole[2:] if n not in whole[:2])
    (tmp_path / "ending").mkdir()
    ends = {"eos_token_id": [319, end]}
    hf.write_folder(in_memory(C, params, special=ends), tmp_path / "ending")
    # Through another format and back, as a run's export would come.
    convert(tmp_path / "ending", tmp_path / to, to, certified=False)
    convert(tmp_path / to, tmp_path / "back", "hf", certified=False)
    assert write(tmp_path / "back") == whole[: whole.index(end) + 1]
