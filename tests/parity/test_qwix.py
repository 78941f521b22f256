"""Our leaves as qwix's own arrays."""

import jax
import numpy as np
import pytest

from research.weights.qarray import from_qarray, to_qarray
from research.weights.quantized import quantize_array

qwix = pytest.importorskip("qwix", reason="qwix is not installed")


@pytest.mark.parametrize("format", ["int8", "int4", "uint4", "nf4", "fp8_e4m3"])
def test_qwix_dequantizes_our_leaves(format):
    w = quantize_array(jax.random.normal(jax.random.key(0), (128, 6)), format, inputs=1, group=64)
    array = qwix.QArray(**to_qarray(w))
    np.testing.assert_allclose(qwix.dequantize(array), w.dense(), rtol=1e-6)
    np.testing.assert_array_equal(from_qarray(array).dense(), w.dense())
