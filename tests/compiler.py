"""XLA's options that make tests compile sooner."""

import functools

import jax
import jax.numpy as jnp

# XLA's older code for fused operations compiles in 0.4 of the time.
OLDER_FUSIONS = ("xla_cpu_use_fusion_emitters", False)


@functools.cache
def known(name: str, value: bool) -> bool:
    """True if this version's compiler has the option."""
    try:
        jax.jit(lambda: jnp.zeros(1)).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def older_fusions_flag() -> str:
    """The option as a word of XLA_FLAGS, for processes that a test starts; nothing where it is
    unknown, for a flag that XLA does not know ends the process."""
    name, value = OLDER_FUSIONS
    return f"--{name}={str(value).lower()}" if known(name, value) else ""
