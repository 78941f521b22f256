"""Adapters of peft 0.21.2: what it computed with them, our model computes too, and they come out again as they went in."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from research import tree
from research.interop.load import load, open_adapter, open_checkpoint
from research.interop.peft_config import read_config
from research.interop.peft_write import write_peft
from tests.interop.adapter_golden import ADAPTERS, adapter, tensors, write_adapter
from tests.interop.golden import inputs, real, write

# peft's own logits before and after merging differ by 7e-6 to 2e-5.
TOLERANCE = 5e-5


def loaded(name, tmp_path, **how):
    """The base with the adapter."""
    (tmp_path / "base").mkdir()
    base = write(str(adapter(name)["base"]), tmp_path / "base")
    return load(base, adapter=write_adapter(name, tmp_path / "adapter"), **how)


def compare(model, name):
    base, wanted = str(adapter(name)["base"]), adapter(name)
    if "classes" in wanted:
        got = model.model.class_logits(model.params, model.hidden(**inputs(base)))[:, 0]
        np.testing.assert_allclose(got, wanted["classes"], atol=TOLERANCE, rtol=0)
        return
    got = np.asarray(model.logits(**inputs(base)))
    np.testing.assert_allclose(got[real(base)], wanted["logits"][real(base)], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_pefts(name, tmp_path):
    compare(loaded(name, tmp_path), name)


# Those that come out as they went in: the rest adapt a module in another spelling, or multiply biases.
SAME = [name for name in ADAPTERS if name not in ("mixtral_experts", "mixtral_lora", "gpt2_ia3")]


def adapters_of(name, tmp_path):
    """The adapters as read, and the config that goes with them."""
    (tmp_path / "base").mkdir()
    with open_checkpoint(write(str(adapter(name)["base"]), tmp_path / "base")) as checkpoint:
        changed, adapters = open_adapter(write_adapter(name, tmp_path / "adapter"), checkpoint)
        whole = {path: p for path, p in changed.parameters.items() if checkpoint.parameters.get(path) is not p}
        for path, parameter in whole.items() if name in ("bert_classifier", "lora_whole") else ():
            arrays = np.stack([parameter.read(index) for index in parameter.indices()])
            adapters = tree.join(adapters, tree.unflatten({path: arrays.reshape(parameter.shape)}))
        return adapters, changed.config


@pytest.mark.parametrize("name", SAME)
def test_what_is_read_is_written_as_it_was(name, tmp_path):
    adapters, config = adapters_of(name, tmp_path)
    (tmp_path / "again").mkdir()
    write_peft(tmp_path / "again", adapters, config)
    written, wanted = load_file(tmp_path / "again/adapter_model.safetensors"), tensors(name)
    wanted = {key: value for key, value in wanted.items() if "base_layer" not in key}
    assert written.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)
    again = read_config(tmp_path / "again")
    theirs = read_config(tmp_path / "adapter")
    for module in {key.removeprefix("base_model.model.").rsplit(".lora_")[0] for key in wanted}:
        assert again.rank_of(module) == theirs.rank_of(module)
        assert again.scale_of(module) == pytest.approx(theirs.scale_of(module), rel=1e-7)  # through a float32
