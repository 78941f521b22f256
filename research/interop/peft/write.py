"""Writes our adapters as a folder that peft loads: adapter_config.json and
adapter_model.safetensors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from research import tree
from research.files import write_json
from research.interop.huggingface.families.table import describe
from research.interop.peft.config import FILE
from research.interop.peft.ia3 import write_ia3
from research.interop.peft.kinds import LABEL_TASKS, PREFIX_TUNING, PROMPT_TUNING
from research.interop.peft.lora import write_lora
from research.interop.peft.prompts import write_prompts
from research.interop.peft.read import STEM
from research.interop.peft.tensors import Arrays
from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.family import Family
from research.interop.storage.foreign import write_tensors
from research.interop.storage.modules import HEAD, PREFIX, TABLE, modules
from research.interop.storage.parameter import Parameter
from research.interop.storage.safetensors import write_safetensors
from research.interop.storage.tensors import Tensor
from research.models.config import ModelConfig
from research.weights.ia3 import Ia3Adapter
from research.weights.lora import LoraAdapter
from research.weights.rules import is_leaf

_TASKS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}  # by kind of model


def write_peft(
    folder: Path,
    adapters: tree.Tree,
    c: ModelConfig,
    base: str = "",
    grown: Mapping[str, np.ndarray] = {},
) -> None:
    """Writes a tree of adapters for a model of config `c` into an existing folder, in peft's
    format.

    `base` is the name or path of the base model, under which peft will look for it. Ranks that are
    zero in A and in B (padding in a stack) are left out. A table that is also the head is written
    for both uses, because peft changes only the one that it is told of. `grown` has, by path, the
    tables that have more rows in `c` than in the base; they are written as peft's own
    `save_embedding_layers` does. ValueError for adapters of two kinds, and for kinds that peft does
    not have.
    """
    # peft knows a model by the modules of its class, so the adapter is written for the family's
    # names.
    family, values = describe(c)
    leaves = tree.paths(adapters, is_leaf)
    both_uses = c.tied and TABLE in leaves
    if both_uses:
        c, leaves = _untied(c, leaves, family)
    # BERT without a head is saved by the bare class, whose names lack the prefix.
    bare = family.prefix if values["architectures"] == ["BertModel"] else ""
    fields, arrays = _contents(leaves, c, family, both_uses, grown)
    # Prompts are on no module, so they have no such names.
    bare = "" if fields["peft_type"] in (PREFIX_TUNING, PROMPT_TUNING) else bare
    fields = {
        "base_model_name_or_path": base or None,
        "task_type": LABEL_TASKS[c.labels_over] if c.labels else _TASKS.get(c.kind),
        "inference_mode": True,
        **fields,
    }
    _write_files(folder, fields, arrays, bare)


def _contents(
    leaves: Mapping[str, Any],
    c: ModelConfig,
    family: Family,
    both_uses: bool,
    grown: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], Arrays]:
    """(fields of adapter_config.json, tensors by name) of adapters of one kind, with what is
    trained or saved whole beside them. ValueError for kinds that peft does not have together."""
    loras = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, LoraAdapter)}
    gains = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Ia3Adapter)}
    plain = {path: np.asarray(leaf) for path, leaf in leaves.items() if path not in loras | gains}
    known = modules(c, family)
    if loras and not gains:
        fields, arrays = write_lora(loras, known, c)
        if both_uses and TABLE in loras and "embed_tokens" in fields["target_modules"]:
            # peft then keeps both one while it trains them further. It knows tied tables by this
            # name: GPT-2's `wte` it would forget as a target when it saves the adapter again.
            fields["ensure_weight_tying"] = True
        kept, whole = _whole(plain, c, family)
        fields, arrays = {**fields, "modules_to_save": kept or None}, arrays | whole
    elif gains and not loras and not plain:
        fields, arrays = write_ia3(gains, known, c)
    elif plain and not gains and not loras:
        if grown:
            raise ValueError(
                f"the model has {c.vocab_size} tokens and its base fewer, and peft saves no tables "
                "beside prompts; give the base the tokens first, in a folder of its own, and train "
                "the prompts on that"
            )
        return write_prompts(plain, c)
    else:
        raise ValueError(
            f"peft has no adapter that is {', '.join(sorted(leaves)[:4])}, ... at once; write one "
            "kind of them"
        )
    # A table that is trained whole is there already.
    frozen = {path: table for path, table in grown.items() if path not in plain}
    return fields, arrays | _base_weights(frozen, c, family, arrays)


def _write_files(folder: Path, fields: dict[str, Any], arrays: Arrays, bare: str) -> None:
    """Writes both files; `bare` is the start that tensors' names lose."""
    write_json(folder / FILE, fields)
    # Only adapters on modules lie under the wrapped model's prefix.
    lead = "" if fields["peft_type"] in (PREFIX_TUNING, PROMPT_TUNING) else PREFIX
    streams = {
        lead + name.removeprefix(bare): (Tensor(x.shape, str(x.dtype)), lambda x=x: [x])
        for name, x in arrays.items()
    }
    # peft reads one file and no index, so it is never split; `format` tells transformers that the
    # tensors are PyTorch's.
    write_safetensors(folder, streams, STEM, metadata={"format": "pt"}, shard_bytes=2**62)


def _untied(
    c: ModelConfig, leaves: Mapping[str, Any], family: Family
) -> tuple[ModelConfig, dict[str, Any]]:
    """(config, adapters) of the same model with a head of its own, which has the table's adapter
    too. ValueError for models that use the table in more places than these two."""
    if c.kind == "encoder" and not c.mlm_head:
        return c, dict(leaves)  # no head reads the table
    if c.kind != "decoder":
        raise ValueError(
            f"the adapter is on {TABLE}, which a {family.model_types[0]} uses in several places "
            "and peft adapts in one; convert the run with --to=hf, which merges it"
        )
    return replace(c, tied=False), {**leaves, HEAD: leaves[TABLE]}


def _base_weights(
    tables: Mapping[str, np.ndarray], c: ModelConfig, family: Family, adapted: Arrays
) -> Arrays:
    """Frozen tables as tensors by name. In a module that has an adapter peft keeps the base's own
    weight one level down, under `base_layer`."""
    if not c.tied and TABLE in tables and HEAD not in tables:
        tables = {**tables, HEAD: tables[TABLE]}  # both uses, as the adapter has them
    named = {}
    for name, x in _whole(tables, c, family)[1].items():
        module, _, end = name.rpartition(".")
        wrapped = any(other.startswith(f"{module}.lora_") for other in adapted)
        named[f"{module}.base_layer.{end}" if wrapped else name] = x
    return named


def _whole(
    plain: Mapping[str, np.ndarray], c: ModelConfig, family: Any
) -> tuple[list[str], Arrays]:
    """(modules_to_save, tensors by name) of parameters that are trained themselves beside the
    adapters. ValueError for a parameter that no tensor of the family holds alone."""
    specs = specs_by_path(c)
    for path in plain.keys() - specs.keys():
        raise ValueError(
            f"peft has no adapter that has {path} beside low-rank ones; write the merged model "
            "instead"
        )
    # Written by the rules of the whole model, restricted to those whose parameters were all
    # trained.
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
