"""The configuration of a run: one frozen dataclass for each section, and the ConfigDict that config
files start from.

Config files need this package alone:

    from research.experiment import base_config, parse_arg, shrink_model
"""

from research.experiment.config import base_config
from research.experiment.fields import parse_arg
from research.experiment.smoke import shrink_model

__all__ = ["base_config", "parse_arg", "shrink_model"]
