"""Inputs that a format's group does not divide get the next smaller group that does."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from research.interop.bitsandbytes.write import write_bitsandbytes
from research.interop.load import load
from research.weights.formats import FORMATS
from research.weights.grouping import cut_inputs
from research.weights.quantized import quantize_array
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES


@pytest.mark.parametrize(
    ("format", "inputs", "group"),
    [
        ("nf4", 576, 64),
        ("nf4", 32, 32),
        ("nf4", 96, 48),
        ("uint4", 80, 40),
        ("int4", 34, 34),
        ("int8", 37, 37),
    ],
)
def test_groups_fit_the_inputs(format, inputs, group):
    assert cut_inputs((inputs, 4), FORMATS[format], 1, 0, None).group == group


def test_smaller_groups_are_within_the_formats_bound():
    w = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
    error = np.abs(quantize_array(jnp.asarray(w), "nf4", inputs=1).dense() - w)
    assert error.max() <= FORMATS["nf4"].error * np.abs(w).max() * (1 + 1e-5)


def test_a_group_that_was_asked_for_is_not_changed_and_odd_inputs_have_none():
    with pytest.raises(ValueError, match="groups of 64 do not .*; set config.quantize.group to a"):
        cut_inputs((96, 4), FORMATS["nf4"], 1, 0, 64)
    with pytest.raises(ValueError, match="groups of 64 do not divide 37 inputs; .* take int8"):
        cut_inputs((37, 4), FORMATS["nf4"], 1, 0, None)


def test_a_model_of_any_width_loads_quantized_and_other_programs_blocks_are_named(tmp_path):
    c = replace(FAMILIES["llama2_7b"], layers=1, d_ff=80)
    save_checkpoint(tmp_path / "base", c)
    loaded = load(tmp_path / "base", quantize="nf4")
    mlp = loaded.params["layers"]["mlp"]
    assert (mlp["up"].group, mlp["down"].group) == (32, 40)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match="down_proj is in blocks of 40 values; bitsandbytes has 32, 64"
    ):
        write_bitsandbytes(loaded.checkpoint, tmp_path / "out", loaded.params)
