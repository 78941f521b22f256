r"""Does it fit?

    python -m research.fit --config=configs/finetune.py:model=llama3_8b,method=qlora \
        --target=h100:1

Compiles the train step of a config for hardware that is not here and tells the memory that a device
needs and what bounds its speed. Several targets with commas: --target=v5e:4x4,v6e:4x4,h100:8.
Standard output has the answer alone, progress is on standard error. Exit code 0: all fit; 3: one
does not; 2: bad input; 1: the compiler crashed.
"""

import json

from absl import flags
from ml_collections import config_flags

from research import command
from research.experiment.config import Experiment
from research.fit.answer import DOES_NOT_FIT, TIME_LIMIT, answer, record
from research.fit.page import write_page
from research.fit.report import GIB, Fit
from research.fit.table import table
from research.fit.targets import Target, parse_targets
from research.parallel.axes import merge_rules
from research.run.resolve import from_config

SOLVABLE = ("context", "batch", "rank", "layers")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides"
)
TARGET = flags.DEFINE_string(
    "target", None, "h100:8, v5p:4x4x4, v6e:1x1, cpu, ...; several with commas"
)
STEP = flags.DEFINE_enum("step", "train", ["train", "decode"], "the step that is compiled")
CAPACITY_GIB = flags.DEFINE_float(
    "capacity_gib", None, "memory of a device, instead of the target's own", lower_bound=0
)
PRICE = flags.DEFINE_float(
    "price_per_hour",
    None,
    "what one chip or card costs an hour, for the cost of a billion tokens",
    0,
)
JSON = flags.DEFINE_bool(
    "json", False, "print one JSON value on standard output, a list for several targets"
)
HTML = flags.DEFINE_string(
    "html", None, "a file to draw the answer in, one page that opens offline"
)
LIMIT = flags.DEFINE_float(
    "time_limit", TIME_LIMIT, "seconds that one compile may take", lower_bound=1
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "the directory of the run to come; its fit.json records the prediction"
)
SEARCH = flags.DEFINE_bool(
    "search", False, "look for the meshes, batches and options that make most of the target"
)
SOLVE = flags.DEFINE_enum("solve", None, SOLVABLE, "find the largest that fits")


def main(arguments: list[str]) -> int:
    """Reads the flags, asks, and tells; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; "
            "flags are --config, --target and --config.FIELD=VALUE"
        )
    config = command.read_config(CONFIG)
    if not TARGET.value:
        raise ValueError("give --target=TARGET, such as --target=h100:1")
    if SEARCH.value and SOLVE.value:
        raise ValueError("--search and --solve are two questions; ask one at a time")
    # Both are checked before the first compile, which may take minutes.
    experiment, targets = from_config(config), parse_targets(TARGET.value)
    # Each of these writes or prints one answer: a search, a solution, the fit.json of one run.
    single_target = [
        name
        for name, flag in {"search": SEARCH, "solve": SOLVE, "workdir": WORKDIR}.items()
        if flag.value
    ]
    if single_target and len(targets) > 1:
        raise ValueError(
            f"--{single_target[0]} is for one target and --target={TARGET.value!r} names "
            f"{len(targets)}; give one"
        )
    if SEARCH.value:
        # Imported where used: a plain answer needs neither the adviser nor the solver.
        from research.fit.search import search

        return search(experiment, targets[0], print_json=JSON.value, **_terms())
    if SOLVE.value:
        from research.fit.solve import solve

        return solve(experiment, targets[0], SOLVE.value, print_json=JSON.value, **_terms())
    return _tell(experiment, targets)


def _terms() -> dict:
    """What every compile is asked under."""
    capacity = None if CAPACITY_GIB.value is None else int(CAPACITY_GIB.value * GIB)
    return dict(
        capacity_bytes=capacity, price_per_hour=PRICE.value, step=STEP.value, time_limit=LIMIT.value
    )


def _tell(experiment: Experiment, targets: list[Target]) -> int:
    """Asks for each target and answers, on standard output and in the files that are asked for; the
    exit code."""
    fits = [answer(experiment, target.name, **_terms()) for target in targets]
    if WORKDIR.value:
        record(fits[0], WORKDIR.value)
    if HTML.value:
        write_page(fits, HTML.value, merge_rules(experiment.axes))
    if JSON.value:
        values = [fit.to_json() for fit in fits]
        print(json.dumps(values if len(values) > 1 else values[0]))
    else:
        # The advice comes after every table, so that the tables of several targets stay together.
        print("\n\n".join(table(fit) for fit in fits))
        for target, fit in zip(targets, fits):
            # The closed forms are of a train step and say nothing of decoding.
            if not fit.fits and fit.step == "train":
                _advise(experiment, target, fit)
    return command.DONE if all(fit.fits for fit in fits) else DOES_NOT_FIT


def _advise(experiment: Experiment, target: Target, fit: Fit) -> None:
    """Names the smallest change that would make it fit, by the closed forms."""
    from research.fit.search import changes
    from research.run.override import flags as spelt

    # Closed forms only: a compile of each candidate would take minutes, and --search does that.
    for settings, guess in changes(experiment, target):
        if guess.total <= fit.capacity:
            print(
                f"{target.name}: the smallest change that would fit, by estimate: "
                f"{spelt(settings)} ({guess.total / GIB:.2f} GiB); --search compiles it"
            )
            return
    print(
        f"{target.name}: no single change would make it fit, by estimate; "
        "--search tries them together"
    )


if __name__ == "__main__":
    command.run(main)
