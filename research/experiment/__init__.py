"""The configuration of a run: one frozen dataclass for each section, and the ConfigDict that config
files start from.

Config files need this package alone:

    from research.experiment import PARENTS, base_config, parse_arg, shrink_model, tune

Ablations start from `small_config`, those of tuning from `small_tuned_config`, and applications
that tune a chat model from `application_config`.
"""

from research.experiment.config import base_config
from research.experiment.fields import parse_arg
from research.experiment.methods import PARENTS, tune
from research.experiment.small import small_config
from research.experiment.smoke import shrink_model
from research.experiment.tuned import application_config, small_tuned_config

__all__ = [
    "PARENTS",
    "application_config",
    "base_config",
    "parse_arg",
    "shrink_model",
    "small_config",
    "small_tuned_config",
    "tune",
]
