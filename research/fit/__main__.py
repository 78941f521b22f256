"""Does it fit?  python -m research.fit --config=configs/finetune.py:model=llama3_8b,method=qlora --target=h100:1 --json

Compiles the train step of a config for hardware that is not here and tells the memory that a device needs. Exit code 0: it
fits; 3: it does not; 2: bad input.
"""

import json

import jax
from absl import flags
from ml_collections import config_flags

from research import command

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides")
TARGET = flags.DEFINE_string("target", None, "h100:8, v5p:4x4x4, v6e:1x1, cpu, ...")
CAPACITY_GIB = flags.DEFINE_float("capacity_gib", None, "memory of a device, instead of the target's own", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")
DOES_NOT_FIT = 3


def main(arguments: list[str]) -> int:
    """Reads the flags, compiles, and tells; the exit code."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; flags are --config, --target and --config.FIELD=VALUE")
    config = command.read_config(CONFIG)
    if not TARGET.value:
        raise ValueError("give --target=TARGET, such as --target=h100:1")
    jax.config.update("jax_platforms", "cpu")  # whatever else is installed: nothing is run
    from research.experiment import from_config
    from research.fit.report import GIB, measure
    from research.fit.targets import parse_target

    capacity = None if CAPACITY_GIB.value is None else int(CAPACITY_GIB.value * GIB)
    fit = measure(from_config(config), parse_target(TARGET.value), capacity)
    print(json.dumps(fit.to_json()) if JSON.value else fit.table())
    return command.DONE if fit.fits else DOES_NOT_FIT


if __name__ == "__main__":
    command.run(main)
