"""Builds the documentation as pages with a search: python -m research.site --target=site

    python -m research.site --target=site        # needs pip install -e '.[site]'
    python -m research.site --target=pages --sources      # the Markdown alone, for another program

The pages are the README, the docstrings of modules and configs, and what the commands say to
--help; a link that leads nowhere ends the command with code 1. No network is asked.
"""

import tempfile
from pathlib import Path

from absl import flags

from research import command

TARGET = flags.DEFINE_string("target", None, "the folder for the pages")
SOURCES = flags.DEFINE_bool("sources", False, "write the Markdown of the pages and stop")


def main(_: list[str]) -> int:
    """The command."""
    from research.site.build import render, write_sources
    from research.site.pages import pages

    if not TARGET.value:
        raise ValueError("--target=DIR is needed: the folder for the pages")
    target = Path(TARGET.value).expanduser()
    if SOURCES.value:
        write_sources(pages(), target)
        return command.DONE
    with tempfile.TemporaryDirectory() as folder:
        write_sources(pages(), Path(folder))
        render(Path(folder), target)
    print(f"open {target}/index.html")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
