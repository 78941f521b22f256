"""A `Fit` for people: its verdict in a few words, and all of it as lines of text."""

from research.fit.report import GIB, PARTS, Fit

_NAMES = {
    "params": "parameters trained",
    "frozen": "parameters frozen",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "temporaries": "activations and temporaries",
}


def verdict(fit: Fit) -> str:
    """ "fits: 10.00 GiB of 95.00 GiB"; on a CPU, whose capacity is not known, "takes 10.00 GiB"."""
    if fit.capacity is None:
        return f"takes {_gib(fit.total)}"
    word = "fits" if fit.fits else "does not fit"
    return f"{word}: {_gib(fit.total)} of {_gib(fit.capacity)}"


def table(fit: Fit) -> str:
    """Verdict and notes, then memory, arithmetic, collectives and times, a figure a line."""
    # Axes of size 1 are left out: they split nothing.
    axes = ", ".join(f"{name}:{size}" for name, size in fit.mesh.items() if size > 1)
    lines = [f"{fit.target}: {verdict(fit)}", *fit.notes]
    lines += [_row("mesh", axes or "one device"), _row("tokens a step", f"{fit.tokens:,}")]
    lines += [*_memory(fit), *_arithmetic(fit), *_collectives(fit), *_times(fit)]
    if fit.compile_seconds:
        parts = ", ".join(f"{name} {one:.1f}" for name, one in fit.compile_seconds.items())
        lines.append(_row("seconds to make it", parts))
    return "\n".join(lines)


def _memory(fit: Fit) -> list[str]:
    names = {**_NAMES, "optimizer": "cache"} if fit.step == "decode" else _NAMES
    rows = [_row(names[part], _gib(getattr(fit, part))) for part in PARTS if getattr(fit, part)]
    rows.append(_row("total of a device", _gib(fit.total)))
    if fit.capacity is not None:
        rows.append(_row("capacity", _gib(fit.capacity)))
    if fit.host_bytes:
        rows.append(_row("in host memory", _gib(fit.host_bytes)))
    return rows


def _arithmetic(fit: Fit) -> list[str]:
    ratio = f", {fit.recompute_ratio:.3f} of 3 forwards" if fit.recompute_ratio else ""
    return [
        _row("FLOPs of the model", f"{fit.model_flops:.4g}"),
        _row("FLOPs of the hardware", f"{fit.hardware_flops:.4g}{ratio}"),
    ]


def _collectives(fit: Fit) -> list[str]:
    rows = [_row(kind, _gib(size)) for kind, size in sorted((fit.collective_bytes or {}).items())]
    if fit.collective_ratio is not None:
        rows.append(_row("collectives, of the least", f"{fit.collective_ratio:.3f}"))
    return rows


def _times(fit: Fit) -> list[str]:
    """Seconds of each resource and the bounds that follow; none on a CPU."""
    times = fit.roofline
    if times.seconds is None:
        return []
    rows = []
    for name in ("compute", "memory", "network"):
        seconds = getattr(times, name)
        if seconds is not None:
            mark = "  <- bounds" if name == times.bound else ""
            rows.append(_row(f"{name} at its peak", f"{seconds:.4g} s{mark}"))
    bounds = f"{fit.tokens_per_second:,.0f} tokens/s, MFU {fit.mfu:.1%}"
    rows.append(_row("bounds, not promises", bounds))
    if fit.cost_per_billion_tokens is not None:
        cost = f"{fit.cost_per_billion_tokens:,.2f}"
        rows.append(_row("cost of 1e9 tokens, at least", cost))
    return rows


def _row(name: str, value: str) -> str:
    return f"  {name:<30}{value:>14}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
