"""The pages as HTML, by Sphinx."""

import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from research.site.pages import Page

# Sections of the table of contents: title, the beginning of the paths of its pages.
SECTIONS = {
    "Start": ("start", "first_hour", "jobs", "measured/index"),
    "Concepts": ("concepts/",),
    "Commands": ("commands/",),
    "Configs": ("configs/",),
    "Measured": ("measured/",),
    "Reference": ("api/",),
    "The project": ("contributing", "changelog"),
}
_SETTINGS = """
project = "Graft"
release = {release!r}
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Graft"
html_show_copyright = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
highlight_language = "text"
myst_heading_anchors = 3
smartquotes = False  # a flag in prose keeps its two dashes, a text its quotes
"""
# Docstrings have lines of 100 characters. A window that has no room for them beside both columns of
# the theme keeps the theme's width, and code scrolls.
_CSS = "@media (min-width: 97em) { .content { width: 58em } } pre { font-size: 0.8em }"


def write_sources(pages: Iterable[Page], folder: Path) -> None:
    """The Markdown of every page, the table of contents and Sphinx's settings in `folder`."""
    paths = []
    for page in pages:
        file = folder / f"{page.path}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{page.text}\n", encoding="utf-8")
        paths.append(page.path)
    (folder / "index.md").write_text(_contents(paths), encoding="utf-8")
    (folder / "static").mkdir()
    (folder / "static" / "wide.css").write_text(_CSS, encoding="utf-8")
    (folder / "conf.py").write_text(_SETTINGS.format(release=_version()), encoding="utf-8")


def render(source: Path, target: Path) -> None:
    """The HTML of the sources in `target`. ValueError where Sphinx is missing; RuntimeError for a
    link that leads nowhere, which Sphinx has printed."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        raise ValueError("the site needs Sphinx: pip install -e '.[site]'") from None
    with tempfile.TemporaryDirectory() as scratch:
        # Trees of documents that Sphinx keeps for a second build.
        options = ["-q", "-W", "--keep-going", "-d", scratch]
        if code := build_main(["-b", "html", *options, str(source), str(target)]):
            raise RuntimeError(f"Sphinx ended with {code}; what is wrong is printed above")
    shutil.rmtree(target / "_sources", ignore_errors=True)


def _contents(paths: list[str]) -> str:
    """The first page, whose hidden lists of pages are the site's table of contents."""
    lines = ["# Graft", "", "```{include} start.md", ":start-line: 1", "```", ""]
    placed: set[str] = set()
    for title, starts in SECTIONS.items():
        members = [
            path
            for start in starts
            for path in paths
            if (path.startswith(start) if start.endswith("/") else path == start)
        ]
        members = [path for path in members if path not in placed]
        placed |= set(members)
        lines += ["```{toctree}", ":hidden:", f":caption: {title}", "", *members, "```", ""]
    return "\n".join(lines)


def _version() -> str:
    try:
        return version("graft-research")
    except PackageNotFoundError:
        return ""
