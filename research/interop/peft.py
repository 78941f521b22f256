"""Adapters as peft writes them, adapter_config.json and adapter_model.safetensors, to leaves for our tree.

    lora_A [R, in], lora_B [out, R], lora_magnitude_vector [out]    LoRA, rsLoRA, DoRA
    lora_embedding_A [R, V], lora_embedding_B [D, R]                LoRA on a table
    ia3_l [out, 1] or [1, in]                                       IA3 on outputs or inputs
    prompt_embeddings [n, D] or [n, 2 L K H]                        prompt and prefix tuning
    any other tensor                                                a whole weight: modules_to_save, base_layer

Layers of one stacked weight that have no adapter get one that changes nothing, lower ranks are filled up with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.interop import hf
from research.interop.checkpoint import Checkpoint, Parameter, specs_by_path, stacked_axes
from research.interop.families.family import Family
from research.interop.layout import letter_sizes, pieces, rearrange
from research.interop.peft_config import IA3, LORA, PeftConfig, read_config
from research.interop.peft_experts import Parts, experts_apart
from research.interop.peft_modules import Module, canonical, modules
from research.interop.peft_prompts import read_prompts
from research.interop.safetensors import SafeTensors, open_safetensors
from research.models.config import ModelConfig
from research.models.spec import Spec, shardings, zeros
from research.weights.ia3 import Ia3Adapter
from research.weights.lora import LoraAdapter
from research.weights.rules import is_leaf

STEM = "adapter_model"
_PARTS = (
    ".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight", ".ia3_l",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What lies in an adapter's file: parts by module, whole weights with the name of the tensor that has them, and for
    modules that are parts of others there the names that patterns go by."""

    config: PeftConfig
    tensors: SafeTensors
    parts: Parts
    whole: dict[str, str]
    names: dict[str, str]

    def rank(self, module: str) -> int:
        """The rank that the config gives a module."""
        return self.config.rank_of(self.names.get(module, module))

    def scale(self, module: str) -> np.float32:
        """What its update is multiplied with."""
        return np.float32(self.config.scale_of(self.names.get(module, module)))


def read_peft(folder: Path, checkpoint: Checkpoint) -> tuple[Checkpoint, tree.Tree]:
    """The checkpoint as the adapter in a folder wants it, and the adapters by path of our tree, as numpy arrays.

    That checkpoint has the adapter's whole weights in the place of its own, and a head apart from the token table where
    only one of the two is adapted. ValueError for what is not supported, and an adapter that was made for another base.
    """
    config = read_config(folder)
    if not (folder / f"{STEM}.safetensors").is_file():
        raise ValueError(f"{folder} has no {STEM}.safetensors; pickled adapters are never read: save it again with peft")
    tensors = open_safetensors(folder, STEM)
    try:
        if config.kind not in (LORA, IA3):
            return checkpoint, read_prompts(config, tensors, checkpoint.config)
        family = hf.family_of(checkpoint.config)
        found = _sort(config, tensors, checkpoint.config, family)
        checkpoint = _untied(found, checkpoint, family)
        known = modules(checkpoint.config, family)
        for name in sorted(found.parts.keys() - known.keys()):
            raise ValueError(f"the adapter has the module {name}, which {checkpoint.source} has not")
        checkpoint = _with_whole_weights(found, checkpoint, family)
        if config.kind == IA3:
            return _ia3(found, known, checkpoint, family)
        return checkpoint, _lora(found, known, checkpoint.config)
    except ValueError as error:
        made = f"; it was made for {config.base}: is this the same model?" if config.base else ""
        raise ValueError(f"{folder} does not fit: {error}{made}") from None


