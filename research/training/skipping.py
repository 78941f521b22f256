"""Updates that are left out: a gradient that is NaN or infinite, or a spike of the loss.

One bad update ruins a run: Adam's moments carry it into all that follow, and into each checkpoint.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree

THEN = ("stop", "rewind")


@dataclass(frozen=True)
class SkipConfig:
    """Which updates are left out, and what follows many in a row. Parameters and the optimizer stay
    as they were, as if the run had not had the batch; the number of updates left out is logged as
    "skipped".

    nonfinite   leave out an update whose loss or gradient is NaN or infinite. Without it such a
                run stops
    sigmas      leave out one whose loss or gradient norm is so many standard deviations over the
                mean of the last `window` updates; 0 leaves out none. PaLM's spikes
                (arXiv:2204.02311, section 5.1) are of this kind
    window      updates that have been made before the first is compared
    limit       updates left out in a row, as seen when a step is logged, after which the run ends
    then        how it ends: "stop", or "rewind" to its newest checkpoint and past the batches since
    """

    nonfinite: bool = False
    sigmas: float = 0.0
    window: int = 128
    # A run that has ended there may be resumed with another end.
    limit: int = field(default=5, metadata={"resume": True})
    then: str = field(default="stop", metadata={"resume": True})

    def __post_init__(self):
        if not 0 <= self.sigmas < float("inf"):
            raise ValueError(f"skip.sigmas={self.sigmas} must be a number of at least 0")
        for name, least in (("window", 2), ("limit", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"skip.{name}={getattr(self, name)} must be at least {least}")
        if self.then not in THEN:
            raise ValueError(f"skip.then={self.then!r}; choose one of {', '.join(THEN)}")
        unused = {"window": self.sigmas, "limit": self.on, "then": self.on}
        for name, default in (("window", 128), ("limit", 5), ("then", "stop")):
            if getattr(self, name) != default and not unused[name]:
                needs = "skip.sigmas" if name == "window" else "skip.nonfinite or skip.sigmas"
                raise ValueError(
                    f"skip.{name} has no effect without {needs}; set it, or leave skip.{name} out"
                )

    @property
    def on(self) -> bool:
        """Whether any update may be left out."""
        return self.nonfinite or self.sigmas > 0


class Skipping(NamedTuple):
    """The optimizer's state beside that of the transformation inside.

    recent   [2, window] float32, loss and gradient norm of the last updates made, in no order
    made     updates made, int32 []
    skipped  updates left out, int32 []
    in_row   those of them since the last one made, int32 []
    """

    inner: Any
    recent: jax.Array
    made: jax.Array
    skipped: jax.Array
    in_row: jax.Array


def skipping(
    transform: optax.GradientTransformationExtraArgs, config: SkipConfig
) -> optax.GradientTransformationExtraArgs:
    """`transform` that makes no update where `config` says so. `update` wants `loss` and
    `grad_norm`, scalars over the whole batch, so all devices and processes decide alike."""
    window = config.window if config.sigmas else 0

    def _init(params: tree.Tree) -> Skipping:
        none = jnp.zeros((), jnp.int32)
        return Skipping(
            transform.init(params), jnp.zeros((2, window), jnp.float32), none, none, none
        )

    def _update(updates, state, params=None, *, grad_norm, loss, **more):
        now = jnp.stack([loss, grad_norm]).astype(jnp.float32)
        good = jnp.all(jnp.isfinite(now)) if config.nonfinite else jnp.bool(True)
        recent = state.recent
        if window:
            bound = jnp.mean(recent, 1) + config.sigmas * jnp.std(recent, 1)
            # A NaN is not over a bound: it is left to `nonfinite`.
            good &= (state.made < window) | ~jnp.any(now > bound)
            slot = jnp.arange(window) == state.made % window
            recent = jnp.where(good & slot[None, :], now[:, None], recent)
        new, inner = transform.update(updates, state.inner, params, grad_norm=grad_norm, **more)
        keep = lambda new, old: jnp.where(good, new, old)
        return (
            jax.tree.map(lambda u: keep(u, jnp.zeros_like(u)), new),
            Skipping(
                jax.tree.map(keep, inner, state.inner),
                recent,
                state.made + good,
                state.skipped + ~good,
                jnp.where(good, 0, state.in_row + 1),
            ),
        )

    return optax.GradientTransformationExtraArgs(_init, _update)


def counts(optimizer_state: Any) -> dict[str, jax.Array]:
    """The metrics "skipped" and "skipped_in_row" of an optimizer that leaves out updates; {} of
    another one."""
    if not isinstance(optimizer_state, Skipping):
        return {}
    return {"skipped": optimizer_state.skipped, "skipped_in_row": optimizer_state.in_row}
