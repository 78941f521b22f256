"""Adapters, codes and losses go through the encoder of images and the decoder alike, by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models.model import forward
from research.models.spec import initialize
from research.objectives.causal_lm import CausalLM
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights import rules
from tests.models.test_soft import PLACE, T, batch, logits, model, parameters

ENCODER, PROJECTOR = "image/layers/attention/query", "image/projector/kernel"
TARGETS = r"(image/)?layers/attention/(query|value)|image/projector/kernel"


@pytest.mark.slow
def test_adapters_reach_encoder_projector_and_decoder_over_codes():
    m, fields = model("causal"), batch("causal")
    added = initialize(
        jax.random.key(2),
        lora_specs(m.specs(), LoraConfig(rank=2, alpha=2.0, targets=TARGETS)),
        jnp.float32,
    )
    assert {ENCODER, PROJECTOR, "layers/attention/query"} <= tree.paths(added, rules.is_leaf).keys()
    chosen = [(r"(image/)?layers/(attention|mlp)/(query|key|value|out|up|down)", "int8")]
    base = rules.quantize(parameters(), m.specs(), [*chosen, (".*", None)])
    targets = np.where(fields["inputs"] == PLACE, PLACE, 9).astype(np.int32)
    row = {**fields, "targets": targets, "weights": np.ones((1, T), np.float32)}

    def loss(added, base):
        total, count, _ = CausalLM().loss(m, added, {"base": base}, row, None)
        return total, (count, forward(m, rules.attach(base, added), fields))

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    got, (count, first) = gradient(added, base)
    # What is read is not predicted.
    assert count == np.sum(fields["inputs"] != PLACE)
    # A fresh adapter changes nothing; int8 rounds weights of 0.02 to 0.4 by half a percent.
    np.testing.assert_allclose(first, logits("causal"), atol=0.05)
    moved = {path: leaf.b for path, leaf in tree.paths(got, rules.is_leaf).items()}
    assert all(np.any(np.asarray(b) != 0) for b in moved.values()), moved.keys()
