"""The flag of the commands that converse, for variables of the chat template, and the model that
they converse with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from absl import flags

from research.data.template_variables import parse_variables, with_variables
from research.run.model_flags import open_named

if TYPE_CHECKING:
    from research.run.opened import Opened

VARIABLES = flags.DEFINE_multi_string(
    "template_variable",
    [],
    "NAME=VALUE for the chat template, such as enable_thinking=false; may be given several times",
)


def open_to_write(adapter: str = "") -> Opened:
    """The model of the flags, see `open_named`, with its parameters laid out for decoding; its
    template has the variables of --template_variable. ValueError for one that it does not have."""
    from research.infer.decode_layout import move

    opened = open_named(adapter)
    return replace(
        opened,
        tokenizer=with_variables(opened.tokenizer, parse_variables(VARIABLES.value)),
        # Nothing reads them in the other layout, which need not be held beside this one.
        params=move(opened.model, opened.params),
    )
