"""IA3 (arXiv:2205.05638, section 3.3): learnt factors that multiply a weight's inputs or outputs.
The weight may be an array or any leaf.

on outputs   y = l * (x W)      keys and values
on inputs    y = (l * x) W      the down projection of the feed-forward layer
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.ops.einsum import einsum, take
from research.ops.grouped import grouped
from research.ops.kernels.equation import parse
from research.parallel.placement import gather
from research.scopes import scope
from research.weights.matrices import Axes, split_axes
from research.weights.wrapper import Wrapper, dense, gathered

# The places of the paper: the keys and values of each attention, and the hidden units of the
# feed-forward layer, which are the inputs of its second matrix.
OUTPUTS = r"(.*/)?layers/(attention|cross)/(key|value)"
INPUTS = r"(.*/)?layers/mlp/down"


@partial(jax.tree_util.register_dataclass, data_fields=["gain"], meta_fields=["on_inputs"])
@dataclass(frozen=True)
class Ia3Adapter:
    """The trained factors. `gain` has the weight's axes, with size 1 along those that it does not
    scale: [L, 1, K, H] for the outputs of keys [L, D, K, H], [L, F, 1] for the inputs of a down
    projection [L, F, D]. `on_inputs` says which side it multiplies."""

    gain: jax.Array
    on_inputs: bool


@partial(jax.tree_util.register_dataclass, data_fields=["base", "adapter"], meta_fields=[])
@dataclass(frozen=True)
class Ia3(Wrapper):
    """A weight with factors on its inputs or outputs. `base` is an array or another leaf."""

    base: Any
    adapter: Ia3Adapter

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the scaled weight, in the dtype of `x`. The activations are scaled, so
        the base may stay quantized."""
        of_x, of_w, of_y = parse(eqn)
        if self.adapter.on_inputs:
            return einsum(eqn, _times(x, self._along(of_w, of_x)), self.base)
        return _times(einsum(eqn, x, self.base), self._along(of_w, of_y))

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]. As a head the table has inputs D and
        outputs V, and its factors act on the same axes here."""
        rows = take(self.base, ids, jnp.float32)
        if self.adapter.on_inputs:
            return _times(rows, gather(self.adapter.gain).reshape(*(1,) * ids.ndim, -1))
        return _times(rows, take(self.adapter.gain, ids, jnp.float32))

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix, [M, O]."""
        gain_EX = self.adapter.gain.reshape(self.adapter.gain.shape[0], -1)
        # Rows are sorted by expert, so each expert's factors are repeated for its rows.
        gain_MX = jnp.repeat(gain_EX, sizes, axis=0, total_repeat_length=x.shape[0])
        multiply = partial(grouped, w=self.base, sizes_E=sizes, implementation=implementation)
        if self.adapter.on_inputs:
            return multiply(_times(x, gain_MX))
        return _times(multiply(x), gain_MX)

    def gathered(self) -> "Ia3":
        """This leaf with the mesh axes that only store it gathered."""
        return replace(self, base=gathered(self.base), adapter=jax.tree.map(gather, self.adapter))

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight times its factors as an array; works on stacked weights too, since `gain` has
        the weight's axes."""
        return (dense(self.base) * self.adapter.gain.astype(jnp.float32)).astype(dtype)

    def _along(self, of_w: str, of_x: str) -> jax.Array:
        """The factors with the axes of the activations `of_x` that they multiply, of size 1 for the
        letters that a weight `of_w` does not have."""
        # Letters pair axes of the factors with those of the activations: squeeze what the
        # activations lack, sort the rest into their order, then add axes of size 1 for batch and
        # time.
        kept = "".join(letter for letter in of_w if letter in of_x)
        gone = tuple(at for at, letter in enumerate(of_w) if letter not in of_x)
        gain = jnp.squeeze(gather(self.adapter.gain), gone)
        gain = jnp.transpose(gain, [kept.index(letter) for letter in of_x if letter in kept])
        return jnp.expand_dims(gain, [at for at, letter in enumerate(of_x) if letter not in kept])


def ia3_specs(
    specs: tree.Tree, outputs: str | None = OUTPUTS, inputs: str | None = INPUTS
) -> tree.Tree:
    """Adapters as specs: a tree of `Ia3Adapter` at the paths of the weights that get one, with axes
    derived from the weights'. All factors start at 1, so a fresh adapter changes nothing.

    `outputs` and `inputs` are regexes of names, or of whole paths, of the weights whose outputs or
    inputs are multiplied; None chooses no weight. ValueError for a regex that matches nothing, for
    a parameter that is not a matrix, and for a weight that both match.
    """
    by_path, adapters = tree.paths(specs), {}
    for pattern, on_inputs in ((outputs, False), (inputs, True)):
        for path in () if pattern is None else tree.match(pattern, by_path):
            if path in adapters:
                raise ValueError(
                    f"{path} matches both outputs={outputs!r} and inputs={inputs!r}; let only one "
                    "match it"
                )
            adapters[path] = Ia3Adapter(_gain(path, by_path[path], on_inputs), on_inputs)
    return tree.unflatten(adapters)


def _gain(path: str, w: Any, on_inputs: bool) -> Any:
    stack, inner, outer = split_axes(path, w)
    # Size 1 along the side that is not scaled, so that `gain` broadcasts against the weight.
    inner, outer = (inner, _single(outer)) if on_inputs else (_single(inner), outer)
    # A table's axes are [outputs, inputs]; every other weight's are [inputs, outputs].
    axes = [*stack, *(outer + inner if w.inputs < 0 else inner + outer)]
    return replace(
        w,
        shape=tuple(s for s, _ in axes),
        axes=tuple(a for _, a in axes),
        init=_ones,
        inputs=1,
        kind="vector",  # with the axes of a matrix
    )


def _single(axes: Axes) -> Axes:
    return [(1, "vector")] * len(axes)


def _ones(key, shape, dtype, sharding):
    return jnp.ones(shape, dtype, out_sharding=sharding)


@scope("adapter")
def _times(x: jax.Array, gain: jax.Array) -> jax.Array:
    """x * gain in float32, so that the gradient of the factors, a sum over all tokens, is a float32
    sum."""
    return (x.astype(jnp.float32) * gain.astype(jnp.float32)).astype(x.dtype)
