"""SigLIP's loss: every pair of a picture and a text of a batch is a yes or a no by itself
(arXiv:2303.15343, algorithm 1).

Letters: B pictures and as many texts, D width of their vectors, b those of one device.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.ops.einsum import contract
from research.parallel.placement import mesh_axes, spec_entries, unsharded


def sigmoid_loss(
    images_BD: jax.Array,
    texts_BD: jax.Array,
    weights_B: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
) -> jax.Array:
    """The sum over all pairs (i, j) of -log sigmoid(z (scale x_i . y_j + bias)) in nats, with z = 1
    where i = j and -1 elsewhere. A row of weight 0 is in no pair; the mean of the paper is this
    over the number of rows that are.

    Where the batch is split over devices, each keeps its pictures and the texts go round, so that
    no device has more than b x b pairs at a time, and they are computed again for the gradient
    (section 3.3). Sums are float32.
    """
    images_BD, texts_BD = (x.astype(jnp.float32) for x in (images_BD, texts_BD))
    scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    operands = images_BD, texts_BD, weights_B, scale, bias
    names = () if unsharded() else mesh_axes(spec_entries(images_BD)[0])
    if not names:
        return _pairs(*operands[:2], weights_B, weights_B, scale, bias, True)
    rows, vectors = PartitionSpec(names), PartitionSpec(names, None)
    return jax.shard_map(
        partial(_around, names=names),
        in_specs=(vectors, vectors, rows, PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        # The sum over devices is the same on all, which is not seen through the ring.
        check_vma=False,
    )(*operands)


def _around(images_bD, texts_bD, weights_b, scale, bias, *, names: tuple[str, ...]) -> jax.Array:
    """The sum of all pairs, on one device of the ring `names`."""
    count = jax.lax.axis_size(names)
    steps = [(device, (device + 1) % count) for device in range(count)]
    total = _pairs(images_bD, texts_bD, weights_b, weights_b, scale, bias, True)

    def _step(carry, _):
        total, texts_bD, others_b = carry
        texts_bD, others_b = (jax.lax.ppermute(x, names, steps) for x in (texts_bD, others_b))
        more = _pairs(images_bD, texts_bD, weights_b, others_b, scale, bias, False)
        return (total + more, texts_bD, others_b), None

    (total, _, _), _ = jax.lax.scan(_step, (total, texts_bD, weights_b), length=count - 1)
    return jax.lax.psum(total, names)


@partial(jax.checkpoint, static_argnums=6)
def _pairs(
    images_BD: jax.Array,
    texts_SD: jax.Array,
    weights_B: jax.Array,
    weights_S: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    own: bool,
) -> jax.Array:
    """The sum over pairs of B pictures and S texts, of which i = j belong together if `own`."""
    scores_BS = scale * contract("BD,SD->BS", images_BD, texts_SD) + bias
    signs_BS = -jnp.ones(scores_BS.shape, jnp.float32)
    if own:
        signs_BS += 2 * jnp.eye(scores_BS.shape[0], dtype=jnp.float32)
    counted_BS = (weights_B[:, None] > 0) & (weights_S[None, :] > 0)
    return -jnp.sum(jnp.where(counted_BS, jax.nn.log_sigmoid(signs_BS * scores_BS), 0.0))
