"""Leaves against peft 0.21.2 and bitsandbytes 0.50.2, on a LLaMA of two layers with random
weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.interop.huggingface.families import llama
from research.interop.storage.foreign import Names, read_parameters
from research.interop.storage.tensors import Tensor
from research.models.config import ModelConfig
from research.models.model import Model, forward
from research.ops.loss import cross_entropy
from research.weights.formats import FORMATS, encode
from research.weights.lora import LoraAdapter
from research.weights.quantized import quantize_array
from research.weights.rules import attach, merge, quantize
from research.weights.scales import quantize_scales

GOLDEN = np.load(Path(__file__).parent / "golden_peft_bitsandbytes.npz")
CONFIG = ModelConfig(
    vocab_size=97,
    layers=2,
    d_model=64,
    heads=4,
    kv_heads=2,
    head_size=16,
    d_ff=128,
    max_length=512,
    norm_eps=1e-6,
)
MODEL = Model(CONFIG)
SPECS = MODEL.specs()
# peft's name of a projection, our path, axes that are inputs, and its module.
PROJECTIONS = {
    "q_proj": ("attention/query", 1, "self_attn"),
    "k_proj": ("attention/key", 1, "self_attn"),
    "v_proj": ("attention/value", 1, "self_attn"),
    "o_proj": ("attention/out", 2, "self_attn"),
    "gate_proj": ("mlp/gate", 1, "mlp"),
    "up_proj": ("mlp/up", 1, "mlp"),
    "down_proj": ("mlp/down", 1, "mlp"),
}
LINEAR = [(r"layers/(attention|mlp)/\w+", "nf4"), (".*", None)]


class Base:
    """The golden's weights as a checkpoint's tensors."""

    names = {
        key[5:]: Tensor(GOLDEN[key].shape, "float32")
        for key in GOLDEN.files
        if key.startswith("base/")
    }

    def read(self, name):
        return GOLDEN[f"base/{name}"]


@pytest.fixture(scope="module")
def params():
    """The base model."""
    parameters, _, _ = read_parameters(CONFIG, llama.rules(CONFIG), Base(), Names())
    layers = {p: [q.read(index) for index in q.indices()] for p, q in parameters.items()}
    return tree.unflatten(
        {p: jnp.asarray(np.stack(xs) if parameters[p].stack else xs[0]) for p, xs in layers.items()}
    )


def batch():
    """The golden's ids."""
    ids = GOLDEN["ids"].astype(np.int32)
    return {
        "inputs": ids,
        "segments": np.ones_like(ids),
        "positions": np.tile(np.arange(17, dtype=np.int32), (2, 1)),
    }


def theirs(case, layer, name, part):
    """A tensor of peft's."""
    return GOLDEN[f"{case}/model.layers.{layer}.{PROJECTIONS[name][2]}.{name}.{part}"]


def adapters(case, alpha_of_v=16, root=False):
    """peft's adapters of a case as ours; lower ranks are filled up with zeros to 8."""
    made = {}
    for name, (path, inputs, _) in PROJECTIONS.items():
        shape = tree.paths(SPECS)[f"layers/{path}"].shape[1:]
        inner, outer = shape[:inputs], shape[inputs:]
        rows = []
        for layer in range(2):
            a, b = (theirs(case, layer, name, f"lora_{side}.default.weight") for side in "AB")
            rank = len(a)
            alpha = alpha_of_v if name == "v_proj" else 16
            module = f"{case}/model.layers.{layer}.{PROJECTIONS[name][2]}.{name}"
            magnitude = f"{module}.lora_magnitude_vector.default.weight"
            rows.append(
                LoraAdapter(
                    jnp.asarray(np.pad(a, ((0, 8 - rank), (0, 0))).T.reshape(*inner, 8)),
                    jnp.asarray(np.pad(b, ((0, 0), (0, 8 - rank))).T.reshape(8, *outer)),
                    jnp.float32(alpha / (rank**0.5 if root else rank)),
                    jnp.asarray(GOLDEN[magnitude].reshape(outer))
                    if magnitude in GOLDEN.files
                    else None,
                )
            )
        made[f"layers/{path}"] = jax.tree.map(lambda *xs: jnp.stack(xs), *rows)
    return tree.unflatten(made)


