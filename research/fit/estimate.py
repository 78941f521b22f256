"""What a train step needs, in closed form: for looking through many settings before a few are
compiled.

Memory of a device is the sum of five parts: state (parameters and optimizer), gradients, what the
layers keep for the backward pass, one layer at work and the head at work. The last two are counted
as the compilers lay them out: both are there when the forward pass turns into the backward.
"""

import math
from dataclasses import dataclass

from research.experiment.config import Experiment
from research.fit.roofline import peak_flops
from research.fit.targets import Target
from research.fit.weigh import Weights, weigh
from research.models.config import ModelConfig
from research.models.embedding import BUCKETS
from research.ops.frozen_head import BLOCK
from research.ops.token_chunks import CHUNK
from research.parallel.axes import STORAGE_AXES
from research.training.flops import train_flops_per_token

FLOAT32 = 4  # bytes
# Arrays of a token that a layer's backward pass has at once, of the feed-forward's hidden width and
# of the model's. Counted in what libtpu 0.0.42.1 and the CUDA plugin 0.10.2 allocate;
# tests/fit/test_estimate.py holds the sums against both.
HIDDEN_ARRAYS, STATE_ARRAYS = 4, 5
# About the part of the forward pass that a remat policy computes again.
RECOMPUTED = {"none": 0.0, "dots": 0.05, "full": 0.9, "offload": 0.9}
MARGIN = 1.1  # what the memory is off by at most, see tests/fit/test_estimate.py


@dataclass(frozen=True)
class Estimate:
    """A train step in closed form; bytes are of one device.

    state       parameters and the optimizer's state
    gradients   of what is trained
    kept        what all layers keep for the backward pass
    layer       one layer at work in its backward pass
    head        the head at work
    host_bytes  what is offloaded to the host for each device
    tokens      of a step over all devices
    compute     seconds at the published peak, and `network` of gathering parameters and scattering
                gradients; None where no peak is published
    """

    state: int
    gradients: int
    kept: int
    layer: int
    head: int
    host_bytes: int
    tokens: int
    compute: float | None
    network: float | None

    @property
    def total(self) -> int:
        """Bytes of a device."""
        return self.state + self.gradients + self.kept + self.layer + self.head

    @property
    def tokens_per_second(self) -> float | None:
        """At most, were memory traffic free."""
        return None if self.compute is None else self.tokens / max(self.compute, self.network)


def estimate(experiment: Experiment, target: Target, weights: Weights | None = None) -> Estimate:
    """The estimate of a train step. `weights`, as `weigh` gives them, saves weighing again.

    ValueError for a mesh or a batch that does not fit the target's devices.
    """
    e, c = experiment, experiment.model
    w = weigh(e, target) if weights is None else weights
    rows, length = e.data.global_batch(target.count), e.data.sequence_length
    tokens = _device_tokens(e, rows, w)
    # Gradients are kept in the type that micro-batches are summed in.
    gradient = e.precision.accumulate_dtype.itemsize
    layers = c.layers + c.encoder_layers
    # Bytes of one element a token that every layer keeps.
    per_element = _itemsize(e, target) * tokens * layers
    remat = _remat(e, target)
    kept = per_element * _kept(c, remat, w, target)
    if remat == "none":
        kept += layers * _probability_bytes(e, target, w, tokens)
    compute, network = _seconds(e, target, w)
    return Estimate(
        state=w.trained + w.frozen + w.moments,
        gradients=round(w.trained * gradient / e.precision.param_dtype.itemsize),
        kept=round(kept),
        layer=round(_layer_bytes(e, target, w, tokens)),
        head=round(_head_bytes(e, target, w, tokens)),
        host_bytes=per_element * c.d_model if remat == "offload" else 0,
        tokens=rows * length,
        compute=compute,
        network=network,
    )


def _device_tokens(e: Experiment, rows: int, w: Weights) -> int:
    """Tokens of a device that go through the layers at once: its part of a micro-batch."""
    split = math.prod(w.sizes[name] for name in w.batch_axes)
    # Each device takes whole rows of each micro-batch.
    if rows % (split * e.train.accumulate):
        raise ValueError(f"a batch of {rows} is no multiple of {split} x {e.train.accumulate}")
    tokens = rows // split // e.train.accumulate * e.data.sequence_length
    # A split context takes a part of each row.
    return tokens // w.sizes["context"]


def _layer_bytes(e: Experiment, target: Target, w: Weights, tokens: int) -> float:
    """One layer at work, in its backward pass."""
    c, tensor = e.model, w.sizes["tensor"]
    itemsize, gradient = _itemsize(e, target), e.precision.accumulate_dtype.itemsize
    # `feed_tokens` runs the feed-forward over so many tokens at a time.
    fed = min(tokens, e.execution.feed_tokens or tokens)
    # A head that is wider or narrower than the model's share of it makes the attention's arrays as
    # wide as all heads together.
    width = max(_stored(c.d_model, target), c.heads * _stored(c.head_size, target) / tensor)
    activations = itemsize * (
        HIDDEN_ARRAYS * fed * _hidden(c) / tensor + STATE_ARRAYS * tokens * width
    )
    # The gradient of the largest matrix, before and after it is summed over the devices.
    gradients = 2 * gradient / itemsize * w.matrix if w.whole_model else 0
    # Relative positions take the plain form of attention: float32 scores, and the buckets of every
    # pair.
    relative = c.has_offsets
    pairs = tokens * e.data.sequence_length * FLOAT32 * (BUCKETS + c.heads / tensor)
    scores = pairs if relative else _probability_bytes(e, target, w, tokens)
    return w.layer + gradients + activations + scores


