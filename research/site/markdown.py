"""Docstrings as Markdown: their code blocks kept, their names of modules and files made links."""

import re
from collections.abc import Callable

_CODE = re.compile(r"(`[^`\n]+`)")
_ROW = re.compile(r"\S+( \S+)* {2,}\S| {2,}")  # a row of a table, or a line that goes on with it
_MARKS = re.compile(r"([\\*_<>\[\]{}|$])")  # signs that Markdown would read as its own


def from_docstring(text: str, link: Callable[[str], str | None]) -> str:
    """The Markdown of a docstring. `link` gives the target of a name in backticks, or None.

    Lines that are indented by four after an empty line are code, as they are for Markdown, and so
    are tables of names with their meaning in a second column.
    """
    blocks, code = [], False
    for block in re.split(r"\n[ \t]*\n", text):
        indented = all(line.startswith("    ") for line in block.splitlines() if line)
        if indented and code:  # an empty line within code
            blocks[-1] = blocks[-1].removesuffix("\n```") + f"\n\n{_dedented(block)}\n```"
        elif indented:
            blocks.append(f"```text\n{_dedented(block)}\n```")
        elif all(_ROW.match(line) for line in block.splitlines()):
            blocks.append(fenced(block))
        else:
            blocks.append("\n".join(_prose(line, link) for line in block.splitlines()))
        code = indented
    return "\n\n".join(blocks)


def fenced(text: str, language: str = "text") -> str:
    """`text` as a block of code."""
    return f"```{language}\n{text.strip()}\n```"


def _dedented(block: str) -> str:
    return "\n".join(line[4:] for line in block.splitlines())


def _prose(line: str, link: Callable[[str], str | None]) -> str:
    """A line of prose: code becomes a link where it names something, other signs are escaped."""
    parts = _CODE.split(line)
    for at, part in enumerate(parts):
        if at % 2:
            target = link(part.strip("`"))
            parts[at] = f"[{part}](#{target})" if target else part
        else:
            parts[at] = _MARKS.sub(r"\\\1", part)
    # A line may begin with a sign that would make a heading or a quotation of it.
    return re.sub(r"^(\s*)([#>+=])", r"\1\\\2", "".join(parts))
