"""A model whose layers are layers of another, some several times (`layer_replication`)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from research.interop.storage.checkpoint import Checkpoint, specs_by_path
from research.interop.storage.parameter import Codes, Parameter
from research.models.kinds import layer_kind, spell

Index = tuple[int, ...]


def replicated(checkpoint: Checkpoint, layers: tuple[int, ...]) -> Checkpoint:
    """The checkpoint of a model whose layer i is layer `layers[i]` of this one; () leaves it as it
    is. Nothing is copied until it is read. ValueError for layers that the base has not, and for a
    base in two stacks."""
    if not layers:
        return checkpoint
    c = checkpoint.config
    # The first layer of ModernBERT lacks a norm that the others have.
    plain = c.kind != "encoder_decoder" and (c.first_norm or 0 not in layers[1:])
    if max(layers) >= c.layers or not plain:
        raise ValueError(
            f"layer_replication wants the layers {list(layers)}, and the model is a {c.kind} of "
            f"{c.layers} that cannot have these; merge the adapter with peft"
        )
    kinds = [layer_kind(c, layer) for layer in layers]
    periods = spell(kinds) if len({layer_kind(c, n) for n in range(c.layers)}) > 1 else {}
    c = replace(c, layers=len(layers), **periods)
    specs = specs_by_path(c)
    parameters, codes = dict(checkpoint.parameters), dict(checkpoint.codes)
    for path in [path for path in parameters if path.startswith("layers/")]:
        base = parameters[path]
        parameters[path] = Parameter(
            specs[path].shape, base.dtype, base.stack, _other(base.read, layers)
        )
        if path in codes:
            forms = codes[path].forms
            own = parameters[path].indices()
            forms = {index: forms[(layers[index[0]], *index[1:])] for index in own}
            codes[path] = Codes(forms, _other(codes[path].read, layers))
    return replace(checkpoint, config=c, parameters=parameters, codes=codes)


def _other(read: Callable[[Index], Any], layers: tuple[int, ...]) -> Callable[[Index], Any]:
    """`read` of the base's layer in place of one's own."""
    return lambda index: read((layers[index[0]], *index[1:]))
