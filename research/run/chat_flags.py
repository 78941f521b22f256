"""Flags of the commands that converse: tools, and variables of the chat template."""

import json
from pathlib import Path
from typing import Any

from absl import flags

from research.data.template_variables import parse_variables, with_variables
from research.data.tokenizers import Tokenizer

VARIABLES = flags.DEFINE_multi_string(
    "template_variable",
    [],
    "NAME=VALUE for the chat template, such as enable_thinking=false; may be given several times",
)
TOOLS = flags.DEFINE_string(
    "tools", "", "a JSON file with a list of tools that the model may call, for the chat template"
)


def chosen_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the variables of --template_variable. ValueError for one that its chat
    template does not have."""
    return with_variables(tokenizer, parse_variables(VARIABLES.value))


def chosen_tools() -> list[Any]:
    """The tools of --tools, [] without the flag. ValueError for a file with anything else."""
    if not TOOLS.value:
        return []
    try:
        tools = json.loads(Path(TOOLS.value).expanduser().read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--tools={TOOLS.value} cannot be read as JSON: {error}") from None
    if not isinstance(tools, list):
        kind = type(tools).__name__
        raise ValueError(f"--tools={TOOLS.value} holds a JSON {kind}, wanted a list of tools")
    return tools
