"""The documentation as pages: docstrings, `--help` texts and the README, rendered by Sphinx.

    python -m research.site --target=site    # needs pip install -e '.[site]'; open site/index.html

Nothing is written for the site alone: what a page says is the docstring of a module, a config or a
command, a section of the README, or the README of a folder. `modules` reads Python files without
importing them, `helps` asks the commands, `pages` lays the pages out, `markdown` turns their text
into Markdown with links from every name of a module or file to its page, and `build` hands them to
Sphinx, which fails on a link that leads nowhere.
"""
