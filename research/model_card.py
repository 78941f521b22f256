"""Writes the model card of a run: python -m research.model_card --workdir=runs/quickstart

    python -m research.model_card --workdir=RUN --license=apache-2.0 --language=en \\
        --price_per_hour=2.5

MODEL_CARD.md, in the run's directory or at --output, has Hugging Face's metadata, the data with
their licences, the evaluations of evals/ with intervals and by slice, what was not measured, energy
and cost, and the git commit. Energy is measured where the machine counts it (RAPL, NVML), else
estimated and said to be. What nobody knows is said to be unknown.
"""

import math
import re
from pathlib import Path

from absl import flags

from research import command

WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a run of research.train")
OUTPUT = flags.DEFINE_string("output", None, "the file to write; by default in that directory")
LICENSE = flags.DEFINE_string(
    "license", "", "the licence of the model, as the hub spells it, such as apache-2.0"
)
LANGUAGE = flags.DEFINE_list("language", [], "codes of languages, such as en,de")
PRICE = flags.DEFINE_float("price_per_hour", None, "the price of one device for an hour")


def main(arguments: list[str]) -> int:
    """Reads the flags and writes the card; the exit code."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; name the run with --workdir=RUN")
    if not WORKDIR.value:
        raise ValueError("give --workdir=RUN, the directory of a training run")
    for code in LANGUAGE.value:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", code):
            raise ValueError(f"--language={code} must be a code such as en")
    if LICENSE.value and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", LICENSE.value):
        raise ValueError(f"--license={LICENSE.value} must be spelt as on the hub, as apache-2.0")
    if PRICE.value is not None and not 0 <= PRICE.value < math.inf:
        raise ValueError(f"--price_per_hour={PRICE.value} must be a number of at least 0")
    # Here, so that --help needs no more than flags.
    from research.evals.card import model_card
    from research.files import write_text

    text = model_card(WORKDIR.value, LICENSE.value, LANGUAGE.value, PRICE.value)
    target = Path(OUTPUT.value) if OUTPUT.value else Path(WORKDIR.value) / "MODEL_CARD.md"
    write_text(target, text)
    print(target)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
