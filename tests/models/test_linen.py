"""The Linen module is the functions: same tree, same numbers, any leaf."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models.linen import Transformer
from research.models.model import Model, forward
from research.models.spec import abstract
from tests.families import FAMILIES, random_batch


@pytest.mark.parametrize("name", ["llama2_7b", "t5_small"])
def test_module_declares_the_tree_and_computes_the_function(name):
    model, batch = Model(FAMILIES[name]), random_batch(1, 8)
    variables = Transformer(model).init(jax.random.key(0), batch)
    assert variables.keys() == {"params"}
    shapes = {path: leaf.shape for path, leaf in tree.paths(variables["params"]).items()}
    assert shapes == {
        path: leaf.shape for path, leaf in tree.paths(abstract(model.specs(), jnp.float32)).items()
    }
    got = Transformer(model).apply(variables, batch)
    np.testing.assert_array_equal(got, forward(model, variables["params"], batch))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Halves:
    """A stand-in for a table, in two arrays of other shapes than the table's."""

    first: jax.Array
    second: jax.Array

    def take(self, ids):
        return jnp.concatenate([self.first[ids], self.second[ids]], axis=-1)


def test_a_stand_in_passes_through_as_it_is():
    model, batch = Model(FAMILIES["llama2_7b"]), random_batch(1, 8)
    variables = Transformer(model).init(jax.random.key(0), batch)
    table = variables["params"]["embed"]["table"]
    split = {**variables["params"], "embed": {"table": Halves(table[:, :10], table[:, 10:])}}
    got = Transformer(model).apply({"params": split}, batch)
    np.testing.assert_array_equal(got, Transformer(model).apply(variables, batch))
