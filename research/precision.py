"""Which floating types a run uses: parameters, computation, accumulation."""

from dataclasses import dataclass

import jax.numpy as jnp

_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Precision:
    """`param` is the stored (master) type, `compute` that of activations and of weights in
    contractions, `accumulate` that of gradients summed over micro-batches. Softmax, norms and
    losses are float32 whatever is chosen here."""

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
        return jnp.dtype(self.param)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute)

    @property
    def accumulate_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.accumulate)
