"""The bytes of K-quants' blocks, as ggml's ggml-common.h lays them out (`block_q2_K` and so on).

Codes come as [blocks, 256], scales and minima as [blocks, groups], all whole numbers of any type,
and the factors d and m as float16 [blocks]. Each function returns uint8 [blocks, bytes].
"""

import numpy as np


def pack_q2(
    codes: np.ndarray, scales: np.ndarray, minima: np.ndarray, d: np.ndarray, m: np.ndarray
) -> np.ndarray:
    """16 bytes of scales and minima, 64 of codes, d and m."""
    sides = _bytes(scales) | _bytes(minima) << 4
    return _join(sides, _quarters(_bytes(codes)), _half(d), _half(m))


def pack_q3(codes: np.ndarray, scales: np.ndarray, d: np.ndarray) -> np.ndarray:
    """32 bytes of the codes' third bits, 64 of their lower ones, 12 of scales from -32 on, d."""
    codes = _bytes(codes)
    # Bit n of byte k belongs to code 32 n + k.
    high = _bits(codes.reshape(-1, 8, 32) >> 2)
    return _join(high, _quarters(codes & 3), _scales_q3(_bytes(scales + 32)), _half(d))


def pack_q4(
    codes: np.ndarray, scales: np.ndarray, minima: np.ndarray, d: np.ndarray, m: np.ndarray
) -> np.ndarray:
    """d and m, 12 bytes of scales and minima, 128 of codes."""
    sides = _sides_by_6(_bytes(scales), _bytes(minima))
    return _join(_half(d), _half(m), sides, _halves(_bytes(codes)))


def pack_q5(
    codes: np.ndarray, scales: np.ndarray, minima: np.ndarray, d: np.ndarray, m: np.ndarray
) -> np.ndarray:
    """d and m, 12 bytes of scales and minima, 32 of the codes' fifth bits, 128 of the others."""
    codes, sides = _bytes(codes), _sides_by_6(_bytes(scales), _bytes(minima))
    high = _bits(codes.reshape(-1, 8, 32) >> 4)
    return _join(_half(d), _half(m), sides, high, _halves(codes & 15))


def pack_q6(codes: np.ndarray, scales: np.ndarray, d: np.ndarray) -> np.ndarray:
    """128 bytes of the codes' lower four bits, 64 of their upper two, 16 of signed scales, d."""
    halves = _bytes(codes).reshape(-1, 2, 4, 32)
    # Quarters 0 and 2 share bytes, and 1 and 3.
    low = halves[:, :, :2] & 15 | (halves[:, :, 2:] & 15) << 4
    high = _quarters(_bytes(codes) >> 4)
    return _join(low.reshape(-1, 128), high, scales.astype(np.int8).view(np.uint8), _half(d))


def _bytes(x: np.ndarray) -> np.ndarray:
    return x.astype(np.uint8)


def _half(x: np.ndarray) -> np.ndarray:
    if not np.isfinite(x).all():
        raise ValueError("it has values that a scale in float16 cannot reach; choose BF16 or F32")
    return x.astype("<f2").view(np.uint8).reshape(-1, 2)


def _join(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=1)


def _quarters(codes: np.ndarray) -> np.ndarray:
    """Codes of 2 bits: a byte has those at k, k + 32, k + 64 and k + 96 of 128."""
    c = codes.reshape(-1, 2, 4, 32)
    packed = c[:, :, 0] | c[:, :, 1] << 2 | c[:, :, 2] << 4 | c[:, :, 3] << 6
    return packed.reshape(-1, 64)


def _halves(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits: a byte has those at k and k + 32 of 64."""
    c = codes.reshape(-1, 4, 2, 32)
    return (c[:, :, 0] | c[:, :, 1] << 4).reshape(-1, 128)


def _bits(bits: np.ndarray) -> np.ndarray:
    """[blocks, 8, 32] of 0 and 1 as bytes [blocks, 32], the first row in the lowest bits."""
    return np.packbits(bits, axis=1, bitorder="little").reshape(-1, 32)


def _scales_q3(scales: np.ndarray) -> np.ndarray:
    """16 scales of 6 bits: the lower four of n and n + 8 share byte n of the first 8, the upper two
    of n, n + 4, n + 8 and n + 12 byte n of the last 4."""
    low = scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4
    high = scales.reshape(-1, 4, 4) >> 4
    return _join(low, high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6)


def _sides_by_6(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """8 scales and 8 minima of 6 bits: the first four of each have a byte, in whose upper two bits
    are those of the last four, and the lower four bits of these share the last four bytes."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minima[:, :4] | minima[:, 4:] >> 4 << 6
    return _join(first, second, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4)