def place_adapters(adapters: tree.Tree, c: ModelConfig, mesh: jax.sharding.Mesh | None) -> tree.Tree:
    """The adapters on the devices, each beside its weight: its axes are split as the weight's are."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, adapters)
    specs = specs_by_path(c)
    places = {path: shardings(_spec_of(leaf, specs.get(path)), mesh) for path, leaf in tree.paths(adapters, is_leaf).items()}
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
        leaf, a=Spec(leaf.a.shape, (*stack, *inner, "rank"), zeros), b=Spec(leaf.b.shape, (*stack, "rank", *outer), zeros),
        scale=Spec(leaf.scale.shape, stack, zeros),
        magnitude=None if leaf.magnitude is None else Spec(leaf.magnitude.shape, (*stack, *outer), zeros),
    )  # fmt: skip


def _sort(config: PeftConfig, tensors: SafeTensors, c: ModelConfig, family: Family) -> Found:
    whole, parts = {}, {}
    for name, actual in canonical(tensors.names, c, family).items():
        part = next((part for part in _PARTS if name.endswith(part)), None)
        if part is None:
            whole[name.replace(".base_layer.", ".")] = actual
        else:
            key = part.removeprefix(".").removesuffix(".weight")
            parts.setdefault(name.removesuffix(part), {})[key] = tensors.read(actual).astype(np.float32)
    parts, names = experts_apart(parts, c)
    return Found(config, tensors, parts, whole, names)


def _untied(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with a head of its own where the adapter has the table or the head apart: peft never adapts both."""
    c, parameters = checkpoint.config, dict(checkpoint.parameters)
    if c.kind == "encoder" and not c.labels and "classifier.weight" in found.whole:
        labels = found.tensors.names[found.whole["classifier.weight"]].shape[0]
        c = replace(c, labels=labels)
    table = next(rule.name.removesuffix(".weight") for rule in family.rules(c) if rule.path == "embed/table")
    saved = {name for name, actual in found.whole.items() if ".base_layer." not in actual}
    touched = {table, "lm_head"} & (found.parts.keys() | {name.removesuffix(".weight") for name in saved})
    if c.tied and touched and (c.kind != "encoder" or c.mlm_head):
        if c.kind != "decoder":
            raise ValueError(f"an adapter on {touched.pop()}, which a {family.model_types[0]} has in several places, is not supported")
        c = replace(c, tied=False)
        parameters["head/table"] = parameters["embed/table"]
    return replace(checkpoint, config=c, parameters=parameters)


