"""A head over the predicted tokens alone has the loss and the gradient of a head over all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.fit.flops import executed
from research.models.heads import head_specs
from research.models.initial import initial
from research.models.model import Model
from research.models.spec import Spec, initialize, normal
from research.objectives import masked_lm
from research.objectives.masked_lm import MaskedLM
from research.objectives.predicted import Bound
from research.objectives.tokens import token_loss
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from tests.families import FAMILIES

CONFIG = FAMILIES["bert_base"]
ROWS, LENGTH, MOST = 8, 16, 5
SPECS = {
    "embed": {"table": Spec((CONFIG.vocab_size, CONFIG.d_model), ("vocab", "embed"), normal(1.0))},
    "head": head_specs(CONFIG, initial(CONFIG)),
    "states": Spec((ROWS, LENGTH, CONFIG.d_model), ("batch", "length", "vector"), normal(1.0)),
}


class Head(Model):
    """BERT's head over states that are parameters: what is compared, and quick to compile."""

    def hidden(self, params, batch, key=None):
        return params["states"], {}


def batch_of(most: int) -> dict[str, np.ndarray]:
    """Rows that predict up to `most` tokens, the first of them none."""
    rng = np.random.default_rng(0)
    weights = np.zeros((ROWS, LENGTH), np.float32)
    for row in range(1, ROWS):
        weights[row, rng.permutation(LENGTH)[: 1 + (row + most - 2) % most]] = 1
    assert weights.sum(1).max() == most
    targets = rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH), dtype=np.int32)
    return {"inputs": targets, "targets": targets, "weights": weights}


def results(mesh: str, batch, bound: Bound | None):
    """(mean loss, its gradient by states and parameters) on a mesh."""
    made, model = make_mesh(mesh), Head(CONFIG)

    def loss(params, batch):
        total, count, _ = token_loss(model, params, {"base": {}}, batch, None, 0.1, 1e-3, bound)
        return total / count

    def make(batch):
        params = initialize(jax.random.key(0), SPECS, jnp.float32, made, RULES)
        return jax.value_and_grad(loss)(params, batch)

    with jax.set_mesh(made):
        return jax.device_get(jax.jit(make)(place_batch(batch, made, RULES, ROWS)))


@pytest.mark.parametrize(
    ("mesh", "most", "hard"),
    [("", MOST + 3, False), ("fsdp:4,tensor:2", MOST, True), ("data:4,context:2", MOST, True)],
)
def test_the_loss_and_its_gradient_are_those_of_all_tokens(mesh, most, hard):
    batch = batch_of(most)
    wanted, found = results("", batch, None), results(mesh, batch, Bound(MOST, hard))
    # Float32 sums of some 40 terms in another order.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, wanted)


def test_a_batch_beyond_a_hard_bound_has_no_loss():
    assert np.isnan(results("", batch_of(MOST + 1), Bound(MOST, hard=True))[0])


def test_the_head_multiplies_the_predicted_tokens_alone(monkeypatch):
    objective, params = MaskedLM(3, CONFIG.vocab_size), initialize(jax.random.key(0), SPECS, float)
    batch = jax.tree.map(jnp.asarray, batch_of(2))

    def flops() -> float:
        loss = lambda params: objective.loss(Head(CONFIG), params, {"base": {}}, batch, None)
        return sum(executed(jax.make_jaxpr(loss)(params), 1).values())

    everywhere = flops()
    monkeypatch.setattr(masked_lm, "platform", lambda: "tpu")
    # 15% of 16 tokens are 3, in whole tiles 8.
    assert (
        flops()
        == everywhere / 2
        == 2 * ROWS * 8 * CONFIG.d_model * (CONFIG.vocab_size + CONFIG.d_model)
    )
