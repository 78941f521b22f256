"""Reads an adapter folder of peft's, adapter_config.json and adapter_model.safetensors, into leaves
for our tree.

    lora_A [R, in], lora_B [out, R], lora_magnitude_vector [out]    LoRA, rsLoRA, DoRA
    lora_embedding_A [R, V], lora_embedding_B [D, R]                LoRA on a table
    ia3_l [out, 1] or [1, in]                                       IA3 on outputs or inputs
    prompt_embeddings [n, D] or [n, 2 L K H]                        prompt and prefix tuning
    any other tensor                                                a whole weight (modules_to_save)

AdaLoRA and VeRA are read as LoRA (`as_lora.py`); LoHa, LoKr, OFT and BOFT change the weights that
are read (`updates.py`); biases, tokens' rows and layers in another order have a file each.

In a stack, layers without an adapter get one that changes nothing, and lower ranks are padded with
zeros.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.interop.huggingface.families.table import family_of
from research.interop.peft.as_lora import as_lora
from research.interop.peft.biases import with_biases
from research.interop.peft.config import read_config
from research.interop.peft.ia3 import read_ia3
from research.interop.peft.kinds import IA3, LABEL_TASKS, PROMPTS
from research.interop.peft.lora import read_lora
from research.interop.peft.prompts import read_prompts
from research.interop.peft.replicated import replicated
from research.interop.peft.tensors import Found, sort_tensors
from research.interop.peft.token_rows import take_rows, with_rows
from research.interop.peft.updates import UPDATES, with_updates
from research.interop.peft.whole import with_whole_weights
from research.interop.storage.checkpoint import Checkpoint, specs_by_path
from research.interop.storage.family import Family
from research.interop.storage.grow import fit_rows
from research.interop.storage.modules import HEAD, TABLE, Module, modules
from research.interop.storage.safetensors import open_safetensors
from research.models.config import ModelConfig
from research.models.spec import Spec, shardings, zeros
from research.parallel.axes import AxisRules
from research.weights.ia3 import Ia3Adapter
from research.weights.lora import LoraAdapter
from research.weights.rules import is_leaf

STEM = "adapter_model"
_HEAD = "lm_head"
_TIED_NAMES = ("embed_tokens", _HEAD)


def read_peft(folder: Path, checkpoint: Checkpoint) -> tuple[Checkpoint, tree.Tree]:
    """(checkpoint, adapters): the checkpoint as the adapter in the folder changes it, and the
    adapters by path of our tree, as numpy arrays.

    The returned checkpoint has the adapter's whole weights in place of its own, and a head separate
    from the token table if only one of the two is adapted. ValueError for adapters that are not
    supported, and for one that was made for another base.
    """
    config = read_config(folder)
    if not (folder / f"{STEM}.safetensors").is_file():
        raise ValueError(
            f"{folder} has no {STEM}.safetensors; pickled adapters are never read: save it again "
            "with peft"
        )
    tensors = open_safetensors(folder, STEM)
    try:
        # Prompts and prefixes are on no module.
        if config.kind in PROMPTS:
            return checkpoint, read_prompts(config, tensors, checkpoint.config)
        checkpoint = replicated(checkpoint, config.layers)
        family = family_of(checkpoint.config)
        # The order matters: ties are settled first, because they decide which modules and which
        # tables the model has.
        found, rows = take_rows(sort_tensors(config, tensors, checkpoint.config, family))
        checkpoint = _with_tokens(found, checkpoint, family)
        found = _tied(found, checkpoint.config, family)
        # Before the modules are listed: an untied model has one more, its head.
        checkpoint = _untied(found, checkpoint, family)
        known = modules(checkpoint.config, family)
        for name in sorted(found.parts.keys() - known.keys()):
            plain = name.removeprefix(family.prefix)
            raise ValueError(
                f"the adapter has the module {plain}, which {checkpoint.source} has not"
            )
        found = as_lora(found, known, checkpoint.config)
        checkpoint = with_whole_weights(found, checkpoint, family)
        checkpoint = with_rows(found, rows, known, checkpoint)
        return _with_adapters(found, known, checkpoint)
    except ValueError as error:
        wanted = config.base or "the model that it was made for"
        raise ValueError(f"{folder} does not fit: {error}; load {wanted} with it") from None


def _with_adapters(
    found: Found, known: Mapping[str, Module], checkpoint: Checkpoint
) -> tuple[Checkpoint, tree.Tree]:
    """(checkpoint, adapters by path) of what was found on modules."""
    if found.config.kind == IA3:
        return read_ia3(found, known, checkpoint)
    if found.config.kind in UPDATES:
        return with_updates(found, known, checkpoint), {}
    checkpoint = with_biases(found, known, checkpoint)
    return checkpoint, read_lora(found, known, checkpoint.config)


def place_adapters(
    adapters: tree.Tree, c: ModelConfig, mesh: jax.sharding.Mesh | None, rules: AxisRules
) -> tree.Tree:
    """The adapters as arrays on the devices, sharded as their weights are; without a mesh on the
    default device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, adapters)
    specs, leaves = specs_by_path(c), tree.paths(adapters, is_leaf)
    places = {
        path: shardings(_spec_of(leaf, specs.get(path)), mesh, rules)
        for path, leaf in leaves.items()
    }
    return jax.device_put(adapters, tree.unflatten(places))


