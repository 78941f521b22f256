"""Cases in which attention kernels have failed, over every implementation that this machine can run
or interpret: heads of each preset's size, lengths off the tile, windows of one token and of more
than the row, rows of padding alone, and scores far below zero."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import blocked
from research.ops.attention import Visibility, reference
from research.ops.kernels import flash, splash
from tests.ops.test_attention_on_gpu import packed

RUN = {
    "splash": partial(splash.attend, interpret=True),
    "flash": partial(flash.attend, interpret=True),
    "blocked": blocked.attend,
}
# Documents that end on and off a tile and of one token; a row of padding alone.
ROWS = {128: [[64, 1, 40], []], 150: [[127, 1, 20], []], 160: [[159], []]}
# Head size, query heads a key head, length, window. The sizes are those of the presets.
CASES = {
    "splash": [(64, 3, 128, 0), (80, 1, 128, 1), (96, 1, 128, 30), (128, 7, 128, 1000),
               (192, 1, 128, 0), (256, 2, 128, 0)],
    "flash": [(64, 3, 128, 0), (80, 1, 150, 0), (96, 1, 150, 0), (128, 7, 128, 0),
              (192, 1, 128, 0), (256, 2, 128, 0)],
    "blocked": [(64, 3, 128, 0), (80, 1, 160, 1), (96, 1, 160, 30), (128, 7, 128, 1000),
                (192, 1, 128, 0), (256, 2, 128, 0)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in CASES for case in CASES[name]], ids=str
)
def test_an_implementation_is_the_reference(name, case):
    H, G, T, window = case
    positions, segments = packed(ROWS[T], T)
    seen = Visibility(positions, positions, segments, segments, True, window, packed=True)
    q, k, v = (
        jax.random.normal(jax.random.key(n), (2, T, heads, H)) for n, heads in enumerate((G, 1, 1))
    )
    # Scores of -120 and less, which overflow where a kernel subtracts no largest one.
    q, k = q.at[..., 0].set(-120.0 * H**0.5), k.at[..., 0].set(1.0)
    real = segments[..., None, None] > 0

    def both(function):
        def loss(*qkv):
            out = function(*qkv, seen, H**-0.5)
            return jnp.sum(jnp.where(real, jnp.sin(out), 0)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ((_, out), got), ((_, wanted), want) = both(RUN[name]), both(reference)
    # Padding is never read, but a NaN in it would spread.
    assert all(np.isfinite(x).all() for x in (out, *got))
    np.testing.assert_allclose(*(np.where(real, x, 0) for x in (out, wanted)), atol=2e-4)
    # Relative to the largest of each gradient, or to 10: the first component of a query is in the
    # hundreds, and float32 scores of 120 are exact to some 1e-5.
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * max(10.0, np.abs(b).max()))


def test_every_head_size_of_a_preset_has_a_case():
    from research.models.presets import PRESETS

    sizes = {config.head_size for config in PRESETS.values()}
    for name, cases in CASES.items():
        assert sizes == {case[0] for case in cases}, name
