"""What ggml computes otherwise than the paper that a layer is from."""

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """GELU on a CPU: by tanh, from a table of its values in float16 at the inputs that float16 has
    (ggml_table_gelu_f16 of ggml-cpu)."""
    near = x.astype(jnp.float16).astype(jnp.float32)
    return jax.nn.gelu(near, approximate=True).astype(jnp.float16).astype(x.dtype)
