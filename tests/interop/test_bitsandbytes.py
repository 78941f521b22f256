"""Folders of transformers 5.23 with bitsandbytes 0.50.2: the model is theirs, its weights are codes
from file to product."""

import json
import re
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import tree
from research.interop.bitsandbytes.write import write_bitsandbytes
from research.interop.convert import convert
from research.interop.huggingface.families.table import FAMILIES, family_of
from research.interop.load import load, open_checkpoint
from research.interop.peft.write import write_peft
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.layout import letter_sizes, source_shape
from research.interop.storage.parameter import Parameter
from research.models.model import Model
from research.models.spec import abstract, initialize
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.flat import FlatQuantized
from research.weights.lora import Lora
from research.weights.quantized import Quantized
from research.weights.rules import is_leaf, quantize, quantize_specs

FOLDER = Path(__file__).parent / "quantized"
GOLDENS_OF_FAMILIES = Path(__file__).parent / "goldens"
GOLDENS = sorted(path.stem for path in FOLDER.glob("*.npz"))
# Logits of 5, and weights that are the same to the bit: what is left are float32 sums in another
# order.
TOLERANCE = 5e-5


@cache
def golden(name):
    """The fields of a golden, as the script's first lines list them."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def tensors(name):
    """The tensors that were saved, by their names."""
    found = {}
    for key, values in golden(name).items():
        kind, _, plain = key.partition("/")
        if kind in ("tensor", "bfloat16"):
            found[plain] = values.view(ml_dtypes.bfloat16) if kind == "bfloat16" else values
    return found


def write(name, folder, more=None):
    """A folder with the golden's config.json and tensors."""
    (folder / "config.json").write_text(str(golden(name)["config"]))
    save_file(tensors(name) | (more or {}), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# In bfloat16 transformers' own logits are rounded to 1 in 256, so only the weights are compared.
EXACT = [name for name in GOLDENS if name != "nf4_bfloat16"]
LLAMA = {
    "q_proj": "attention/query",
    "k_proj": "attention/key",
    "v_proj": "attention/value",
    "o_proj": "attention/out",
    "gate_proj": "mlp/gate",
    "up_proj": "mlp/up",
    "down_proj": "mlp/down",
}
GPT2 = {"attn.c_proj": "attention/out", "mlp.c_fc": "mlp/up", "mlp.c_proj": "mlp/down"}


def path_of(weight):
    """Our path and layer of a tensor, None for GPT-2's fused one."""
    path = next(
        (ours for theirs, ours in (LLAMA | GPT2).items() if weight.endswith(f"{theirs}.weight")),
        None,
    )
    return path, int(next(part for part in weight.split(".") if part.isdigit()))


@pytest.mark.parametrize("name", EXACT)
def test_logits_are_transformers(name, tmp_path):
    loaded = load(write(name, tmp_path))
    np.testing.assert_allclose(
        loaded.logits(golden(name)["ids"]), golden(name)["logits"], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", GOLDENS)
def test_weights_are_what_bitsandbytes_makes_of_its_codes(name, tmp_path):
    loaded = load(write(name, tmp_path))
    layers, compared = loaded.params["layers"], 0
    for key, rows in golden(name).items():
        path, layer = path_of(key) if key.startswith("dense/") else (None, 0)
        if path is None:
            continue
        # One layer alone: compiled together, products and sums would be joined.
        own = (
            layers[layer] if isinstance(layers, tuple) else jax.tree.map(lambda x: x[layer], layers)
        )
        leaf = tree.paths(own, is_leaf)[path]
        assert isinstance(leaf, Quantized)
        dense = loaded.checkpoint.parameters[f"layers/{path}"].read((layer,))
        for w in (leaf.dense(), dense):
            matrix = np.asarray(w).reshape(rows.shape[1], -1).T[[0, -1]]
            matrix = (
                matrix.astype(ml_dtypes.bfloat16).astype(np.float32)
                if name == "nf4_bfloat16"
                else matrix
            )
            np.testing.assert_array_equal(matrix, rows, err_msg=key)
        compared += 1
    assert compared == {"nf4_dynamic": 9, "nf4_gpt2": 6}.get(name, 14)


@pytest.mark.parametrize("name", ["nf4", "nf4_bfloat16", "nf4_gpt2", "nf4_dynamic"])
def test_quantized_weights_stay_below_five_bits(name, tmp_path):
    params = load(write(name, tmp_path)).params
    leaves = [leaf for leaf in tree.paths(params, is_leaf).values() if isinstance(leaf, Quantized)]
    assert leaves and all(leaf.nbits() <= 4.6 * leaf.size for leaf in leaves)
    assert tree.nbits(params) < 0.55 * sum(
        32 * leaf.size for leaf in jax.tree.leaves(params, is_leaf=is_leaf)
    )


def test_layers_of_several_forms_are_kept_apart(tmp_path):
    layers = load(write("nf4_dynamic", tmp_path)).params["layers"]
    assert isinstance(layers, tuple)
    dense = {
        (index, path)
        for index, layer in enumerate(layers)
        for path, leaf in tree.paths(layer, is_leaf).items()
        if not isinstance(leaf, Quantized) and leaf.ndim > 1
    }
    attention = {(1, f"attention/{role}") for role in ("query", "key", "value", "out")}
    assert dense == {(0, "mlp/down")} | attention


UNTIED = dict(tie_word_embeddings=False)


def cut(weight, w, block):
    """A matrix [out, in] in the file's form, by its definition in numpy; and what it stands for."""
    book = tensors("nf4")["model.layers.0.mlp.up_proj.weight.quant_map"]
    flat = np.pad(w.reshape(-1), (0, -w.size % block)).reshape(-1, block)
    absmax = np.abs(flat).max(axis=1)
    codes = np.abs(flat[:, :, None] / absmax[:, None, None] - book).argmin(axis=-1).astype(np.uint8)
    held = codes.reshape(-1)[: w.size + w.size % 2]
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(w.shape)}
    stored = {
        weight: (held[::2] << 4 | held[1::2])[:, None],
        f"{weight}.absmax": absmax,
        f"{weight}.quant_map": book,
        f"{weight}.quant_state.bitsandbytes__nf4": np.frombuffer(
            json.dumps(state).encode(), np.uint8
        ),
    }
    return stored, (book[codes] * absmax[:, None]).reshape(-1)[: w.size].reshape(w.shape)


def narrow(name, changes, linear, turned, block, folder):
    """The model of a golden with widths that blocks do not divide: a quantized folder and one with
    the same weights dense."""
    config = json.loads(str(golden(name)["config"])) | changes
    quantization = config.pop("quantization_config")
    c = family_of(load(write(name, folder / "wide")).config).read_config(config, set())
    rng, quantized, dense = np.random.default_rng(0), {}, {}
    for rule in family_of(c).rules(c):
        for layer in range(c.layers if "{layer}" in rule.name else 1):
            key, shape = rule.name.format(layer=layer), source_shape(rule.pattern, letter_sizes(c))
            w = (
                0.2 * rng.normal(size=shape)
                + (rule.name.endswith("norm.weight") or ".ln_" in rule.name)
            ).astype(np.float32)
            dense[key] = w
            if any(key.endswith(f"{part}.weight") for part in linear):
                stored, kept = cut(key, w.T if turned else w, block)
                quantized |= stored
                dense[key] = np.ascontiguousarray(kept.T if turned else kept)
            else:
                quantized[key] = w
    for path, arrays, extra in (
        ("flat", quantized, {"quantization_config": quantization}),
        ("dense", dense, {}),
    ):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config | extra))
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()},
            folder / path / "model.safetensors",
        )
    return folder / "flat", folder / "dense"


