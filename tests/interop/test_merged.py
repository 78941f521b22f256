"""peft's adapters merged into a checkpoint by a conversion compute what peft computes with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from research.interop.convert import convert, notes_on_base, verify
from research.interop.load import load
from tests.families import FAMILIES
from tests.interop.adapter_golden import adapter, write_adapter
from tests.interop.golden import inputs, real, write
from tests.interop.memory import in_memory, random_params

# As in test_peft: peft's own logits before and after merging differ by 7e-6 to 2e-5.
TOLERANCE = 5e-5
MERGED = ["lora_table", "rslora_dora", "ia3", "mixtral_experts", "oft", "replicated"]


def folders(name, tmp_path):
    (tmp_path / "base").mkdir()
    base = write(str(adapter(name)["base"]), tmp_path / "base")
    return base, write_adapter(name, tmp_path / "adapter")


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_adapter_computes_what_peft_does(name, tmp_path):
    base, folder = folders(name, tmp_path)
    convert(base, tmp_path / "merged", adapter=folder)
    kind = str(adapter(name)["base"])
    got = np.asarray(load(tmp_path / "merged").logits(**inputs(kind)))
    wanted = adapter(name)["logits"]
    np.testing.assert_allclose(got[real(kind)], wanted[real(kind)], atol=TOLERANCE, rtol=0)


def test_the_certificate_knows_the_adapter(tmp_path):
    base, folder = folders("lora", tmp_path)
    certificate = convert(base, tmp_path / "merged", "hf", adapter=folder)
    trip = certificate["round_trip"]
    assert trip["bit_equal"] == trip["tensors"] > 10
    assert certificate["source"]["adapter"] == str(folder)
    assert verify(tmp_path / "merged")["rechecked"][-1] == "round trip"
    (folder / "README.md").write_text("another adapter now")
    assert verify(tmp_path / "merged")["rechecked"] == ["target hashes"]


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_what_is_no_change_of_a_weight_cannot_be_merged(name, tmp_path):
    base, folder = folders(name, tmp_path)
    with pytest.raises(ValueError, match=r"cannot be merged; use it as it is: --checkpoint="):
        convert(base, tmp_path / "merged", adapter=folder)
    assert not Path(tmp_path / "merged").exists()


def test_weights_without_an_adapter_keep_their_bits(tmp_path):
    base, folder = folders("lora_some_layers", tmp_path)
    plain, merged = convert(base, tmp_path / "a"), convert(base, tmp_path / "b", adapter=folder)
    before, after = load(tmp_path / "a").params, load(tmp_path / "b").params
    assert plain["model"] == merged["model"]
    np.testing.assert_array_equal(before["embed"]["table"], after["embed"]["table"])
    assert np.any(before["layers"]["attention"]["query"] != after["layers"]["attention"]["query"])


@pytest.mark.parametrize(
    ("format", "says"),
    [("run", "the workdir of a run"), ("native", "a folder of ours"), ("gguf", "a GGUF file")],
)
def test_a_base_that_peft_cannot_open_is_said_with_the_way(format, says, tmp_path):
    c = FAMILIES["llama2_7b"]
    parent = replace(in_memory(c, random_params(c)), format=format)
    [line] = notes_on_base(str(tmp_path), parent)
    assert says in line and f"--source={tmp_path} --target=BASE --to=hf" in line
    assert notes_on_base(str(tmp_path), replace(parent, format="hf")) == []
