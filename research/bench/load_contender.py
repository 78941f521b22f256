"""A contender's process: python -m research.bench.load_contender KIND:FOLDER, where KIND
is read, kept or graft."""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from research.bench.load import KEPT, LOAD, READ, files
from research.bench.turns import serve
from research.interop.load import load

_BUFFER_BYTES = 16 * 2**20


def main() -> None:
    """Reads the folder that the argument names when asked."""
    kind, _, folder = sys.argv[1].partition(":")
    kinds: dict[str, Callable[[Path], None]] = {READ: plain_read, KEPT: kept_read, LOAD: loaded}
    # What a process does once is not in the seconds of either.
    jax.devices()
    serve(lambda: kinds[kind](Path(folder)))


def plain_read(folder: Path) -> None:
    """Reads all files into one buffer, as `dd` does it: no byte is kept."""
    buffer = bytearray(_BUFFER_BYTES)
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def kept_read(folder: Path) -> None:
    """Reads all files into new memory of their size: what any loader without a mapping waits for,
    for the system first has to find and clear that memory."""
    memory = [np.fromfile(path, np.uint8) for path in files(folder)]
    del memory


def loaded(folder: Path) -> None:
    """Loads the model in its stored type, and waits until it is there."""
    jax.block_until_ready(load(folder, "bfloat16").params)


if __name__ == "__main__":
    main()
