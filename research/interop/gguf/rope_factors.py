"""Scalings of rotary positions that GGUF files hold as tensors, float32 [H / 2]: factors by which
llama.cpp multiplies the wavelength of each pair.

Llama 3's are `rope_freqs.weight`, LongRoPE's `rope_factors_short.weight` and
`rope_factors_long.weight`.
"""

import numpy as np

from research.interop.gguf.architecture import Metadata, shortest
from research.interop.gguf.file import Gguf
from research.interop.gguf.rope_keys import LONG, SHORT, said
from research.models.config import ModelConfig
from research.ops.rope import frequencies
from research.ops.rope_scaling import RopeScaling

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


def read_scaling(gguf: Gguf, c: ModelConfig) -> RopeScaling | None:
    """The scaling whose factors a file holds, None for a file without factors; `c` is the model
    without it. ValueError for factors that no known scaling gives."""
    if LONG in gguf.names:
        return _read_longrope(gguf, c)
    if FREQUENCIES not in gguf.names:
        return None
    size, theta = c.rotary_size or c.head_size, c.rope_theta
    got = gguf.read(FREQUENCIES).astype(np.float64)
    said = gguf.metadata.get(SCALING)
    known = _PUBLISHED
    if said is not None and len(said) == 4:
        known = (RopeScaling(*map(float, said[:3]), int(said[3])), *known)
    for scaling in known:
        wanted = factors(size, theta, scaling)
        # Factors are stored in float32.
        if got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-5):
            return scaling
    raise ValueError(
        f"{FREQUENCIES} holds factors up to {got.max():.6g} that are those of no known scaling"
    )


def _read_longrope(gguf: Gguf, c: ModelConfig) -> RopeScaling:
    m = Metadata(gguf.metadata, gguf.names)
    short, long = (
        tuple(shortest(value) for value in gguf.read(name).astype(np.float64))
        for name in (SHORT, LONG)
    )
    length = m.number("rope.scaling.original_context_length", c.max_length)
    attention = shortest(m.number("rope.scaling.attn_factor", 1.0))
    scaling = RopeScaling(
        original_length=length,
        attention_factor=attention,
        short_factors=short,
        long_factors=long,
        kind="longrope",
    )
    exact = said(m, scaling)
    again = [tuple(map(shortest, x)) for x in (exact.short_factors, exact.long_factors)]
    return exact if again == [short, long] else scaling


def tensors(c: ModelConfig) -> dict[str, np.ndarray]:
    """The factors of a model's scaling by the tensor's name; {} for one without factors."""
    scaling, size = c.rope_scaling, c.rotary_size or c.head_size
    if scaling.kind == "longrope":
        pairs = ((SHORT, scaling.short_factors), (LONG, scaling.long_factors))
        return {name: np.array(values, np.float32) for name, values in pairs}
    if scaling.kind == "llama3" and scaling.factor != 1.0:
        return {FREQUENCIES: factors(size, c.rope_theta, scaling)}
    return {}


def record(scaling: RopeScaling) -> np.ndarray:
    """The value of the key `SCALING`, float64 [4]; `read_scaling` is the inverse."""
    # float64, so that the four numbers come back as they were written.
    numbers = [scaling.factor, scaling.low_factor, scaling.high_factor, scaling.original_length]
    return np.array(numbers, np.float64)


def factors(size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """The factor of each pair's wavelength, float32 [H / 2]."""
    # A wavelength is 2 pi / frequency, so its factor is the quotient of the frequencies.
    plain, scaled = frequencies(size, theta), frequencies(size, theta, scaling)
    return (plain / scaled).astype(np.float32)
