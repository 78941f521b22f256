"""Changes of single fields of an experiment, in Python and as flags of a command."""

from dataclasses import replace
from typing import Any

from research.experiment.config import Experiment


def change(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment with fields set by path, with a double underscore for the dot.

        change(experiment, data__batch_size=8)

    ValueError for values that the experiment refuses.
    """
    for path, value in settings.items():
        section, _, name = path.partition("__")
        value = value if not name else replace(getattr(experiment, section), **{name: value})
        experiment = replace(experiment, **{section: value})
    return experiment


def flags(settings: dict[str, Any]) -> str:
    """The settings of `change` as flags: "--config.data.batch_size=8 --config.mesh=fsdp:8"."""
    return " ".join(
        f"--config.{path.replace('__', '.')}={value}" for path, value in settings.items()
    )


def set_batch(experiment: Experiment, rows: int) -> dict[str, int]:
    """The setting for `change` that sets the batch size to `rows`: per device if the experiment
    counts rows per device, else over all devices."""
    return {
        "data__batch_size" if experiment.data.batch_size else "data__batch_size_per_device": rows
    }
