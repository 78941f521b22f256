"""muP's table in the optimizer's terms: every parameter has its multiple, at any width."""

import pytest

from research import tree
from research.models.parameters import parameter_specs
from research.models.spec import Spec
from research.run.resolve import from_config
from research.sweep.running import load_module
from tests.configs import ROOT

ABLATION = load_module(f"{ROOT}/configs/ablations/width_rate.py")


@pytest.mark.parametrize("width", [32, 64, 256])
def test_matrices_of_layers_learn_slower_the_wider_and_nothing_else_does(width):
    config = ABLATION.get_config("smoke")
    config.update_from_flattened_dict(ABLATION.shape(width) | ABLATION.mup(width))
    experiment = from_config(config)
    specs = parameter_specs(experiment.model)
    is_spec = lambda leaf: isinstance(leaf, Spec)
    rules = experiment.optimizer.learning_rate_rules
    multiples = dict(tree.paths(tree.choose(rules, specs, is_spec)))
    for path, spec in tree.paths(specs, is_spec).items():
        hidden = path.startswith("layers/") and "vector" not in spec.axes
        assert multiples[path] == (32 / width if hidden else 1.0), path
    assert experiment.model.head_scale == 32 / width
