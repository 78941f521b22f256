"""Qwen's mixtures whose config.json leaves layers without experts: the first ones are read, others
are refused with their numbers, and a model without any experts is a plain one."""

import json

import pytest

from research.interop.huggingface.families import qwen_moe
from tests.interop.golden import golden, tensors


def read(layers, **values):
    values = json.loads(str(golden("qwen3_moe_dense")["config"])) | values
    values.pop("layer_types", None)
    return qwen_moe.read_config({**values, "num_hidden_layers": layers}, set())


@pytest.mark.parametrize(
    ("values", "layers", "dense"),
    [
        ({"mlp_only_layers": []}, 3, 0),
        ({"mlp_only_layers": None}, 3, 0),
        ({"mlp_only_layers": [1, 0]}, 3, 2),
        ({"mlp_only_layers": [0, 7]}, 3, 1),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, 2, 1),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 3}, 3, 2),
    ],
)
def test_first_layers_may_have_no_experts(values, layers, dense):
    c = read(layers, **values)
    assert (c.dense_layers, c.dense_d_ff > 0, c.experts > 0) == (dense, dense > 0, True)
    assert qwen_moe.read_config(qwen_moe.write_config(c), set()) == c


def test_a_model_without_experts_is_a_plain_one():
    c = read(2, mlp_only_layers=[0, 1])
    assert (c.experts, c.dense_layers, c.d_ff) == (
        0,
        0,
        tensors("qwen3_moe_dense")["model.layers.0.mlp.up_proj.weight"].shape[0],
    )
    assert not [rule for rule in qwen_moe.rules(c) if "expert" in rule.name]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mlp_only_layers": [1]}, r"layers \[1\] have no experts"),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, r"layers \[0, 2\] have no experts"),
        ({"mlp_only_layers": 1}, "mlp_only_layers=1; wanted"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ],
)
def test_other_layers_without_experts_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        read(3, **values)
