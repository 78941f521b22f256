"""What weight decay and updates leave alone: constants always, vectors unless a rule says so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import tree
from research.models.model import Model
from research.models.spec import initialize
from research.training.kinds import constants_under_rules, count_trained, kind_of
from research.training.optimizer import OptimizerConfig, make
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, split_specs
from tests.families import FAMILIES

EVERYTHING = ((".*", 1.0),)
METHODS = {
    "full": (TuneConfig(), LoraConfig()),
    "lora": (TuneConfig("lora", also=".*norm/scale"), LoraConfig(rank=2, targets="query|table")),
    "dora": (TuneConfig("lora"), LoraConfig(rank=2, decompose=True)),
    "ia3": (TuneConfig("ia3"), LoraConfig()),
    "adapter": (TuneConfig("adapter", bottleneck=4), LoraConfig()),
    "prompt": (TuneConfig("prompt", virtual_tokens=3), LoraConfig()),
    "prefix": (TuneConfig("prefix", virtual_tokens=3), LoraConfig()),
}
CASES = [("full", family) for family in FAMILIES]
CASES += [(method, "llama2_7b") for method in METHODS if method != "full"]
# Attention of two kinds, and factors with the axes of other weights.
CASES += [("ia3", "t5_small"), ("dora", "gpt2"), ("prefix", "transformer_base")]


def trainable(method, family):
    c, (tune, lora) = FAMILIES[family], METHODS[method]
    return split_specs(Model(c).specs(), c, tune, lora, QuantizeConfig())[0]


def moved(specs, gradient, **config):
    """Paths that an update with this gradient everywhere changes."""
    axes = jax.tree.map(lambda s: s.axes, specs)
    config = OptimizerConfig(
        **{"learning_rate": 0.1, "schedule": "constant", "warmup_steps": 0, **config},
        weight_decay=0.5,
    )
    optimizer, _ = make(config, axes, 10, specs)
    # One number each, since what decays does not depend on sizes: nothing to compile anew.
    before = jax.tree.map(lambda s: np.full([1] * len(s.shape), 0.5, np.float32), specs)
    gradients = jax.tree.map(lambda p: np.full_like(p, gradient), before)
    updates, _ = optimizer.update(gradients, optimizer.init(before), before)
    after = tree.paths(optax.apply_updates(before, updates))
    return {path for path, x in tree.paths(before).items() if (after[path] != x).any()}


@pytest.mark.parametrize(("method", "family"), CASES)
def test_zero_gradients_decay_matrices_and_tables_alone(method, family):
    specs = trainable(method, family)
    kinds = {path: kind_of(" ".join(s.axes), s.kind) for path, s in tree.paths(specs).items()}
    constant = {path for path, kind in kinds.items() if kind == "constant"}
    adapters = method in ("lora", "dora")
    # A norm's scale is a vector and an adapter's a constant: the same last name.
    wanted = {path for path in kinds if adapters and path.endswith("/scale") and "norm" not in path}
    assert bool(wanted) == adapters
    # DeepSeek's router has a bias that no gradient trains.
    assert constant == wanted | {path for path in kinds if path.endswith("/router_bias")}
    decays = moved(specs, 0.0)
    vectors = set(kinds) - decays - constant
    for path in decays | vectors:
        last = path.rsplit("/", 1)[-1]
        named = "norm" in path or "bias" in last or last in ("magnitude", "gain", "scale", "sinks")
        # T5's table of distances is called a bias, and is looked up by rows.
        assert named == (path in vectors) or path.endswith("bias/table"), path
    assert moved(specs, 0.0, weight_decay_rules=EVERYTHING) == set(kinds) - constant
    assert moved(specs, 0.0, decay_embeddings=False) == {
        path for path, kind in kinds.items() if kind == "matrix"
    }


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "lion", "muon"])
def test_no_optimizer_changes_a_constant(name):
    """Also with a gradient, which an adapter of another kind might give it."""
    specs = trainable("lora", "llama2_7b")
    constant = {path for path, spec in tree.paths(specs).items() if spec.kind == "constant"}
    left = set(tree.paths(specs)) - moved(
        specs, 1.0, name=name, weight_decay_rules=EVERYTHING, learning_rate=0.1
    )
    assert left == constant and len(constant) == 3


@pytest.mark.parametrize("method", ["ia3", "prefix"])
def test_muon_leaves_what_only_has_the_axes_of_a_matrix(method):
    specs = trainable(method, "llama2_7b")
    optimizer, _ = make(OptimizerConfig("muon"), jax.tree.map(lambda s: s.axes, specs), 10, specs)
    params = initialize(jax.random.key(0), specs, jnp.float32)
    momentum = jax.tree.leaves(optimizer.init(params)[1].inner_states["muon"])
    assert all(x.ndim == 0 for x in momentum)  # the count alone


def test_constants_are_not_counted_and_a_rule_over_them_is_said():
    specs = trainable("lora", "gpt2")
    scales = sum(s.kind == "constant" for s in tree.paths(specs).values())
    layers = FAMILIES["gpt2"].layers
    assert tree.count(specs) - count_trained(specs) == layers + 1  # queries' of each layer, table's
    assert scales == 2
    (line,) = constants_under_rules(EVERYTHING, specs)
    assert line.startswith("weight_decay_rules reach 2 constants (alpha / rank")
    assert constants_under_rules(((".*/scale", 0.0), (".*", 1.0)), specs) == []
    assert constants_under_rules((), specs) == []


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ValueError, match="kind='const'; choose one of matrix, vector"):
        kind_of("layers embed mlp", "const")
