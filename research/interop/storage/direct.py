"""Files read once, past the system's cache of files: into memory from the disk itself, with no
second copy of a model that nobody asks for again."""

import ctypes
import mmap
import os
import threading
from pathlib import Path

import jax
import numpy as np

# What disks and file systems ask of addresses and lengths: a page, the largest that any wants.
_ALIGNMENT = 4096
_BLOCK_BYTES = 2 * 2**20
# Of the memory of the machine: a smaller model may well stay in the cache for the next load.
_SHARE = 8
# Of Linux; other systems have neither the flag nor, under that name, the question below.
_DIRECT = getattr(os, "O_DIRECT", None)
_OWN = threading.local()


def pays(nbytes: int) -> bool:
    """True if files of so many bytes are better read past the cache: where they take more than an
    eighth of the machine's memory, so that the copy in the cache would drive out much else, and
    where no other process of this run may be reading the same files.

    Such a load takes as long each time, the second as the first. Files that are in the cache
    already are read from it: `cat model*.safetensors > /dev/null` puts them there.
    """
    if _DIRECT is None or jax.process_count() > 1:
        return False
    return nbytes * _SHARE > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fill_once(path: Path, offset: int, memory: np.ndarray) -> int:
    """Fills uint8 memory with the bytes of a file from `offset` on, from the disk. How many bytes
    it filled, from the first on: none where all of them are in the cache, fewer than asked for
    where the file ends, or the file system has no such reads; a plain read then takes over."""
    if _DIRECT is None or not memory.size:
        return 0
    try:
        file = os.open(path, os.O_RDONLY | _DIRECT)
    except OSError:  # a file system in memory, say
        return 0
    try:
        return 0 if _in_cache(file, offset, memory.size) else _fill(file, offset, memory)
    except OSError:
        return 0
    finally:
        os.close(file)


def _in_cache(file: int, offset: int, size: int) -> bool:
    """True if all pages of these bytes are in the cache; also where the system does not tell, as of
    files that others may write and we may not."""
    # A read that may not wait would tell as well, but the system then reads ahead for the next.
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    size = min(offset + size, os.fstat(file).st_size) - start
    if size <= 0:
        return True
    with mmap.mmap(file, size, prot=mmap.PROT_READ, offset=start) as mapped:
        pages = np.frombuffer(mapped, np.uint8)
        present = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        # No page is touched: mapped ones would count as this process's memory.
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(pages.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(present.ctypes.data),
        )
        del pages  # a mapping that something looks at cannot be closed
    return bool(failed) or bool((present & 1).all())


def _fill(file: int, offset: int, memory: np.ndarray) -> int:
    """Whole pages go to memory of this thread, and from there what was asked for to its place, for
    tensors begin anywhere in a file."""
    done = 0
    while done < memory.size:
        start = offset + done
        before = start % _ALIGNMENT
        wanted = min(before + memory.size - done, _BLOCK_BYTES)
        pages = _own_memory()[: -(-wanted // _ALIGNMENT) * _ALIGNMENT]
        count = min(os.preadv(file, [pages], start - before), wanted) - before
        if count <= 0:
            break
        memory[done : done + count] = pages[before : before + count]
        done += count
    return done


def _own_memory() -> np.ndarray:
    """Memory of this thread that begins at a page: it is written to again and again, for new memory
    the system would have to find and clear first."""
    if not hasattr(_OWN, "memory"):
        memory = np.empty(_BLOCK_BYTES + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        _OWN.memory = memory[start : start + _BLOCK_BYTES]
    return _OWN.memory
