"""Adapters as peft writes them, adapter_config.json and adapter_model.safetensors, to leaves for
our tree.

    lora_A [R, in], lora_B [out, R], lora_magnitude_vector [out]    LoRA, rsLoRA, DoRA
    lora_embedding_A [R, V], lora_embedding_B [D, R]                LoRA on a table
    ia3_l [out, 1] or [1, in]                                       IA3 on outputs or inputs
    prompt_embeddings [n, D] or [n, 2 L K H]                        prompt and prefix tuning
    any other tensor                                                a whole weight (modules_to_save)

Layers of one stacked weight that have no adapter get one that changes nothing, lower ranks are
filled up with zeros.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.interop.huggingface.families.table import family_of
from research.interop.peft.config import IA3, LORA, read_config
from research.interop.peft.ia3 import read_ia3
from research.interop.peft.lora import read_lora
from research.interop.peft.prompts import read_prompts
from research.interop.peft.tensors import Found, sort_tensors
from research.interop.storage.checkpoint import (
    Checkpoint,
    Codes,
    Parameter,
    specs_by_path,
    stacked_axes,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import letter_sizes, pieces
from research.interop.storage.modules import arranged, modules
from research.interop.storage.safetensors import open_safetensors
from research.models.config import ModelConfig
from research.models.spec import Spec, shardings, zeros
from research.parallel.axes import AxisRules
from research.weights.ia3 import Ia3Adapter
from research.weights.lora import LoraAdapter
from research.weights.rules import is_leaf

STEM = "adapter_model"


def read_peft(folder: Path, checkpoint: Checkpoint) -> tuple[Checkpoint, tree.Tree]:
    """The checkpoint as the adapter in a folder wants it, and the adapters by path of our tree, as
    numpy arrays.

    That checkpoint has the adapter's whole weights in the place of its own, and a head apart from
    the token table where only one of the two is adapted. ValueError for what is not supported, and
    an adapter that was made for another base.
    """
    config = read_config(folder)
    if not (folder / f"{STEM}.safetensors").is_file():
        raise ValueError(
            f"{folder} has no {STEM}.safetensors; pickled adapters are never read: save it again "
            "with peft"
        )
    tensors = open_safetensors(folder, STEM)
    try:
        if config.kind not in (LORA, IA3):
            return checkpoint, read_prompts(config, tensors, checkpoint.config)
        family = family_of(checkpoint.config)
        found = sort_tensors(config, tensors, checkpoint.config, family)
        checkpoint = _untied(found, checkpoint, family)
        known = modules(checkpoint.config, family)
        for name in sorted(found.parts.keys() - known.keys()):
            plain = name.removeprefix(family.prefix)
            raise ValueError(
                f"the adapter has the module {plain}, which {checkpoint.source} has not"
            )
        checkpoint = _with_whole_weights(found, checkpoint, family)
        if config.kind == IA3:
            return read_ia3(found, known, checkpoint)
        return checkpoint, read_lora(found, known, checkpoint.config)
    except ValueError as error:
        wanted = config.base or "the model that it was made for"
        raise ValueError(f"{folder} does not fit: {error}; load {wanted} with it") from None


def place_adapters(
    adapters: tree.Tree, c: ModelConfig, mesh: jax.sharding.Mesh | None, rules: AxisRules
) -> tree.Tree:
    """The adapters on the devices, each beside its weight: its axes are split as the weight's
    are."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, adapters)
    specs, leaves = specs_by_path(c), tree.paths(adapters, is_leaf)
    places = {
        path: shardings(_spec_of(leaf, specs.get(path)), mesh, rules)
        for path, leaf in leaves.items()
    }
    return jax.device_put(adapters, tree.unflatten(places))


