"""Leaves as the fields of qwix's QArray: its own equation gives the dense weight, and the way back
the leaf."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.weights.formats import FORMATS
from research.weights.qarray import from_qarray, to_qarray
from research.weights.quantized import quantize_array


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.qtype])
@pytest.mark.parametrize(
    ("shape", "inputs", "stacked"), [((64, 2, 6), 1, 0), ((2, 64, 6), 1, 1), ((4, 16, 6), 2, 0)]
)
def test_qwix_equation_gives_the_dense_weight_and_the_way_back_the_leaf(
    format, shape, inputs, stacked
):
    w = quantize_array(
        jax.random.normal(jax.random.key(0), shape),
        format,
        inputs=inputs,
        stacked=stacked,
        group=32,
    )
    fields = to_qarray(w)
    qvalue, scale = np.asarray(fields["qvalue"]).astype(np.float32), np.asarray(fields["scale"])
    zero = (
        0.0 if fields["zero_point"] is None else np.asarray(fields["zero_point"]).astype(np.float32)
    )
    if format == "nf4":
        qvalue = FORMATS["nf4"].book[qvalue.astype(int)]
    tiles = [big // small for big, small in zip(qvalue.shape, scale.shape)]
    assert max(tiles) == 32 and sorted(tiles)[:-1] == [1] * (len(tiles) - 1)

    def spread(x):
        for axis, times in enumerate(tiles):
            x = np.repeat(x, times, axis)
        return x

    zero = spread(zero) if isinstance(zero, np.ndarray) else zero
    np.testing.assert_array_equal(((qvalue - zero) * spread(scale)).reshape(w.shape), w.dense())
    again = from_qarray(SimpleNamespace(**fields), stacked=stacked)
    np.testing.assert_array_equal(again.dense().reshape(w.shape), w.dense())
    np.testing.assert_array_equal(again.codes, w.codes)


def test_what_qwix_or_we_have_not_is_named():
    w = quantize_array(jnp.ones((64, 2)), "fp4", inputs=1)
    with pytest.raises(ValueError, match="fp4 is no type of qwix's"):
        to_qarray(w)
    fields = to_qarray(quantize_array(jnp.ones((64, 2)), "int8", inputs=1, group=32))
    with pytest.raises(ValueError, match="'mxfp8' has no leaf"):
        from_qarray(SimpleNamespace(**{**fields, "qtype": "mxfp8"}))
    with pytest.raises(ValueError, match="tiles of axis 1 alone"):
        from_qarray(SimpleNamespace(**fields), stacked=1)
