"""GPTQ: the codes of the paper's own recursion, and a smaller error of the output than rounding to
nearest has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.compress.gptq import DAMPING, gptq
from research.compress.observe import output_error
from research.weights.formats import FORMATS
from research.weights.quantized import quantize_array


def correlated(inputs, seed=0):
    """Inputs [M, I] of a few directions and some noise, and their gram matrix."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * inputs, inputs // 4)) @ rng.normal(size=(inputs // 4, inputs))
    x = x + 0.3 * rng.normal(size=x.shape)
    return jnp.asarray(x.T @ x, jnp.float32)


def weight(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def flat_error(gram, leaf, w):
    return float(output_error(gram, (leaf.dense() - w).reshape(len(gram), -1)))


@pytest.mark.parametrize(
    ("format", "by_activation"), [*((format, True) for format in FORMATS), ("int4", False)]
)
def test_the_output_is_nearer_than_that_of_rounding_to_nearest(format, by_activation):
    gram, w = correlated(128), weight(128, 24)
    nearest = flat_error(gram, quantize_array(w, format, inputs=1, group=32), w)
    ours = flat_error(
        gram, gptq(w, gram, format, inputs=1, group=32, by_activation=by_activation), w
    )
    # A quarter of the inputs' directions are free to take the error.
    assert ours < 0.7 * nearest


def optimal_brain(w_IO, gram, scale_IO):
    """Codes of int4 by the recursion itself in float64: round input i, move the rest by equation 2
    of the paper, take i out of the inverse Hessian by equation 3; no blocks and no
    factorization."""
    w = np.asarray(w_IO, np.float64).copy()
    h = np.asarray(gram, np.float64)
    inverse = np.linalg.inv(h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h)))
    codes = np.zeros(w.shape, int)
    for i in range(len(w)):
        codes[i] = np.clip(np.rint(w[i] / scale_IO[i]), -7, 7)
        error = (w[i] - codes[i] * scale_IO[i]) / inverse[i, i]
        w -= inverse[i][:, None] * error[None]
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes


def test_codes_are_those_of_the_recursion():
    gram, w = correlated(192), weight(192, 8)  # two blocks of 96
    leaf = gptq(w, gram, "int4", inputs=1, group=32, by_activation=False)
    scale_IO = np.repeat(np.asarray(leaf.scale, np.float64)[:, 0], 32, axis=0)
    codes = np.asarray(leaf.dense(), np.float64) / scale_IO
    # Float32 sums may round a value across the middle between two codes, and what follows with it.
    assert (np.rint(codes) == optimal_brain(w, gram, scale_IO)).mean() > 0.97


def test_inputs_that_are_independent_are_rounded_to_nearest():
    w = weight(64, 16)
    for format in ("uint4", "nf4", "int8"):
        ours, nearest = (
            gptq(w, 3 * jnp.eye(64), format, inputs=1, group=32),
            quantize_array(w, format, inputs=1, group=32),
        )
        assert jax.tree.map(jax.typeof, ours) == jax.tree.map(jax.typeof, nearest)
        # Doubly quantized scales are not quite those that nearest codes were chosen with.
        assert np.mean(np.asarray(ours.codes) == np.asarray(nearest.codes)) > (
            0.95 if format == "nf4" else 0.999
        )


def test_inputs_that_are_several_axes_and_outputs_too():
    gram, w = correlated(64), weight(8, 8, 4, 6)
    leaf = gptq(w, gram, "nf4", inputs=2, group=32)
    assert leaf.shape == w.shape
    assert flat_error(gram, leaf, w) < flat_error(
        gram, quantize_array(w, "nf4", inputs=2, group=32), w
    )
    flat = gptq(w.reshape(64, 24), gram, "nf4", inputs=1, group=32)
    np.testing.assert_array_equal(leaf.codes.reshape(-1), flat.codes.reshape(-1))


def test_inputs_that_never_come_do_no_harm():
    gram = correlated(64).at[5].set(0).at[:, 5].set(0)
    leaf = gptq(weight(64, 16), gram, "int4", inputs=1, group=32)
    assert np.isfinite(np.asarray(leaf.dense())).all()
    nothing = gptq(weight(64, 16), 0 * gram, "int4", inputs=1, group=32)
    np.testing.assert_array_equal(
        nothing.codes, quantize_array(weight(64, 16), "int4", inputs=1, group=32).codes
    )


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="groups of 48 do not divide 64 inputs"):
        gptq(weight(64, 16), correlated(64), "int4", inputs=1, group=48)
