"""Experiments of the shipped configs, for tests."""

import importlib.util
from pathlib import Path
from typing import Any

from research.experiment.config import Experiment
from research.run.resolve import from_config

ROOT = Path(__file__).parent.parent


def load_config(name: str, arg: str = "", **changes: Any) -> Any:
    """The ConfigDict of configs/`name`.py with `changes` such as {"train.steps": 5}."""
    spec = importlib.util.spec_from_file_location(
        f"configs_{name}", ROOT / "configs" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    config.update_from_flattened_dict(changes)
    return config


def experiment(name: str, arg: str = "", **changes: Any) -> Experiment:
    """The same, resolved."""
    return from_config(load_config(name, arg, **changes))