def _spec_of(leaf: Any, w: Spec | None) -> Any:
    """The leaf with a spec in place of each of its arrays; `w` is its weight's spec, None for
    parameters that the model itself does not have (prompts, prefixes)."""
    if w is None:
        return Spec(leaf.shape, ("virtual",) + ("vector",) * (leaf.ndim - 1), zeros)
    if isinstance(leaf, Ia3Adapter):
        # An axis of size 1 cannot be split as the weight's is.
        axes = tuple(axis if size > 1 else "vector" for axis, size in zip(w.axes, leaf.gain.shape))
        return replace(leaf, gain=Spec(leaf.gain.shape, axes, zeros))
    if not isinstance(leaf, LoraAdapter):
        return w
    # The rank is on every device; inputs and outputs are split as those of the weight are.
    stack, matrix = w.axes[: leaf.scale.ndim], w.axes[leaf.scale.ndim :]
    at = leaf.a.ndim - leaf.scale.ndim - 1
    inner, outer = (matrix[-1:], matrix[:-1]) if leaf.table else (matrix[:at], matrix[at:])
    return replace(
        leaf,
        a=Spec(leaf.a.shape, (*stack, *inner, "rank"), zeros),
        b=Spec(leaf.b.shape, (*stack, "rank", *outer), zeros),
        scale=Spec(leaf.scale.shape, stack, zeros),
        magnitude=None
        if leaf.magnitude is None
        else Spec(leaf.magnitude.shape, (*stack, *outer), zeros),
    )


def _table_module(c: ModelConfig, family: Family) -> str:
    """The name of the module with the token table, which differs between families."""
    return next(rule.name.removesuffix(".weight") for rule in family.rules(c) if rule.path == TABLE)


def _tied(found: Found, c: ModelConfig, family: Family) -> Found:
    """What an adapter with `ensure_weight_tying` has for a tied table, once and not twice; `tied`
    of its config is False afterwards unless peft ties the adapter too."""
    table = _table_module(c, family)
    adapted = found.parts.keys() | {name.removesuffix(".weight") for name in found.whole}
    # peft knows a table to be tied by the ends of names (`EMBEDDING_LAYER_NAMES`), so GPT-2's `wte`
    # alone is not: there it takes `lm_head` beside it.
    known = any(name.split(".")[-1] in _TIED_NAMES for name in adapted & {table, _HEAD})
    if not (c.tied and found.config.tied and known and table in adapted):
        return replace(found, config=replace(found.config, tied=False))
    # The head's adapter is the table's: peft saves it once more.
    parts = {name: part for name, part in found.parts.items() if name != _HEAD}
    whole = {name: actual for name, actual in found.whole.items() if name != f"{_HEAD}.weight"}
    return replace(found, parts=parts, whole=whole)


def _with_tokens(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with as many tokens as the adapter's tables have: who trains with added tokens
    resizes the model first, and peft then saves its tables whole."""
    table = _table_module(checkpoint.config, family)
    sizes = {
        found.tensors.names[actual].shape[0]
        for name, actual in found.whole.items()
        if name in (f"{table}.weight", f"{_HEAD}.weight")
    }
    # An adapter on a table says it too: A [R, V] of the words, B [V, R] of the head.
    sizes |= {
        part[key].shape[axis]
        for module, key, axis in ((table, "lora_embedding_A", 1), (_HEAD, "lora_B", 0))
        if key in (part := found.parts.get(module, {}))
    }
    if len(sizes) > 1:
        rows = " and of ".join(map(str, sorted(sizes)))
        raise ValueError(f"the adapter has tables of {rows} rows; save it again from one model")
    if not sizes:
        return checkpoint
    return fit_rows(checkpoint, replace(checkpoint.config, vocab_size=sizes.pop()))


def _untied(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with a separate head if the adapter changes a tied table: peft adapts one use
    of a tied table, not both. A classifier that only the adapter has turns the model into one."""
    c, parameters, codes = checkpoint.config, dict(checkpoint.parameters), dict(checkpoint.codes)
    if c.kind != "encoder_decoder" and not c.labels:
        # peft saves the head that the base lacks, under the name of its task.
        over = next((o for o, task in LABEL_TASKS.items() if task == found.config.task), "text")
        labels = 2 if over == "spans" else 1
        # A decoder's classifier reads the last state as it is, and one of tokens each state.
        pooler = c.kind == "encoder" and over == "text"
        labelled = replace(c, pooler=pooler, labels=labels, labels_over=over)
        rules = family.rules(labelled)
        name = next((rule.name for rule in rules if rule.path == "classifier/kernel"), None)
        if name in found.whole:
            c = replace(labelled, labels=found.tensors.names[found.whole[name]].shape[0])
    table = _table_module(c, family)
    # Under `.base_layer.` lies a copy of the unchanged base, saved beside its adapter.
    saved = {name for name, actual in found.whole.items() if ".base_layer." not in actual}
    touched = {table, _HEAD} & (
        found.parts.keys() | {name.removesuffix(".weight") for name in saved}
    )
    if c.tied and touched and not found.config.tied and (c.kind != "encoder" or c.mlm_head):
        if c.kind != "decoder":
            kind = family.model_types[0]
            raise ValueError(
                f"an adapter on {touched.pop()}, which a {kind} uses in several places, is not "
                "supported"
            )
        c = replace(c, tied=False)
        # The new head starts as the table, in the same storage: nothing is copied until it is
        # read.
        for tables in (parameters, codes):
            tables |= {HEAD: tables[TABLE]} if TABLE in tables else {}
    return replace(checkpoint, config=c, parameters=parameters, codes=codes)