@pytest.mark.parametrize(
    ("name", "changes", "linear", "block", "kind"),
    [
        ("nf4", UNTIED, [*LLAMA, "lm_head"], 64, Quantized),
        (
            "nf4",
            UNTIED | dict(hidden_size=40, intermediate_size=72, head_dim=10),
            [*LLAMA, "lm_head"],
            64,
            FlatQuantized,
        ),
        # A block ends inside the keys and inside the values: each of the three begins within a
        # block of its own.
        ("nf4_gpt2", dict(n_embd=40, n_inner=72), [*GPT2, "c_attn"], 128, FlatQuantized),
    ],
)
def test_blocks_that_run_over_the_ends_of_rows_stay_as_they_are(
    name, changes, linear, block, kind, tmp_path
):
    (tmp_path / "wide").mkdir()
    flat, dense = (
        load(p) for p in narrow(name, changes, linear, name == "nf4_gpt2", block, tmp_path)
    )
    found = {
        path: leaf
        for path, leaf in tree.paths(flat.params, is_leaf).items()
        if isinstance(leaf, Quantized)
    }
    wanted = tree.paths(dense.params)
    assert len(found) == (8 if name == "nf4" else 6)
    for path, leaf in found.items():
        assert type(leaf) is kind and leaf.shape == wanted[path].shape
        np.testing.assert_array_equal(leaf.dense(), wanted[path], err_msg=path)
    ids = golden(name)["ids"]
    if kind is FlatQuantized:
        np.testing.assert_allclose(
            flat.logits(ids), dense.logits(ids), atol=1e-5, rtol=0
        )  # the same weights, other sums
    if "lm_head" in linear:
        rows = found["head/table"].take(ids)
        np.testing.assert_array_equal(rows, wanted["head/table"][ids])
    (tmp_path / "again").mkdir()
    write_bitsandbytes(flat.checkpoint, tmp_path / "again", flat.params)
    written, stored = (
        load_file(tmp_path / path / "model.safetensors") for path in ("again", "flat")
    )
    assert written.keys() == stored.keys()
    for key in stored:
        if "quant_state" not in key:
            np.testing.assert_array_equal(written[key], stored[key], err_msg=key)


