"""How the layers run changes nothing of what they compute."""

import jax
import numpy as np
import pytest

from research.models.config import Execution
from research.models.model import Model
from research.models.spec import initialize
from research.objectives.causal_lm import CausalLM
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from tests.families import FAMILIES, random_batch


def value_and_gradients(execution, batch):
    model = Model(FAMILIES["llama2_7b"], execution=execution)
    params = initialize(jax.random.key(0), model.specs(), np.dtype("float32"))
    return jax.jit(
        jax.value_and_grad(lambda p: CausalLM().loss(model, p, {"base": {}}, batch, None)[0])
    )(params)


EXECUTIONS = [
    Execution(feed_tokens=8),
    Execution(feed_tokens=5, remat="full"),
    Execution(feed_tokens=1000),
    Execution(remat="offload"),
]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mesh", ["", "fsdp:2,tensor:2,data:2"])
def test_loss_and_gradients_stay(execution, mesh):
    batch = random_batch(8, 12)
    want = value_and_gradients(Execution(), batch)
    with jax.set_mesh(make_mesh(mesh)):
        got = value_and_gradients(execution, place_batch(batch, make_mesh(mesh), RULES, 8))
    # The sums over tokens of a weight's gradient come in parts.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
