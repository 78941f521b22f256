"""Llama 3's scaling of rotary positions in GGUF files: the tensor `rope_freqs.weight`, float32
[H / 2], by which llama.cpp multiplies the wavelength of each pair.
"""

import numpy as np

from research.interop.gguf.file import Gguf
from research.ops.rope import RopeScaling, frequencies

FREQUENCIES = "rope_freqs.weight"
# A key of ours with the scaling's four numbers, which llama.cpp ignores. From the factors alone
# they could only be guessed.
SCALING = "graft.rope.scaling"
# Files of other programs have the factors alone; these are the settings of published models, tried
# until one gives the same factors.
_PUBLISHED = tuple(
    RopeScaling(factor, 1.0, 4.0, length)
    for factor in (8.0, 32.0, 16.0, 4.0, 2.0)
    for length in (8192, 4096, 2048, 16384)
)


def read_scaling(gguf: Gguf, head_size: int, theta: float) -> RopeScaling | None:
    """The scaling whose factors a file holds, None for a file without factors. ValueError for
    factors that no known scaling gives."""
    if FREQUENCIES not in gguf.names:
        return None
    got = gguf.read(FREQUENCIES).astype(np.float64)
    said = gguf.metadata.get(SCALING)
    known = _PUBLISHED
    if said is not None and len(said) == 4:
        known = (RopeScaling(*map(float, said[:3]), int(said[3])), *known)
    for scaling in known:
        wanted = factors(head_size, theta, scaling)
        # Factors are stored in float32.
        if got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-5):
            return scaling
    raise ValueError(
        f"{FREQUENCIES} holds factors up to {got.max():.6g} that are those of no known scaling"
    )


def record(scaling: RopeScaling) -> np.ndarray:
    """The value of the key `SCALING`, float64 [4]; `read_scaling` is the inverse."""
    # float64, so that the four numbers come back as they were written.
    numbers = [scaling.factor, scaling.low_factor, scaling.high_factor, scaling.original_length]
    return np.array(numbers, np.float64)


def factors(head_size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """The factor of each pair's wavelength, float32 [H / 2]."""
    # A wavelength is 2 pi / frequency, so its factor is the quotient of the frequencies.
    plain, scaled = frequencies(head_size, theta), frequencies(head_size, theta, scaling)
    return (plain / scaled).astype(np.float32)
