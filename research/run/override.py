"""Changes of single fields of an experiment, in Python and as flags of a command."""

from dataclasses import replace
from typing import Any

from research.experiment.config import Experiment


def change(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment with fields set by path, where a double underscore is the dot.

        change(experiment, data__batch_size=8, mesh="fsdp:8")

    ValueError for values that the experiment refuses.
    """
    for path, value in settings.items():
        section, _, name = path.partition("__")
        value = value if not name else replace(getattr(experiment, section), **{name: value})
        # Each `replace` runs the checks of the whole experiment again.
        experiment = replace(experiment, **{section: value})
    return experiment


def flags(settings: dict[str, Any]) -> str:
    """The settings of `change` as flags: "--config.data.batch_size=8 --config.mesh=fsdp:8"."""
    return " ".join(
        f"--config.{path.replace('__', '.')}={value}" for path, value in settings.items()
    )


def set_batch(experiment: Experiment, rows: int) -> dict[str, int]:
    """The setting for `change` that makes a batch of `rows` rows: of each device if the experiment
    sets its batch per device, otherwise of all devices together."""
    return {
        "data__batch_size" if experiment.data.batch_size else "data__batch_size_per_device": rows
    }
