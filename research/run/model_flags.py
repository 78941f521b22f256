"""Flags of the commands that use a model, and the model that they name.

JAX is imported when the model is opened, so that a wrong flag is answered before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from research.run.source import check_source

if TYPE_CHECKING:
    from research.run.opened import Opened

WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a run of research.train")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a checkpoint folder, GGUF file or package, instead of a run"
)
STEP = flags.DEFINE_integer(
    "step", None, "with --workdir: the checkpoint to take; by default the newest good one", 0
)
DTYPE = flags.DEFINE_string(
    "dtype", "float32", "with --checkpoint: the type of parameters and computation"
)


def check_named(adapter: str = "") -> None:
    """ValueError unless the flags name a run or a checkpoint, and for the `adapter` of a run."""
    check_source(WORKDIR.value, CHECKPOINT.value, adapter)


def open_named(adapter: str = "", reads_texts: bool = True) -> Opened:
    """The model of the flags, with an `adapter` on it if one is named; its programs are kept when
    they are compiled. ValueError if it cannot be opened, and for one without a tokenizer unless
    `reads_texts` is False."""
    from research.run.opened import keep_compiled_programs, open_model

    keep_compiled_programs()
    opened = open_model(
        WORKDIR.value, CHECKPOINT.value, adapter=adapter, step=STEP.value, dtype=DTYPE.value
    )
    if reads_texts and opened.tokenizer is None:
        raise ValueError(
            f"{opened.source} has no tokenizer; put its tokenizer.json into the folder"
        )
    return opened
