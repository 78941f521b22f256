"""One setting of an experiment changed, and the flags that say so."""

from dataclasses import replace
from typing import Any

from research.experiment.config import Experiment


def change(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment with fields set by their paths, a double underscore for the dot: change(e,
    data__batch_size=8).

    ValueError for values that the experiment refuses.
    """
    for path, value in settings.items():
        section, _, name = path.partition("__")
        value = value if not name else replace(getattr(experiment, section), **{name: value})
        experiment = replace(experiment, **{section: value})
    return experiment


def flags(settings: dict[str, Any]) -> str:
    """The same for a command line: "--config.data.batch_size=8 --config.mesh=fsdp:8"."""
    return " ".join(
        f"--config.{path.replace('__', '.')}={value}" for path, value in settings.items()
    )


def set_batch(experiment: Experiment, rows: int) -> dict[str, int]:
    """The setting of a batch, by what the experiment has it: rows of a device where it counts
    those, else of the step."""
    return {
        "data__batch_size" if experiment.data.batch_size else "data__batch_size_per_device": rows
    }
