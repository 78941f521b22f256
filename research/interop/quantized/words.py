"""Codes of a few bits in words of 32: one stream of bits, the first code in the lowest."""

import numpy as np


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of `bits` bits, 1 to 8, in each row of words [..., W], as uint8
    [..., count]. A code may lie in two words. ValueError for rows that hold fewer."""
    # Words are little-endian in every format here, so a row of them is one stream of bytes.
    data = np.ascontiguousarray(words).view(np.uint8)
    if data.shape[-1] * 8 < count * bits:
        raise ValueError(
            f"{data.shape[-1] // 4} words hold fewer than {count} codes of {bits} bits; fetch the "
            "checkpoint again"
        )
    if bits == 8:
        return data[..., :count]
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)[..., :count]
    # Eight codes fill `bits` bytes, which fit one integer of 64 bits.
    runs = -(-count // 8)
    missing = max(0, runs * bits - data.shape[-1])
    data = np.pad(data, [(0, 0)] * (data.ndim - 1) + [(0, missing)])
    run = np.zeros((*data.shape[:-1], runs), np.uint64)
    for n in range(bits):
        run |= data[..., n : runs * bits : bits].astype(np.uint64) << np.uint64(8 * n)
    codes = np.empty((*run.shape, 8), np.uint8)
    for n in range(8):
        codes[..., n] = (run >> np.uint64(bits * n)) & np.uint64(2**bits - 1)
    return codes.reshape(*run.shape[:-1], -1)[..., :count]
