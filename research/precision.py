"""The floating types of a run: parameters, computation, accumulation."""

from dataclasses import dataclass

import jax.numpy as jnp

_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Precision:
    """The section config.precision: names of floating types.

    param        type in which parameters are stored and updated
    compute      type of activations, and of weights in products
    accumulate   type in which gradients of micro-batches are summed

    Softmax, norms and losses are computed in float32 whatever is chosen here.
    """

    param: str = "float32"
    compute: str = "bfloat16"
    accumulate: str = "float32"

    def __post_init__(self):
        for field in ("param", "compute", "accumulate"):
            if getattr(self, field) not in _FLOATS:
                raise ValueError(
                    f"precision.{field}={getattr(self, field)!r}; "
                    f"choose one of {', '.join(_FLOATS)}"
                )

    @property
    def param_dtype(self) -> jnp.dtype:
        """The type of parameters."""
        return jnp.dtype(self.param)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The type of activations and products."""
        return jnp.dtype(self.compute)

    @property
    def accumulate_dtype(self) -> jnp.dtype:
        """The type of summed gradients."""
        return jnp.dtype(self.accumulate)
