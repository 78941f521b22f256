"""Folders whose names contain the characters `*`, `?` and `[`, for Orbax."""

import glob
from collections.abc import Iterator
from typing import Self

from etils.epath import gpath


class LiteralPath(gpath.PosixGPath):
    """An `epath.Path` whose `glob` takes only its argument for a pattern, as pathlib's does.

    etils joins folder and argument and matches the whole, so that in a folder `run[1]` it finds
    nothing. Orbax, which merges the parts of a checkpoint that it finds that way, would then leave
    the index of the arrays out and report success. Orbax keeps the type of a path that it is given.
    """

    def glob(self, pattern: str) -> Iterator[Self]:
        """The entries of this folder that match `pattern`."""
        # `root_dir` is taken literally, so only `pattern` has wildcards.
        for found in glob.iglob(pattern, root_dir=self):
            yield self / found
