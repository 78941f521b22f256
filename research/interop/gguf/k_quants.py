"""The K-quants of ggml: blocks of 256 values in 8 or 16 groups, whose scales are quantized in turn.

    Q2_K, Q4_K, Q5_K   x = d scale code - m minimum     codes 0 to 3, 15, 31
    Q3_K, Q6_K         x = d scale code                 codes -4 to 3, -32 to 31

d and m are float16, one of each a block. A group's scale is the best of several tries, by squares
weighted with the size of the values; then scales are rounded, and codes are chosen for what the
rounding left. These are the definitions of ggml's ggml-quants.c (`quantize_row_q*_K_ref`), which
llama.cpp writes without an importance matrix: sums run in the same order in float32, so that the
bytes are the same.
"""

from collections.abc import Callable

import numpy as np

from research.interop.gguf import k_blocks

BLOCK = 256
# Values below this are zeros to ggml (GROUP_MAX_EPS).
_ZERO = np.float32(1e-15)
# Values that are fitted at a time: what a try compares stays in a core's cache.
_AT_ONCE = 1 << 16
_F = np.float32


def quantize(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes, uint8 [blocks, bytes of a block], of float32 `values` [n], whole blocks in a row.
    ValueError for values that a float16 scale cannot reach."""
    blocks = np.ascontiguousarray(values, _F).reshape(-1, BLOCK)
    step = _AT_ONCE // BLOCK
    # A group of zeros divides by its range of zero; the results are replaced.
    with np.errstate(all="ignore"):
        parts = [_KINDS[kind](blocks[at : at + step]) for at in range(0, len(blocks), step)]
    return np.concatenate(parts)


def _q2(blocks: np.ndarray) -> np.ndarray:
    x = _groups(blocks, 16)
    codes, scale, minimum = _fit_affine(x, np.abs(x), 3, -0.5, 15, absolute=True)
    scales, d = _round_scales(scale, 15)
    minima, m = _round_scales(minimum, 15)
    codes = _recode(x, codes, scales, minima, d, m, 3)
    return k_blocks.pack_q2(codes, scales, minima, d, m)


def _q4(blocks: np.ndarray) -> np.ndarray:
    return k_blocks.pack_q4(*_affine_by_32(blocks, 15, -1.0, 20))


def _q5(blocks: np.ndarray) -> np.ndarray:
    return k_blocks.pack_q5(*_affine_by_32(blocks, 31, -0.5, 15))


def _affine_by_32(
    blocks: np.ndarray, top: int, first: float, tries: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(codes [blocks, 256], scales and minima [blocks, 8] of 6 bits, d and m [blocks])."""
    x = _groups(blocks, 32)
    weights = np.sqrt(_sum(x * x) / _F(32)) + np.abs(x)
    codes, scale, minimum = _fit_affine(x, weights, top, first, tries, absolute=False)
    scales, d = _round_scales(scale, 63)
    minima, m = _round_scales(minimum, 63)
    return _recode(x, codes, scales, minima, d, m, top), scales, minima, d, m


def _q3(blocks: np.ndarray) -> np.ndarray:
    x = _groups(blocks, 16)
    codes, scale = _fit_q3(x)
    largest = _of_largest(scale.reshape(-1, 16).T)
    inverse = _F(-32) / largest
    scales = _nearest(inverse[:, None] * scale.reshape(-1, 16), -32, 31)
    # Without any scale the bytes are zeros, which stand for -32.
    scales[largest == 0] = -32
    d = np.where(largest == 0, _F(0), 1 / inverse).astype(np.float16)
    return k_blocks.pack_q3(_recode_symmetric(x, codes, scales, d, 4), scales, d)


def _q6(blocks: np.ndarray) -> np.ndarray:
    x = _groups(blocks, 16)
    codes, scale = _fit_q6(x)
    largest = _of_largest(scale.reshape(-1, 16).T)
    inverse = _F(-128) / largest
    scales = _nearest(inverse[:, None] * scale.reshape(-1, 16), -128, 127)
    d = (1 / inverse).astype(np.float16)
    codes = _recode_symmetric(x, codes, scales, d, 32)
    nothing = np.abs(largest) < _ZERO
    codes[nothing], scales[nothing], d[nothing] = 0, 0, 0
    return k_blocks.pack_q6(codes, scales, d)


_KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q2_K": _q2, "Q3_K": _q3, "Q4_K": _q4, "Q5_K": _q5, "Q6_K": _q6,
}  # fmt: skip


def _groups(blocks: np.ndarray, size: int) -> np.ndarray:
    """The groups of all blocks as columns, [size, groups]: sums over a group go row by row."""
    return np.ascontiguousarray(blocks.reshape(-1, size).T)


def _sum(terms: np.ndarray) -> np.ndarray:
    """The sum of each column, from the first row to the last, in float32."""
    total = np.zeros_like(terms[0])
    for row in terms:  # numpy's own sum may add in another order
        total += row
    return total


def _nearest(x: np.ndarray, low: int, high: int) -> np.ndarray:
    """`x` rounded to the nearest integer, ties to the even one, within [low, high]; as float32."""
    # fmax takes the number where the other is NaN, as of a range of zero.
    return np.fmin(np.fmax(np.rint(x), _F(low)), _F(high))


