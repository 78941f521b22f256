"""What libtpu's compiler says of a program that is larger than the chip: it names the memory, so
the answer is not lost."""

import re

# XLA prints sizes in powers of two: 19.52G is GiB.
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Before scheduling it compares its least estimate, arguments and all, and after it what it has laid
# out: Ran out of memory on HBM, the total memory required for HLO temporaries (19.52G) exceeds
# available HBM (15.75G). Ran out of memory in memory space hbm. Used 16.02G of 15.75G hbm. Exceeded
# hbm capacity by 276.50M. Other memory spaces (vmem, smem) are a kernel's own; what is short of
# them does not fit a larger chip either.
_REQUIRED = re.compile(
    r"total memory required[^(]*\(([\d.]+)([KMGT]?)B?\)"
    r"|Used ([\d.]+)([KMGT]?)B? of [\d.]+[KMGT]?B? hbm",
    re.I,
)


def required_bytes(message: str) -> int | None:
    """Bytes of a device that the program would take, of a compiler's RESOURCE_EXHAUSTED; None for
    any other error."""
    match = _REQUIRED.search(message) if "RESOURCE_EXHAUSTED" in message else None
    if match is None:
        return None
    # One pair of groups for each of the two messages.
    size, unit = match[1] or match[3], (match[2] or match[4] or "").upper()
    return round(float(size) * _UNITS[unit])
