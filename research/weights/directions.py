"""Directions projected out of a weight, so that a model can neither read nor write them there."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def without_directions(w_VD: jax.Array, directions_KD: jax.Array) -> jax.Array:
    """The weight less its part along the span of the directions: w - (w Q) Q^T with an orthonormal
    basis Q of them, in float32 and then of the weight's dtype (Bolukbasi et al. 2016,
    arXiv:1607.06520, section 6, for all rows).

    Every row of the result is orthogonal to every direction; doing it twice changes nothing, and
    rows that were orthogonal stay as they are. ValueError for directions of another width, and for
    as many as the width or more.
    """
    count, width = directions_KD.shape
    if width != w_VD.shape[-1] or count >= width:
        raise ValueError(
            f"{count} directions of width {width} cannot be projected out of rows of width "
            f"{w_VD.shape[-1]}; give fewer than that many of its width"
        )
    # Of a singular value near 0 the vector is noise: directions that repeat others span no more.
    _, sizes_K, basis_KD = jnp.linalg.svd(directions_KD.astype(jnp.float32), full_matrices=False)
    kept_K = sizes_K > 1e-5 * jnp.maximum(sizes_K[0], 1e-30)
    basis_KD = basis_KD * kept_K[:, None]
    rows_VD = w_VD.astype(jnp.float32)
    along_VK = jnp.einsum("VD,KD->VK", rows_VD, basis_KD)
    return (rows_VD - jnp.einsum("VK,KD->VD", along_VK, basis_KD)).astype(w_VD.dtype)


def main_directions(differences_ND: jax.Array, count: int) -> jax.Array:
    """The `count` directions along which differences of pairs of words are largest, [count, D]: the
    first right singular vectors. Differences are not centred, as their mean is what is sought.
    ValueError for fewer pairs than directions."""
    if not 1 <= count <= len(differences_ND):
        raise ValueError(
            f"{len(differences_ND)} pairs of words have from one to so many directions, not {count}"
        )
    scaled_ND = differences_ND.astype(jnp.float32)
    norms_N = jnp.linalg.norm(scaled_ND, axis=-1)
    scaled_ND = scaled_ND / jnp.maximum(norms_N, 1e-30)[:, None]
    return jnp.linalg.svd(scaled_ND, full_matrices=False)[2][:count]


def random_directions(seed: int, count: int, width: int) -> jax.Array:
    """Directions by lot [count, width]: what projecting any direction out costs and changes."""
    return jax.random.normal(jax.random.key(seed), (count, width))


def pair_differences(
    table_VD: jax.Array, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> jax.Array:
    """Of each pair of words, as ids, the mean row of the first less that of the second, float32
    [N, D]."""
    rows = []
    for first, second in pairs:
        one_D, other_D = (
            jnp.mean(table_VD[jnp.array(ids)].astype(jnp.float32), axis=0)
            for ids in (first, second)
        )
        rows.append(one_D - other_D)
    return jnp.stack(rows)
