"""Our adapters as a folder that peft loads."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research import tree
from research.files import write_json
from research.interop.huggingface.families.table import describe
from research.interop.peft.config import FILE, IA3, LORA, PREFIX_TUNING, PROMPT_TUNING
from research.interop.peft.prompts import (
    NAME,
    PREFIX_KEY,
    PREFIX_VALUE,
    PROMPT,
    prefix_embeddings,
)
from research.interop.peft.read import STEM
from research.interop.storage.checkpoint import Parameter, specs_by_path, stacked_axes
from research.interop.storage.foreign import write_tensors
from research.interop.storage.layout import inverse, letter_sizes, rearrange
from research.interop.storage.modules import PREFIX, Module, modules, suffixes
from research.interop.storage.safetensors import write_safetensors
from research.interop.storage.tensors import Tensor
from research.models.config import ModelConfig
from research.weights.ia3 import Ia3Adapter
from research.weights.lora import LoraAdapter
from research.weights.rules import is_leaf

Arrays = dict[str, np.ndarray]


def write_peft(folder: Path, adapters: tree.Tree, c: ModelConfig, base: str = "") -> None:
    """Writes a tree of adapters for a model of config `c` into an existing folder, as peft writes
    them.

    `base` is the checkpoint's name or path, as peft shall find it. Ranks that are zero in A and in
    B, which higher ones beside them have filled up, are left out. ValueError for adapters of two
    kinds, and those that peft has not.
    """
    family, values = describe(c)
    leaves = tree.paths(adapters, is_leaf)
    loras = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, LoraAdapter)}
    gains = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Ia3Adapter)}
    plain = {path: np.asarray(leaf) for path, leaf in leaves.items() if path not in loras | gains}
    known = modules(c, family)
    bare = family.prefix if values["architectures"] == ["BertModel"] else ""
    if loras and not gains:
        fields, arrays = _lora(loras, known, c)
        kept, whole = _whole(plain, c, family)
        fields, arrays = {**fields, "modules_to_save": kept or None}, arrays | whole
    elif gains and not loras and not plain:
        fields, arrays = _ia3(gains, known, c)
    elif plain and not gains and not loras:
        fields, arrays = _prompts(plain, c)
        bare = ""
    else:
        raise ValueError(
            f"peft has no adapter that is {', '.join(sorted(leaves)[:4])}, ... at once; write one "
            "kind of them"
        )
    kinds = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}
    fields = {
        "base_model_name_or_path": base or None,
        "task_type": "SEQ_CLS" if c.labels else kinds.get(c.kind),
        "inference_mode": True,
        **fields,
    }
    write_json(folder / FILE, fields)
    lead = "" if fields["peft_type"] in (PREFIX_TUNING, PROMPT_TUNING) else PREFIX
    streams = {
        lead + name.removeprefix(bare): (Tensor(x.shape, str(x.dtype)), lambda x=x: [x])
        for name, x in arrays.items()
    }
    write_safetensors(folder, streams, STEM, metadata={"format": "pt"}, shard_bytes=2**62)


def _lora(
    adapters: Mapping[str, LoraAdapter], known: Mapping[str, Module], c: ModelConfig
) -> tuple[dict[str, Any], Arrays]:
    arrays: Arrays = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    decomposed = {adapter.magnitude is not None for adapter in adapters.values()}
    if len(decomposed) > 1:
        raise ValueError(
            "some adapters have a magnitude and some have none; peft's use_dora is for all or none"
        )
    _known(adapters, known)
    for name, module in known.items():
        pair = _pair(module, adapters)
        if pair is None:
            continue
        a, b, scale, magnitude = pair
        rank = a.shape[-1]
        sizes = letter_sizes(c) | {"R": rank}
        a, b = rearrange(a, inverse(module.a), sizes), rearrange(b, inverse(module.b), sizes)
        names = (
            ("lora_embedding_B", "lora_embedding_A")
            if module.embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        for part, x in zip(names, (a.T, b.T) if module.embedding else (a, b)):
            arrays[f"{name}.{part}"] = np.ascontiguousarray(x)
        if magnitude is not None:
            arrays[f"{name}.lora_magnitude_vector"] = rearrange(
                magnitude, inverse(module.outputs), sizes
            )
        ranks[name], alphas[name] = rank, _plain(float(scale) * rank)
    if not ranks:
        raise ValueError("every adapter is zero; there is nothing to write")
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return {
        "peft_type": LORA,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": next(iter(adapters.values())).dropout,
        "bias": "none",
        "use_rslora": False,
        "use_dora": True in decomposed,
        "fan_in_fan_out": any(known[name].conv for name in ranks),
        "target_modules": suffixes(set(ranks), known),
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
    }, arrays


def _pair(
    module: Module, adapters: Mapping[str, LoraAdapter]
) -> tuple[np.ndarray, np.ndarray, np.float32, Any] | None:
    """a, b, scale and magnitude of a module in our axes, b and magnitude with a leading axis for
    weights side by side; None where nothing is on it.

    Weights side by side have one A in peft. Where ours differ, it is all of them in a row, and each
    weight's B is zero for the ranks of the others.
    """
    found = [_one(adapters.get(path), module.index) for path in module.paths]
    given = [one for one in found if one is not None]
    if not given:
        return None
    if len(module.paths) == 1:
        return given[0]
    a, b, scale, magnitude = given[0]
    if len(given) < len(found) and magnitude is not None:
        raise ValueError(
            f"{module.name} has DoRA on {len(given)} of the {len(found)} weights that it holds; "
            "adapt all"
        )
    if any(one[2] != scale for one in given):
        raise ValueError(
            f"the weights of {module.name} have adapters of different scale; peft has one for all "
            "of them"
        )
    filled = [(a, np.zeros_like(b), scale, None) if one is None else one for one in found]
    if any(one[0].shape != a.shape or (one[0] != a).any() for one in filled):
        wide = sum(one[0].shape[-1] for one in filled)
        starts = np.cumsum([0] + [one[0].shape[-1] for one in filled])
        own = [np.zeros((wide, *one[1].shape[1:]), np.float32) for one in filled]
        for rows, one, start in zip(own, filled, starts):
            rows[start : start + len(one[1])] = one[1]
        a, b_of = np.concatenate([one[0] for one in filled], axis=-1), own
    else:
        b_of = [one[1] for one in filled]
    return (
        a,
        np.stack(b_of),
        scale,
        None if magnitude is None else np.stack([one[3] for one in filled]),
    )


def _one(
    adapter: LoraAdapter | None, index: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.float32, Any] | None:
    """An adapter's layer, without the ranks at the end that are zero in both factors; None where
    all are."""
    if adapter is None:
        return None
    a, b, scale = (np.asarray(x, np.float32)[index] for x in (adapter.a, adapter.b, adapter.scale))
    used = np.abs(a.reshape(-1, a.shape[-1])).max(0) + np.abs(b.reshape(len(b), -1)).max(1)
    rank = int(np.max(np.flatnonzero(used), initial=-1)) + 1
    if not rank and adapter.magnitude is None:
        return None
    magnitude = (
        None if adapter.magnitude is None else np.asarray(adapter.magnitude, np.float32)[index]
    )
    return a[..., : max(rank, 1)], b[: max(rank, 1)], scale, magnitude


def _ia3(
    adapters: Mapping[str, Ia3Adapter], known: Mapping[str, Module], c: ModelConfig
) -> tuple[dict[str, Any], Arrays]:
    arrays: Arrays = {}
    adapted, inward, sizes = set(), set(), letter_sizes(c)
    _known(adapters, known)
    for name, module in known.items():
        given = [adapters.get(path) for path in module.paths]
        if not any(given):
            continue
        on_inputs = next(one for one in given if one is not None).on_inputs
        shape = _axes_of(
            module.inputs if on_inputs else module.outputs,
            sizes,
            len(module.paths) > 1 and not on_inputs,
        )
        own = [
            np.ones(shape, np.float32)
            if one is None
            else np.asarray(one.gain, np.float32)[module.index].reshape(shape)
            for one in given
        ]
        biased = not on_inputs and any(f"{path}_bias" in specs_by_path(c) for path in module.paths)
        if biased or (len(own) > 1 and on_inputs):
            raise ValueError(
                f"peft's factors of {name} multiply "
                f"{'its bias' if biased else 'the inputs of all that it holds'} too; "
                "merge them into the weights instead"
            )
        gain = np.stack(own) if len(own) > 1 else own[0]
        flat = rearrange(gain, inverse(module.inputs if on_inputs else module.outputs), sizes)
        arrays[f"{name}.ia3_l"] = flat[None] if on_inputs else flat[:, None]
        adapted.add(name)
        inward |= {name} if on_inputs else set()
    targets = [suffixes(group, known) for group in (adapted - inward, inward)]
    return {
        "peft_type": IA3,
        "target_modules": targets[0] + targets[1],
        "feedforward_modules": targets[1],
        "fan_in_fan_out": any(known[name].conv for name in adapted),
        "modules_to_save": None,
    }, arrays


def _prompts(plain: Mapping[str, np.ndarray], c: ModelConfig) -> tuple[dict[str, Any], Arrays]:
    if plain.keys() == {PROMPT}:
        kind, values = PROMPT_TUNING, plain[PROMPT]
    elif plain.keys() == {PREFIX_KEY, PREFIX_VALUE}:
        kind, values = PREFIX_TUNING, prefix_embeddings(plain[PREFIX_KEY], plain[PREFIX_VALUE])
    else:
        raise ValueError(
            f"peft has no adapter that is {', '.join(sorted(plain)[:4])}; write the merged model "
            "instead"
        )
    heads = c.kv_heads if kind == PREFIX_TUNING else c.heads
    return {
        "peft_type": kind,
        "num_virtual_tokens": len(values),
        "num_layers": c.layers,
        "num_attention_heads": heads,
        "token_dim": c.head_size * heads if kind == PREFIX_TUNING else c.d_model,
        "num_transformer_submodules": 1,
    }, {NAME: np.ascontiguousarray(values)}


def _whole(
    plain: Mapping[str, np.ndarray], c: ModelConfig, family: Any
) -> tuple[list[str], Arrays]:
    """Whole weights among the adapters: names of their modules, and their tensors."""
    specs = specs_by_path(c)
    for path in plain.keys() - specs.keys():
        raise ValueError(
            f"peft has no adapter that has {path} beside low-rank ones; write the merged model "
            "instead"
        )
    parameters = {
        path: Parameter(
            spec.shape, str(plain[path].dtype), stacked_axes(spec), plain[path].__getitem__
        )
        for path, spec in specs.items()
        if path in plain
    }
    rules = [rule for rule in family.rules(c) if set(rule.paths) <= plain.keys()]
    arrays = {name: make() for name, (_, make) in write_tensors(c, rules, parameters).items()}
    for path in plain.keys() - {path for rule in rules for path in rule.paths}:
        raise ValueError(
            f"{path} is one part of a tensor of {family.model_types[0]}, whose others are not "
            "trained with it"
        )
    return sorted({name.rpartition(".")[0] for name in arrays}), arrays


def _known(adapters: Mapping[str, Any], known: Mapping[str, Module]) -> None:
    for path in adapters.keys() - {path for module in known.values() for path in module.paths}:
        raise ValueError(f"the adapter has {path}, which is no matrix of this model")


def _axes_of(pattern: str, sizes: Mapping[str, int], several: bool) -> tuple[int, ...]:
    letters = pattern.split(" -> ")[1].split()[several:]
    return tuple(sizes[letter] for letter in letters)


def _plain(x: float) -> int | float:
    return int(x) if math.isfinite(x) and x == int(x) else x