def _of_largest(x: np.ndarray) -> np.ndarray:
    """Of each column the first value of the largest size, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]


def _fit_affine(
    x: np.ndarray, weights: np.ndarray, top: int, first: float, tries: int, absolute: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, scale, minimum) of x = scale code - minimum for each column.

    The scale is tried at (top + first + n / 10) codes to the range of the values, n from 0 to
    `tries`; scale and minimum of each try are the weighted least squares for its codes, and the
    least error is kept, of squares or `absolute`.
    """
    low, high = np.minimum(x.min(0), _F(0)), x.max(0)
    total_w, total_x = _sum(weights), _sum(weights * x)

    def error(codes: np.ndarray, scale: np.ndarray, least: np.ndarray) -> np.ndarray:
        difference = scale * codes + least - x
        return _sum(weights * (np.abs(difference) if absolute else difference * difference))

    inverse = _F(top) / (high - low)
    scale, least = 1 / inverse, low
    codes = _nearest(inverse * (x - low), 0, top)
    best = error(codes, scale, least)
    for n in range(tries + 1):
        # From the best minimum so far, as ggml does.
        inverse = (_F(first) + _F(0.1) * _F(n) + _F(top)) / (high - least)
        tried = _nearest(inverse * (x - least), 0, top)
        weighted = weights * tried
        sum_l, sum_l2, sum_xl = _sum(weighted), _sum(weighted * tried), _sum(weighted * x)
        determinant = total_w * sum_l2 - sum_l * sum_l
        new_scale = (total_w * sum_xl - total_x * sum_l) / determinant
        new_least = (sum_l2 * total_x - sum_l * sum_xl) / determinant
        # A minimum is stored as a positive number to subtract: there is none above zero.
        above_zero = new_least > 0
        new_scale = np.where(above_zero, sum_xl / sum_l2, new_scale)
        new_least = np.where(above_zero, _F(0), new_least)
        found = error(tried, new_scale, new_least)
        better = (determinant > 0) & (found < best)
        np.copyto(codes, tried, where=better)
        best = np.where(better, found, best)
        scale, least = np.where(better, new_scale, scale), np.where(better, new_least, least)
    same = high == low
    codes[:, same], scale[same], least[same] = 0, 0, low[same]
    return codes, scale, -least


def _fit_q6(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes from 0 to 63, scale) of x = scale (code - 32) for each column: the best of 19 scales
    around the one that gives the largest value the code -32, by squares weighted with x^2."""
    largest = _of_largest(x)
    weights = x * x
    weighted_x = weights * x
    best = scale = codes = None
    for n in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(_F(32) + _F(0.1) * _F(n)) / largest
        tried = _nearest(inverse * x, -32, 31)
        sum_lx, sum_l2 = _sum(weighted_x * tried), _sum(weights * tried * tried)
        fitted = np.where(sum_l2 != 0, sum_lx / sum_l2, _F(0))
        if codes is None:
            codes, scale, best = tried, fitted, fitted * sum_lx
            continue
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        np.copyto(codes, tried, where=better)
        scale, best = np.where(better, fitted, scale), np.where(better, fitted * sum_lx, best)
    nothing = np.abs(largest) < _ZERO
    codes[:, nothing], scale[nothing] = -32, 0
    return codes + _F(32), scale


def _fit_q3(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes from 0 to 7, scale) of x = scale (code - 4) for each column. Five times each code in
    turn is moved to where the least squares, weighted with x^2, want it."""
    largest = _of_largest(x)
    weights = x * x
    weighted_x = weights * x
    codes = _nearest(_F(-4) / largest * x, -4, 3)
    sum_lx, sum_l2 = _sum(weighted_x * codes), _sum(weights * codes * codes)
    for _ in range(5):
        for n, code in enumerate(codes):
            w, wx = weights[n], weighted_x[n]
            rest_lx, rest_l2 = sum_lx - wx * code, sum_l2 - w * code * code
            new = _nearest(x[n] * rest_l2 / rest_lx, -4, 3)
            new_lx, new_l2 = rest_lx + wx * new, rest_l2 + w * new * new
            better = (rest_lx > 0) & (new != code) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            np.copyto(code, new, where=better)
            sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, _F(0))
    nothing = np.abs(largest) < _ZERO
    codes[:, nothing], scale[nothing] = -4, 0
    return codes + _F(4), scale


def _round_scales(scale: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes up to `top`, [blocks, groups]; the float16 factor of each block) of positive scales
    [blocks x groups]."""
    groups = 16 if top == 15 else 8
    by_block = scale.reshape(-1, groups)
    largest = np.maximum(by_block.max(1), _F(0))
    inverse = np.where(largest > 0, _F(top) / largest, _F(0))
    codes = _nearest(inverse[:, None] * by_block, 0, top)
    return codes, (largest / _F(top)).astype(np.float16)


def _recode(
    x: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray,
    d: np.ndarray,
    m: np.ndarray,
    top: int,
) -> np.ndarray:
    """Codes [blocks, 256] that are nearest under the rounded scales and minima; those of groups
    whose scale is zero stay."""
    scale = (d.astype(_F)[:, None] * scales).reshape(-1)
    least = (m.astype(_F)[:, None] * minima).reshape(-1)
    again = _nearest((x + least) / scale, 0, top)
    return _by_block(np.where(scale != 0, again, codes))


def _recode_symmetric(
    x: np.ndarray, codes: np.ndarray, scales: np.ndarray, d: np.ndarray, half: int
) -> np.ndarray:
    """As `_recode`, without minima: codes from 0, of which `half` stands for zero."""
    scale = (d.astype(_F)[:, None] * scales).reshape(-1)
    again = _nearest(x / scale, -half, half - 1) + _F(half)
    return _by_block(np.where(scale != 0, again, codes))


def _by_block(codes: np.ndarray) -> np.ndarray:
    return codes.T.reshape(-1, BLOCK)
