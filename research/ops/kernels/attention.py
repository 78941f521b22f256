"""Which attention kernel serves a case: splash on TPU, flash on GPU, or none, which is the XLA
reference."""

from collections.abc import Callable

import jax

from research.devices.backend import platform
from research.ops.kernels import flash, splash
from research.ops.kernels.notes import warn_once


def choose(
    implementation: str, q_BTNH, k_BSKH, visibility, bias_BNTS, softcap: float = 0.0
) -> Callable | None:
    """The kernel that serves the case, called (q, k, v, visibility, scale, softcap); None for the
    XLA reference.

    "auto" takes the one made for the platform of the mesh, and where that one refuses says why,
    once. "splash" or "flash" raises NotImplementedError with the reason instead, also on a mesh of
    another platform than its own; without a mesh it is taken at its word, so that a program can be
    lowered for a device that is not here.
    """
    at = platform()
    if implementation == "auto":
        # The CPU has no kernel of its own.
        kernel = {"tpu": splash, "gpu": flash}.get(at)
        if kernel is None:
            return None
        reason = _refusal(kernel, q_BTNH, k_BSKH, visibility, bias_BNTS, softcap)
        # Decoding over a cache is never packed, and the reference is right for it: no warning
        # there.
        if reason and (visibility.packed or visibility.shared):
            warn_once(
                f"attention on {at} takes XLA's reference, whose memory grows with length squared: "
                f"{reason}"
            )
        return None if reason else kernel.attend
    kernel = {"splash": splash, "flash": flash}[implementation]
    reason = _refusal(kernel, q_BTNH, k_BSKH, visibility, bias_BNTS, softcap)
    if at != kernel.PLATFORM and not jax.sharding.get_abstract_mesh().empty:
        reason = f"the mesh is of {at} devices and it wants {kernel.PLATFORM}"
    if reason:
        raise NotImplementedError(
            f"attention {implementation!r} cannot serve this case: {reason}; "
            "or set config.execution.attention to 'auto' or 'xla'"
        )
    return kernel.attend


def _refusal(kernel, q_BTNH, k_BSKH, visibility, bias_BNTS, softcap) -> str | None:
    # First what no kernel has or only one; then each kernel's own conditions.
    if softcap and not kernel.SOFT_CAP:
        return f"it has no soft cap and model.attention_softcap={softcap}"
    if visibility.shared:
        return (
            "a prefix or a prompt is seen by every document of a row and the kernels know "
            "documents apart"
        )
    if bias_BNTS is not None:
        return (
            "the scores have a bias and the kernels take none; use other positions than 'relative'"
        )
    return kernel.refusal(q_BTNH, k_BSKH, visibility)