def _itemsize(e: Experiment, target: Target) -> int:
    """Bytes of an activation. The CPU's compiler widens 16-bit products, and with them what is kept
    of their results, to float32."""
    return FLOAT32 if target.platform == "cpu" else e.precision.compute_dtype.itemsize


def _remat(e: Experiment, target: Target) -> str:
    """The policy that layers follow: a CPU has no other memory to offload to and recomputes, and
    "auto" that nobody has chosen for is "none"."""
    remat = "none" if e.execution.remat == "auto" else e.execution.remat
    return "full" if remat == "offload" and target.platform == "cpu" else remat


def _probability_bytes(e: Experiment, target: Target, w: Weights, tokens: int) -> float:
    """A layer's attention probabilities on a CPU, which has no kernel that does without them."""
    c = e.model
    if target.platform != "cpu" or c.has_offsets:
        return 0.0
    # Blocks of causal queries leave out about half of the pairs, see `ops.blocked`.
    seen = 0.5 if c.kind == "decoder" else 1.0
    return seen * FLOAT32 * tokens * e.data.sequence_length * c.heads / w.sizes["tensor"]


def _head_bytes(e: Experiment, target: Target, w: Weights, tokens: int) -> float:
    """The head at work: its table as it multiplies, the gradients of that, and a chunk's logits."""
    c, tensor = e.model, w.sizes["tensor"]
    itemsize, gradient = e.precision.compute_dtype.itemsize, e.precision.accumulate_dtype.itemsize
    # Where the table is stored split, its gradient is whole for a moment, the head's and the
    # embedding's; TPU's compiler mostly has one of them gone before the other.
    stored = math.prod(size for name, size in w.sizes.items() if name in STORAGE_AXES)
    copies = 1.5 if target.platform == "tpu" else 2
    gradients = copies * gradient if w.table == "trained" and stored > 1 else 0
    # A table of codes is made dense a block at a time.
    words = min(BLOCK, c.vocab_size) if w.table == "codes" else c.vocab_size / tensor
    table = (2 * itemsize + gradients) * words * c.d_model
    # Logits and their gradient, in float32; the loss has those of so many tokens at once.
    chunk = min(e.execution.head_tokens or CHUNK, tokens)
    logits = 2 * FLOAT32 * chunk * c.vocab_size / tensor
    if not (c.head_bias or c.mlm_head):
        return table + logits
    # A head with a bias takes the plain form of the loss, whose gradients are there beside the
    # logits.
    return table + 2 * logits + gradient * c.vocab_size * c.d_model / tensor


def _hidden(c: ModelConfig) -> int:
    """Hidden elements of a token in a feed-forward layer."""
    return c.d_ff * (c.experts_per_token if c.experts else 1) + c.shared_d_ff


def _kept(c: ModelConfig, remat: str, w: Weights, target: Target) -> float:
    """Elements that a layer keeps for each token of a device."""
    if remat == "offload":
        return 0.0
    width, tensor = _stored(c.d_model, target), w.sizes["tensor"]
    # Only the input of each layer is kept.
    if remat == "full":
        return width
    # Queries, keys, values and what attention gives; then the products into the hidden width.
    heads = 2 * (c.heads + c.kv_heads) * _stored(c.head_size, target)
    dots = width + (heads + (2 if c.gated else 1) * _hidden(c)) / tensor
    if remat == "dots":
        return dots
    # Without recomputation the activation's and the hidden states are kept too.
    kept = dots + 2 * _hidden(c) / tensor
    if target.platform != "cpu":
        return kept
    # A CPU keeps the norms' results in float32, those for the gradients of matrices only where
    # somebody asks for them.
    return kept + (6 if w.whole_model else 2) * width


def _stored(size: int, target: Target) -> int:
    """A last dimension as it is stored: a TPU fills the 128 lanes of its vector unit."""
    return -(-size // 128) * 128 if target.platform == "tpu" else size


def _seconds(e: Experiment, target: Target, w: Weights) -> tuple[float | None, float | None]:
    """(compute, network) of a step."""
    peak = peak_flops(target, e.precision.compute)
    if peak is None:
        return None, None
    length = e.data.sequence_length
    # The closed form counts forward and backward, hence a third for one forward.
    forward = (
        train_flops_per_token(e.model, length) / 3 * e.data.global_batch(target.count) * length
    )
    # A forward, a backward for the activations, one for the weights if any are trained, and the
    # part of the forward that is computed again.
    # One pass is one forward's worth of products.
    passes = (3 if w.whole_model else 2) + RECOMPUTED[_remat(e, target)]
    return passes * forward / peak, w.received / target.network.inside