def _spec_of(leaf: Any, w: Spec | None) -> Any:
    """The leaf with a spec for each of its arrays."""
    if w is None:
        return Spec(leaf.shape, ("virtual",) + ("vector",) * (leaf.ndim - 1), zeros)
    if isinstance(leaf, Ia3Adapter):
        axes = tuple(axis if size > 1 else "vector" for axis, size in zip(w.axes, leaf.gain.shape))
        return replace(leaf, gain=Spec(leaf.gain.shape, axes, zeros))
    if not isinstance(leaf, LoraAdapter):
        return w
    stack, own = w.axes[: leaf.scale.ndim], w.axes[leaf.scale.ndim :]
    at = leaf.a.ndim - leaf.scale.ndim - 1
    inner, outer = (own[-1:], own[:-1]) if leaf.table else (own[:at], own[at:])
    return replace(
        leaf,
        a=Spec(leaf.a.shape, (*stack, *inner, "rank"), zeros),
        b=Spec(leaf.b.shape, (*stack, "rank", *outer), zeros),
        scale=Spec(leaf.scale.shape, stack, zeros),
        magnitude=None
        if leaf.magnitude is None
        else Spec(leaf.magnitude.shape, (*stack, *outer), zeros),
    )


def _untied(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with a head of its own where the adapter has a table that is the head too: in
    peft it adapts one use of it. A classifier that only the adapter has makes the model a
    classifier."""
    c, parameters, codes = checkpoint.config, dict(checkpoint.parameters), dict(checkpoint.codes)
    if c.kind == "encoder" and not c.labels and "classifier.weight" in found.whole:
        labels = found.tensors.names[found.whole["classifier.weight"]].shape[0]
        c = replace(c, labels=labels)
    table = next(
        rule.name.removesuffix(".weight") for rule in family.rules(c) if rule.path == "embed/table"
    )
    saved = {name for name, actual in found.whole.items() if ".base_layer." not in actual}
    touched = {table, "lm_head"} & (
        found.parts.keys() | {name.removesuffix(".weight") for name in saved}
    )
    if c.tied and touched and (c.kind != "encoder" or c.mlm_head):
        if c.kind != "decoder":
            kind = family.model_types[0]
            raise ValueError(
                f"an adapter on {touched.pop()}, which a {kind} uses in several places, is not "
                "supported"
            )
        c = replace(c, tied=False)
        for held in (parameters, codes):
            held |= {"head/table": held["embed/table"]} if "embed/table" in held else {}
    return replace(checkpoint, config=c, parameters=parameters, codes=codes)


def _with_whole_weights(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with the adapter's own weights in the place of the base's."""
    c, sizes = checkpoint.config, letter_sizes(checkpoint.config)
    specs, left = specs_by_path(c), dict(found.whole)
    slices: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for piece in pieces(
        family.rules(c), {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
    ):
        if piece.name in left:
            values = arranged(
                found.tensors.read(left.pop(piece.name)), piece.pattern, sizes, piece.name
            )
            for part, path in enumerate(piece.paths):
                slices.setdefault(path, {})[piece.index] = (
                    values[part] if len(piece.paths) > 1 else values
                )
    for name, actual in left.items():
        if not c.tied or name != "lm_head.weight" or ".base_layer." not in actual:
            raise ValueError(
                f"the adapter has the tensor {actual!r}, which {checkpoint.source} has no place for"
            )
    parameters, codes = dict(checkpoint.parameters), dict(checkpoint.codes)
    for path, own in slices.items():
        parameters[path] = _replaced(parameters.get(path), own, specs[path])
        if path in codes:
            codes[path] = Codes({**codes[path].forms, **dict.fromkeys(own)}, codes[path].read)
    return replace(checkpoint, parameters=parameters, codes=codes)


def _replaced(
    base: Parameter | None, own: dict[tuple[int, ...], np.ndarray], spec: Spec
) -> Parameter:
    """The parameter with slices in the place of its own."""

    def read(index: tuple[int, ...]) -> np.ndarray:
        return own[index] if index in own or base is None else base.read(index)

    dtype = next(iter(own.values())).dtype if base is None else base.dtype
    return Parameter(spec.shape, str(dtype), stacked_axes(spec), read)