def _with_whole_weights(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with the adapter's own weights in the place of the base's."""
    c, sizes = checkpoint.config, letter_sizes(checkpoint.config)
    specs, left = specs_by_path(c), dict(found.whole)
    slices: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for piece in pieces(family.rules(c), {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}):
        if piece.name in left:
            values = _arranged(found.tensors.read(left.pop(piece.name)), piece.pattern, sizes, piece.name)
            for part, path in enumerate(piece.paths):
                slices.setdefault(path, {})[piece.index] = values[part] if len(piece.paths) > 1 else values
    for name, actual in left.items():
        if not c.tied or name != "lm_head.weight" or ".base_layer." not in actual:
            raise ValueError(f"the adapter has the tensor {actual!r}, which {checkpoint.source} has no place for")
    made = {}
    for path, own in slices.items():
        base = checkpoint.parameters.get(path)
        read = lambda index, own=own, base=base: own[index] if index in own or base is None else base.read(index)
        stack = stacked_axes(specs[path])
        dtype = base.dtype if base is not None else str(next(iter(own.values())).dtype)
        made[path] = Parameter(specs[path].shape, dtype, stack, read)
    return replace(checkpoint, parameters={**checkpoint.parameters, **made})


def _lora(found: Found, known: Mapping[str, Module], c: ModelConfig) -> tree.Tree:
    rows: dict[str, dict[tuple[int, ...], LoraAdapter]] = {}
    for name, parts in found.parts.items():
        module = known[name]
        for path, adapter in zip(module.paths, _adapters(module, parts, found, letter_sizes(c)), strict=True):
            rows.setdefault(path, {})[module.index] = adapter
    specs = specs_by_path(c)
    return tree.unflatten({path: _stacked(path, own, specs[path].shape[: stacked_axes(specs[path])]) for path, own in rows.items()})


def _adapters(
    module: Module, parts: Mapping[str, np.ndarray], found: Found, sizes: Mapping[str, int]
) -> list[LoraAdapter]:
    """The adapters of the weights that a module holds."""
    by_rows = "lora_embedding_A" in parts
    pair = ("lora_embedding_B", "lora_embedding_A") if by_rows else ("lora_A", "lora_B")
    if not set(pair) <= parts.keys():
        raise ValueError(f"{module.name} has {', '.join(parts)}; wanted {' and '.join(pair)}")
    a, b = (parts[part].T if by_rows else parts[part] for part in pair)
    rank, config = found.rank(module.name), found.config
    if a.shape[0] != rank:
        raise ValueError(f"{module.name} has rank {a.shape[0]}, its config says {rank}")
    if config.dora and by_rows:
        raise ValueError(f"use_dora=True on the table {module.name} is not supported; train it with use_dora=False")
    if by_rows != module.embedding:
        raise ValueError(f"{module.name} has {', '.join(parts)}, which is not how it is used")
    sizes, several = {**sizes, "R": rank}, len(module.paths)
    inner = _arranged(a, module.a, sizes, module.name)
    outer = _arranged(b, module.b, sizes, module.name)
    magnitude = parts.get("lora_magnitude_vector") if config.dora else None
    gains = None if magnitude is None else _arranged(magnitude, module.outputs, sizes, module.name)
    scale, made = found.scale(module.name), []
    for part, own in enumerate(_own_ranks(outer) if several > 1 else [slice(None)]):
        made.append(
            LoraAdapter(
                inner[..., own], (outer[part] if several > 1 else outer)[own], scale,
                None if gains is None else gains[part] if several > 1 else gains, module.table, config.dropout,
            )  # fmt: skip
        )
    return made


def _own_ranks(outer: np.ndarray) -> list[slice]:
    """Which ranks each weight of a fused one has for itself, of `outer` [parts, R, ...].

    All of them, but for an adapter that joins those of separate weights: there the rest is zero, see `peft_write`.
    """
    several, rank = outer.shape[:2]
    width = rank // several
    uses = np.abs(outer.reshape(several, rank, -1)).max(-1) > 0
    blocks = [slice(part * width, (part + 1) * width) for part in range(several)]
    outside = [np.delete(uses[part], blocks[part]).any() for part in range(several)]
    inside = any(uses[part, blocks[part]].any() for part in range(several))
    return [slice(None)] * several if rank % several or not inside or any(outside) else blocks


def _stacked(path: str, rows: Mapping[tuple[int, ...], LoraAdapter], stack: tuple[int, ...]) -> LoraAdapter:
    """The adapters of the layers of one weight as one, of the highest of their ranks."""
    rank = max(row.a.shape[-1] for row in rows.values())
    first = next(iter(rows.values()))
    a = np.zeros((*stack, *first.a.shape[:-1], rank), np.float32)
    b = np.zeros((*stack, rank, *first.b.shape[1:]), np.float32)
    scale = np.zeros(stack, np.float32)
    magnitude = None if first.magnitude is None else np.zeros((*stack, *first.magnitude.shape), np.float32)
    if magnitude is not None and len(rows) < scale.size:
        raise ValueError(f"use_dora=True on {len(rows)} of the {scale.size} layers of {path} is not supported; adapt all or none")
    for index, row in rows.items():
        own = row.a.shape[-1]
        a[index][..., :own], b[index][:own], scale[index] = row.a, row.b, row.scale
        if magnitude is not None:
            magnitude[index] = row.magnitude
    return LoraAdapter(a, b, scale, magnitude, first.table, first.dropout)


def _ia3(found: Found, known: Mapping[str, Module], checkpoint: Checkpoint, family: Family) -> tuple[Checkpoint, tree.Tree]:
    """Factors, and the checkpoint with the biases that they multiply too: peft's factors act on what a layer gives."""
    c, specs = checkpoint.config, specs_by_path(checkpoint.config)
    sizes, gains, parameters = letter_sizes(c), {}, dict(checkpoint.parameters)
    for name, parts in found.parts.items():
        module, gain = known[name], parts.get("ia3_l")
        if gain is None or gain.ndim != 2 or 1 not in gain.shape or module.embedding:
            raise ValueError(f"{name} has {', '.join(parts)}; wanted ia3_l [out, 1] or [1, in]")
        on_inputs = gain.shape[0] == 1
        own = _arranged(gain.reshape(-1), module.inputs if on_inputs else module.outputs, sizes, name)
        for part, path in enumerate(module.paths):
            values = own[part] if len(module.paths) > 1 and not on_inputs else own
            stack = specs[path].shape[: stacked_axes(specs[path])]
            count = len(specs[path].shape) - len(stack) - values.ndim
            full = values.reshape((*values.shape, *(1,) * count) if on_inputs != module.table else (*(1,) * count, *values.shape))
            held = gains.setdefault(path, Ia3Adapter(np.ones((*stack, *full.shape), np.float32), on_inputs))
            if held.on_inputs != on_inputs:
                raise ValueError(f"{name} is multiplied on its {'inputs' if on_inputs else 'outputs'}, in other layers otherwise")
            held.gain[module.index] = full
    for path, adapter in gains.items():
        bias = f"{path}_bias"
        if not adapter.on_inputs and bias in parameters:
            parameters[bias] = _times(parameters[bias], adapter.gain)
    return replace(checkpoint, parameters=parameters), tree.unflatten(gains)


def _times(parameter: Parameter, gain: np.ndarray) -> Parameter:
    def read(index: tuple[int, ...]) -> np.ndarray:
        values = parameter.read(index)
        return values.astype(np.float32) * gain[index].reshape(values.shape)

    return replace(parameter, read=read)


def _arranged(x: np.ndarray, pattern: str, sizes: Mapping[str, int], name: str) -> np.ndarray:
    try:
        return rearrange(x, pattern, sizes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
