"""Which attention kernel serves a case: the first of an ordered list that does not refuse it, or
none, which is XLA's form."""

from collections.abc import Callable

import jax

from research.devices.backend import card_capability, card_kind, platform
from research.ops.kernels import cudnn, flash, mosaic, splash
from research.ops.kernels.notes import CannotServe, tell_once, warn_once

KERNELS = {"mosaic": mosaic, "cudnn": cudnn, "flash": flash, "splash": splash}
# What "auto" tries in order: platform, major compute capability, which visibility (None for any),
# names. A card has the kernels that were measured on its kind, fastest first, and then `flash`,
# which Triton compiles for every card. On Blackwell mosaic and cuDNN were not timed, and can be
# taken by name.
ORDER: list[tuple[str, int | None, Callable | None, tuple[str, ...]]] = [
    ("tpu", None, None, ("splash",)),
    ("gpu", 9, cudnn.has_few, ("cudnn", "mosaic", "flash")),
    ("gpu", 9, None, ("mosaic", "cudnn", "flash")),
    ("gpu", None, None, ("flash",)),
]
# What a later choice costs where an earlier one is refused, on an H100 (see `mosaic`, `cudnn`).
COSTS = {"flash": "; it takes about three times as long as mosaic"}


def choose(
    implementation: str,
    q_BTNH,
    k_BSKH,
    visibility,
    bias,
    softcap: float = 0.0,
    sinks: bool = False,
) -> Callable | None:
    """The kernel that serves the case, called (q, k, v, visibility, scale, softcap), and with
    `sinks` also `sinks_N`; None for XLA's form.

    "auto" takes the first of `ORDER` for the mesh's devices that does not refuse, and on a GPU says
    once which and why. The name of a kernel raises `CannotServe` with the reason instead,
    also on a mesh of another platform than its own; without a mesh it is taken at its word, so that
    a program can be lowered for a device that is not here.
    """
    case = q_BTNH, k_BSKH, visibility, bias, softcap, sinks
    if implementation == "auto":
        return _first(case, visibility.packed or visibility.shared)
    kernel = KERNELS[implementation]
    reason = _refusal(kernel, *case)
    at = platform()
    if at != kernel.PLATFORM and not jax.sharding.get_abstract_mesh().empty:
        reason = f"the mesh is of {at} devices and it wants {kernel.PLATFORM}"
    if reason:
        raise CannotServe(
            f"attention {implementation!r} cannot serve this case: {reason}; "
            "or set config.execution.attention to 'auto' or 'xla'"
        )
    return kernel.attend


def _first(case: tuple, telling: bool) -> Callable | None:
    """The first kernel in order that serves the case; with `telling`, the choice is told. (Decoding
    over a cache has no kernel anywhere, and nothing to tell.)"""
    at, refusals = platform(), []
    for name in _names(at, visibility=case[2]):
        reason = _refusal(KERNELS[name], *case)
        if reason is None:
            if at == "gpu" and telling:
                told = f" ({'; '.join(refusals)}){COSTS.get(name, '')}" if refusals else ""
                tell_once(f"attention on {card_kind() or at}: {name}{told}")
            return KERNELS[name].attend
        refusals.append(f"not {name}: {reason}")
    if refusals and telling:
        warn_once(
            f"attention on {at} takes XLA's form, slower than a kernel: " + "; ".join(refusals)
        )
    return None


def _names(at: str, visibility) -> tuple[str, ...]:
    """The row of `ORDER` for the mesh's devices and a visibility."""
    capability = card_capability() if at == "gpu" else None
    for where, major, serves, names in ORDER:
        on_card = major is None or (capability is not None and major == capability[0])
        if where == at and on_card and (serves is None or serves(visibility)):
            return names
    return ()


def _refusal(kernel, q_BTNH, k_BSKH, visibility, bias, softcap, sinks) -> str | None:
    # First what no kernel has or only one; then each kernel's own conditions.
    if softcap and not kernel.SOFT_CAP:
        return f"it has no soft cap and model.attention_softcap={softcap}"
    if sinks and not kernel.SINKS:
        return "it has no sinks and model.attention_sinks=True"
    if visibility.shared:
        return (
            "a prefix or a prompt is seen by every document of a row and the kernels know "
            "documents apart"
        )
    if visibility.blocks is not None:
        return (
            "soft tokens see their block whole and the kernels know masks by order alone; it is so "
            "under model.image.attention='block' and 'prefix'"
        )
    if bias is not None:
        return (
            "the scores have a bias and the kernels take none; use other positions than 'relative'"
        )
    return kernel.refusal(q_BTNH, k_BSKH, visibility)