CASES = {"lora": dict(alpha_of_v=32), "rslora": dict(root=True), "dora": {}}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_merged_logits_are_pefts(case, params):
    adapted = attach(params, adapters(case, **CASES[case]))
    # peft's own logits before and after merging differ by 7e-6 to 2e-5.
    np.testing.assert_allclose(
        forward(MODEL, adapted, batch()), GOLDEN[f"logits/{case}"], atol=5e-5
    )
    merged = merge(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(forward(MODEL, merged, batch()), GOLDEN[f"merged/{case}"], atol=5e-5)
    query = np.asarray(merged["layers"]["attention"]["query"][0]).reshape(64, 64).T
    np.testing.assert_allclose(query, GOLDEN[f"mergedw/{case}"], atol=1e-6)


@pytest.mark.parametrize("case", ["lora", "dora"])
def test_gradients_of_the_adapters_are_pefts(case, params):
    ours = adapters(case, **CASES[case])
    ids = batch()["inputs"]

    def loss(trained):
        logits = forward(MODEL, attach(params, trained), batch())
        loss_BT, _ = cross_entropy(logits[:, :-1], jnp.asarray(ids[:, 1:]))
        return jnp.mean(loss_BT)

    value, gradients = jax.value_and_grad(loss)(ours)
    assert float(value) == pytest.approx(float(GOLDEN[f"loss/{case}"]), abs=1e-5)
    found = 0
    for name, (path, _, _) in PROJECTIONS.items():
        gradient = tree.paths(gradients, lambda node: isinstance(node, LoraAdapter))[
            f"layers/{path}"
        ]
        for layer in range(2):
            for side, x in (("A", gradient.a), ("B", gradient.b)):
                want = theirs(f"grad/{case}", layer, name, f"lora_{side}.default.weight")
                got = np.asarray(x[layer])
                got = got.reshape(-1, 8).T if side == "A" else got.reshape(8, -1).T
                got = got[: len(want)] if side == "A" else got[:, : want.shape[1]]
                assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(
                    want
                )  # float32 sums in another order
                found += 1
    assert found == 28


def test_qlora_is_bitsandbytes_under_peft(params):
    adapted = attach(quantize(params, SPECS, LINEAR), adapters("qlora"))
    np.testing.assert_allclose(forward(MODEL, adapted, batch()), GOLDEN["logits/qlora"], atol=5e-5)


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("layer", [0, 1])
def test_nf4_with_double_quantization_is_bitsandbytes_to_the_bit(name, layer):
    path, inputs, module = PROJECTIONS[name]
    w = GOLDEN[f"base/model.layers.{layer}.{module}.{name}.weight"]
    codes, absmax, _ = encode(FORMATS["nf4"], jnp.asarray(w.reshape(-1, 64)))
    codes = np.asarray(codes).astype(np.uint8).reshape(-1)
    np.testing.assert_array_equal(
        codes[::2] << 4 | codes[1::2], GOLDEN[f"qs/{layer}/{name}/q"].reshape(-1)
    )
    scales = quantize_scales(absmax[:, 0])
    want = GOLDEN[f"qs/{layer}/{name}/a"]
    np.testing.assert_array_equal(np.asarray(scales.codes).reshape(-1)[: len(want)], want)
    # torch and XLA sum the mean in another order: the last bit of the offset.
    np.testing.assert_allclose(scales.offset.reshape(()), GOLDEN[f"qs/{layer}/{name}/o"], rtol=2e-7)
    dense = quantize_array(jnp.asarray(w.T), "nf4", inputs=1).dense().T
    np.testing.assert_allclose(dense, GOLDEN[f"dq/{layer}/{name}"], rtol=0, atol=3e-7)


def test_int8_rows_are_those_of_llm_int8():
    # bitsandbytes rounds weights to float16 first.
    w = GOLDEN["l8/w"].astype(np.float16).astype(np.float32)
    codes, scale, _ = encode(FORMATS["int8"], jnp.asarray(w))
    np.testing.assert_array_equal(codes, GOLDEN["l8/CB"])
    np.testing.assert_allclose(scale[:, 0] * 127, GOLDEN["l8/SCB"], rtol=1e-6)
