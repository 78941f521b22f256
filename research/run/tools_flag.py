"""The flag of the commands that converse and bring tools, which the model may call."""

import json
from pathlib import Path
from typing import Any

from absl import flags

TOOLS = flags.DEFINE_string(
    "tools", "", "a JSON file with a list of tools that the model may call, for the chat template"
)


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