@pytest.mark.parametrize("name", ["nf4", "int8", "nf4_dynamic"])
def test_a_mesh_changes_nothing(name, tmp_path):
    loaded = load(write(name, tmp_path), mesh="fsdp:2,tensor:2,data:2")
    assert any(
        not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(loaded.params["layers"])
    )
    ids = np.concatenate([golden(name)["ids"]] * 2)
    np.testing.assert_allclose(
        loaded.logits(ids)[:2], golden(name)["logits"], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", GOLDENS)
def test_what_is_read_is_written_as_it_was(name, tmp_path):
    loaded = load(write(name, tmp_path))
    (tmp_path / "again").mkdir()
    write_bitsandbytes(loaded.checkpoint, tmp_path / "again", loaded.params)
    with open_checkpoint(tmp_path / "again") as again:
        for path, parameter in loaded.checkpoint.parameters.items():
            for index in parameter.indices():
                np.testing.assert_array_equal(
                    again.parameters[path].read(index), parameter.read(index), err_msg=path
                )
    written, wanted = load_file(tmp_path / "again/model.safetensors"), tensors(name)
    # GPT-2's queries, keys and values share blocks of scales; taken apart these are floats, and
    # written as such.
    shared = {
        key
        for key in wanted
        if "c_attn.weight" in key and key.endswith(("absmax", "nested_quant_map", "__nf4"))
    }
    assert written.keys() == wanted.keys() - {key for key in shared if "nested" in key}
    for key, value in wanted.items():
        if key in shared:
            continue
        if "quant_state" in key:
            assert json.loads(written[key].tobytes()) == json.loads(value.tobytes())
        else:
            # A division by 127 and back, in float32.
            np.testing.assert_allclose(
                written[key], value, rtol=1.2e-7 if key.endswith("SCB") else 0, err_msg=key
            )


ONE = [("layers/attention/query", "nf4"), (".*", None)]
ALL = [(r"layers/(attention|mlp)/(query|key|value|out|gate|up|down)", "nf4"), (".*", None)]


def same(first, second):
    """Whether two trees are the same, structure and bits."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("mesh", [None, "fsdp:2,tensor:2,data:2"])
def test_a_checkpoint_is_quantized_slice_by_slice_as_a_whole(mesh, tmp_path):
    convert(write("nf4", tmp_path), tmp_path / "dense", "native", certified=False)
    plain = load(tmp_path / "dense")
    specs, mesh = plain.model.specs(), None if mesh is None else make_mesh(mesh)
    # Each slice is gone before the next is read.
    alive: list[weakref.ref] = []

    def watched(parameter):
        def read(index):
            assert not any(old() is not None for old in alive)
            values = parameter.read(index)
            alive.append(weakref.ref(values))
            return values

        return replace(parameter, read=read)

    with open_checkpoint(tmp_path / "dense") as checkpoint:
        wanted = abstract(quantize_specs(specs, ONE), np.dtype("float32"), mesh, RULES)
        watching = replace(
            checkpoint, parameters={path: watched(p) for path, p in checkpoint.parameters.items()}
        )
        got = watching.restore(wanted)
    same(got, quantize(plain.params, specs, ONE))
    assert len(alive) == sum(len(list(p.indices())) for p in checkpoint.parameters.values())
    spread = [
        not leaf.sharding.is_fully_replicated
        for leaf in jax.tree.leaves(got["layers"]["attention"]["query"])
    ]
    assert any(spread) == (mesh is not None)


def test_codes_in_the_form_that_is_asked_for_are_taken_as_they_are(tmp_path):
    loaded = load(write("nf4", tmp_path))
    specs = quantize_specs(loaded.model.specs(), ALL)
    with open_checkpoint(tmp_path) as checkpoint:
        unread = {
            path: replace(p, read=None)
            for path, p in checkpoint.parameters.items()
            if path in checkpoint.codes
        }
        blind = replace(checkpoint, parameters={**checkpoint.parameters, **unread})
        same(blind.restore(abstract(specs, np.dtype("float32"))), loaded.params)


@pytest.mark.parametrize("name", ["nf4", "nf4_dynamic"])
def test_an_adapter_lies_on_codes(name, tmp_path):
    loaded = load(write(name, tmp_path))
    adapters = lora_specs(Model(loaded.config).specs(), LoraConfig(rank=2, alpha=4.0))
    adapters = initialize(jax.random.key(0), adapters, np.dtype("float32"))
    adapters = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), adapters
    )
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", adapters, loaded.config)
    adapted, ids = load(tmp_path, adapter=tmp_path / "adapter"), golden(name)["ids"]
    convert(tmp_path, tmp_path / "dense", "native", certified=False)
    dense = load(tmp_path / "dense", adapter=tmp_path / "adapter")
    assert np.abs(dense.logits(ids) - golden(name)["logits"]).max() > 0.1
    np.testing.assert_allclose(adapted.logits(ids), dense.logits(ids), atol=TOLERANCE, rtol=0)
    held = [leaf for leaf in tree.paths(adapted.params, is_leaf).values() if isinstance(leaf, Lora)]
    assert (
        all(isinstance(leaf.base, Quantized) for leaf in held) != (name == "nf4_dynamic")
        and len(held) >= 7
    )


# tests/parity has NF4.
@pytest.mark.parametrize("format", ["int8"])
def test_a_checkpoint_is_written_with_its_matrices_quantized(format, tmp_path):
    convert(write("nf4_gpt2", tmp_path), tmp_path / "dense", "native", certified=False)
    (tmp_path / "again").mkdir()
    with open_checkpoint(tmp_path / "dense") as checkpoint:
        write_bitsandbytes(checkpoint, tmp_path / "again", format=format)
    again, wanted = load(tmp_path / "again"), load(tmp_path / "dense", quantize=format)
    for path, leaf in tree.paths(wanted.params, is_leaf).items():
        got = tree.paths(again.params, is_leaf)[path]
        assert type(got) is type(leaf)
        # The largest of a row is stored, and the scale, a 127th of it, can round anew.
        dense = (np.asarray(x.dense() if isinstance(x, Quantized) else x) for x in (got, leaf))
        np.testing.assert_allclose(*dense, rtol=2.4e-7, err_msg=path)


def damage(folder, tensor, change):
    """Changes a tensor of a folder's file, or takes it away."""
    held = load_file(folder / "model.safetensors")
    key = next(key for key in held if key.endswith(tensor))
    held[key] = None if change is None else change(held[key])
    save_file(
        {key: value for key, value in held.items() if value is not None},
        folder / "model.safetensors",
    )


def state(**changes):
    return lambda x: np.frombuffer(json.dumps(json.loads(x.tobytes()) | changes).encode(), np.uint8)


@pytest.mark.parametrize(
    ("tensor", "change", "says"),
    [
        ("up_proj.weight.nested_absmax", None, "no tensor .*up_proj.weight.nested_absmax, which"),
        (
            "up_proj.weight.quant_map",
            lambda x: x[::-1].copy(),
            "quant_type='nf4' with its own values",
        ),
        (
            "up_proj.weight.quant_state.bitsandbytes__nf4",
            lambda x: x[:20].copy(),
            "damaged quant_state",
        ),
        (
            "up_proj.weight.quant_state.bitsandbytes__nf4",
            state(shape=[64, 64]),
            "has the shape .*, the config wants",
        ),
        (
            "up_proj.weight.quant_state.bitsandbytes__nf4",
            state(quant_type="af4"),
            "quant_type='af4'",
        ),
        ("up_proj.weight.quant_state.bitsandbytes__nf4", state(blocksize=0), "blocks of 0"),
        (
            "up_proj.weight.quant_state.bitsandbytes__nf4",
            None,
            "has no tensor|has the shape|has the tensor",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_the_weights_name(tensor, change, says, tmp_path):
    damage(write("nf4", tmp_path), tensor, change)
    with pytest.raises(ValueError, match=says):
        open_checkpoint(tmp_path)


def test_codes_of_another_number_than_the_shape_says_are_refused(tmp_path):
    damage(write("nf4", tmp_path), "up_proj.weight", lambda x: x[:-1].copy())
    with pytest.raises(
        ValueError, match="up_proj.weight has 8190 codes, its quant_state says 128 x 64"
    ):
        load(tmp_path)


def test_what_is_quantized_otherwise_or_already_is_refused(tmp_path):
    folder = write("nf4", tmp_path)
    with pytest.raises(ValueError, match="is quantized already; load it without quantize='int8'"):
        load(folder, quantize="int8")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"bitsandbytes"', '"quip"'))
    with pytest.raises(ValueError, match="quant_method='quip'; supported are bitsandbytes, gptq"):
        load(folder)
    with open_checkpoint(write("nf4_bfloat16", tmp_path)) as checkpoint:
        with pytest.raises(
            ValueError, match="bitsandbytes has no 'int4'; choose one of nf4, fp4, int8"
        ):
            write_bitsandbytes(checkpoint, tmp_path, format="int4")


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_what_transformers_keeps_in_float32_is_written_dense(name, tmp_path):
    with np.load(GOLDENS_OF_FAMILIES / f"{name}.npz") as file:
        values = json.loads(str(file["config"]))
    # Inputs that groups of 64 divide.
    values |= {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_heads": 4}
    family = next(one for one in FAMILIES.values() if name in one.model_types)
    # Without the head's tensor it is the table.
    c = family.read_config(values, set() if values["tie_word_embeddings"] else {"lm_head.weight"})
    parameters = {
        path: Parameter(
            spec.shape,
            "float32",
            stacked_axes(spec),
            lambda index, shape=spec.shape: np.ones(shape[len(index) :], np.float32),
        )
        for path, spec in specs_by_path(c).items()
    }
    write_bitsandbytes(Checkpoint(tmp_path, "made", c, parameters), tmp_path, format="nf4")
    written = load_file(tmp_path / "model.safetensors")
    matrices = {key: x for key, x in written.items() if re.search(r"\.(wo|q)\.weight$", key)}
    kinds = {(key.split(".")[-2], str(x.dtype), x.ndim) for key, x in matrices.items()}
    assert {one for one in kinds if one[0] == "wo"} == {("wo", "float32", 2)}
    assert {one for one in kinds if one[0] == "q"} == {("q", "uint8", 2)}
    wo = next(x for key, x in matrices.items() if key.endswith("wo.weight"))
    assert wo.shape == (64, 64)
