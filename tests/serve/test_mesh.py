"""An engine on a mesh writes the texts that it writes on one device."""

from functools import partial

import jax
import numpy as np
import pytest

from research.infer.sampling import SamplingConfig
from research.models.spec import shardings
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.runner import Draft
from tests.serve.engines import Letters, engine, model, prompt

GREEDY = SamplingConfig(temperature=0.0, max_tokens=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, mesh, settings",
    [
        # Two key heads on two devices, once for each part of the data.
        ("llama3_405b", "data:2,tensor:2", {}),
        # Sinks and experts; four devices, of which each has both key heads.
        ("gpt_oss_20b", "tensor:4", {}),
        ("llama3_405b", "fsdp:2,tensor:2", {"bits": 8, "drafts": 2, "draft": True}),
    ],
)
def test_texts_on_a_mesh_are_those_of_one_device(name, mesh, settings):
    small = {"rows": 2, "chunk": 8, "pages": 16, "page_size": 4}
    sampled = SamplingConfig(temperature=0.8, top_p=0.9, max_tokens=6, seed=5)
    asked = [Request(prompt(9), GREEDY), Request(prompt(5, 1), sampled)]
    drafted = settings.pop("draft", False)
    how = partial(dict, **small, **settings, prepared=False)
    own = {"draft": Draft(*model(name))} if drafted else {}
    wants = engine(name, **how(), **own).generate(asked)
    made = make_mesh(mesh, jax.devices()[:4])
    with jax.set_mesh(made):
        plan, params = model(name)
        params = jax.device_put(params, shardings(plan.specs(), made, RULES))
        own = {"draft": Draft(plan, params)} if drafted else {}
        served = Engine(plan, params, Letters(), **how(), **own)
    # Outside the mesh, as in a server's thread.
    for got, want in zip(served.generate(asked), wants):
        assert (got.token_ids, got.finish) == (want.token_ids, want.finish)
        # Sums of four parts in another order.
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=3e-5)
    pools = served.runner._pools
    keys = jax.tree.leaves(pools.keys_pool[0])[0]
    shape = keys.sharding.shard_shape(keys.shape)
    assert shape[pools.HEADS] == (1 if name == "llama3_405b" else 2)
