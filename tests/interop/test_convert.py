import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import tree
from research.files import building
from research.interop import formats, native
from research.interop.certificate_lines import describe
from research.interop.convert import convert, verify
from research.interop.huggingface import folder as hf
from research.interop.huggingface.families.table import describe as describe_family
from research.interop.load import load, open_checkpoint
from research.models.kinds import layer_windows
from research.models.model import forward
from research.models.presets import PRESETS
from research.weights import rules
from tests.families import FAMILIES, random_batch
from tests.interop.memory import in_memory, random_params

MARIAN = replace(FAMILIES["transformer_base"], attention_bias="all", head_bias=True)
DISTILBERT = dict(token_types=0, embedding_norm=True)
MODELS = {
    **{name: c for name, c in FAMILIES.items() if name != "transformer_base"},
    "marian": MARIAN,
    "llama_with_biases": replace(
        FAMILIES["llama2_7b"], attention_bias="all", mlp_bias=True, tied=True
    ),
    "bert_classifier": replace(FAMILIES["bert_base"], mlm_head=False, labels=3),
    "roberta": replace(FAMILIES["bert_base"], position_offset=2, pooler=False),
    "distilbert": replace(
        FAMILIES["bert_base"], **DISTILBERT, mlm_head=False, pooler_layer="relu", labels=3
    ),
    "electra": replace(FAMILIES["bert_base"], pooler=False, pooler_layer="gelu"),
    "modernbert_classifier": replace(
        FAMILIES["modernbert_base"], pooler=True, mlm_head=False, labels=3
    ),
    "roberta_tokens": replace(
        FAMILIES["bert_base"],
        **{"position_offset": 2, "pooler": False, "mlm_head": False},
        **{"labels": 3, "labels_over": "tokens"},
    ),
    "modernbert_spans": replace(
        FAMILIES["modernbert_base"], mlm_head=False, labels=2, labels_over="spans"
    ),
    "mbart": replace(FAMILIES["bart_base"], norm_after=False, decoder_start="pad"),
    "whisper": replace(
        PRESETS["whisper_tiny"],
        **dict(vocab_size=96, layers=2, encoder_layers=2, d_model=32, heads=4, kv_heads=4),
        **dict(head_size=8, d_ff=64, max_length=32, mels=8, frames=24),
    ),
    "t5_gated": replace(
        FAMILIES["t5_small"], gated=True, activation="gelu_tanh", tied=False, head_scale=1.0
    ),
}


def same(first, second):
    """Whether two trees of arrays are equal bit by bit."""
    left, right = tree.paths(first), tree.paths(second)
    return left.keys() == right.keys() and all(
        left[path].dtype == right[path].dtype
        and np.asarray(left[path]).tobytes() == np.asarray(right[path]).tobytes()
        for path in left
    )


@pytest.fixture
def llama(tmp_path):
    """A folder of a small LLaMA in Hugging Face's form, and its parameters."""
    c = FAMILIES["llama2_7b"]
    params = random_params(c)
    with building(tmp_path / "llama") as folder:
        hf.write_folder(in_memory(c, params, special={"eos_token_id": 2}), folder)
    return tmp_path / "llama", params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_way_through_every_format_keeps_every_bit(name, dtype, tmp_path):
    c = MODELS[name]
    params = random_params(c, dtype)
    with building(tmp_path / "theirs") as folder:
        hf.write_folder(in_memory(c, params), folder)
    certificate = convert(tmp_path / "theirs", tmp_path / "ours", "native")
    assert certificate["round_trip"]["bit_equal"] == certificate["round_trip"]["tensors"] > 10
    convert(tmp_path / "ours", tmp_path / "again", "hf")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "theirs/model.safetensors"
    ).read_bytes()
    assert same(load(tmp_path / "ours", dtype).params, params)


@pytest.mark.parametrize("name", ["mixtral_8x7b", "t5_small", "gpt2"])
def test_shards_hold_what_one_file_holds(name, tmp_path):
    params = random_params(FAMILIES[name])
    for write in (hf.write_folder, native.write_native):
        with building(tmp_path / write.__name__) as folder:
            write(in_memory(FAMILIES[name], params), folder, shard_bytes=20_000)
        assert len(list((tmp_path / write.__name__).glob("*.safetensors"))) > 2
        assert same(load(tmp_path / write.__name__).params, params)


@pytest.mark.parametrize("write", [hf.write_folder, native.write_native])
def test_shards_without_their_index_are_read_by_their_names(write, tmp_path):
    c = FAMILIES["llama2_7b"]
    params = random_params(c)
    with building(tmp_path / "model") as folder:
        write(in_memory(c, params), folder, shard_bytes=20_000)
    [index] = (tmp_path / "model").glob("*.index.json")
    index.unlink()
    assert same(load(tmp_path / "model").params, params)
    gone = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ValueError, match=f"{gone.name} is missing; give the whole"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("family", "tensor", "others"),
    [
        (
            "t5_small",
            "shared.weight",
            ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
        ),
        ("t5_gated", "shared.weight", ["decoder.embed_tokens.weight"]),
        ("marian", "model.shared.weight", ["model.encoder.embed_tokens.weight"]),
        ("bert_base", "bert.embeddings.word_embeddings.weight", ["cls.predictions.decoder.weight"]),
    ],
)
def test_a_table_may_be_there_under_its_copies_names_alone(family, tensor, others, tmp_path):
    c = MODELS[family] if family != "bert_base" else replace(MODELS[family], mlm_head=True)
    params = random_params(c)
    with building(tmp_path / "model") as folder:
        hf.write_folder(in_memory(c, params), folder)
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    table = tensors.pop(tensor)
    save_file(tensors | {name: table for name in others}, file, {"format": "pt"})
    assert same(load(tmp_path / "model").params, params)
    assert convert(tmp_path / "model", tmp_path / "native")["round_trip"]["bit_equal"] > 10


@pytest.mark.parametrize(
    ("name", "mesh"), [("llama2_7b", "fsdp:4,tensor:2"), ("mixtral_8x7b", "fsdp:2,expert:4")]
)
def test_a_model_read_onto_a_mesh_is_the_one_of_one_device(name, mesh, tmp_path):
    c = FAMILIES[name]
    with building(tmp_path / "model") as folder:
        native.write_native(in_memory(c, random_params(c)), folder)
    spread, alone = load(tmp_path / "model", mesh=mesh), load(tmp_path / "model")
    assert same(jax.device_get(spread.params), jax.device_get(alone.params))
    held = max(
        x.addressable_shards[0].data.size / x.size
        for x in jax.tree.leaves(spread.params)
        if x.ndim > 2
    )
    assert held <= 0.5  # every matrix is split at least in two
    tokens = random_batch(8, 16)["inputs"]
    # Sums over devices come in another order, which rounds apart at the size of the largest logits.
    got, wanted = spread.logits(tokens), alone.logits(tokens)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_logits_are_those_of_the_model_and_padding_changes_nothing(llama):
    loaded = load(llama[0])
    tokens = np.random.default_rng(0).integers(0, 96, (2, 9), dtype=np.int32)
    whole = loaded.logits(tokens)
    ones, positions = np.ones_like(tokens), np.tile(np.arange(9, dtype=np.int32), (2, 1))
    expected = forward(
        loaded.model, loaded.params, {"inputs": tokens, "segments": ones, "positions": positions}
    )
    np.testing.assert_allclose(whole, expected, atol=1e-5)  # one is compiled as a whole
    padded = np.concatenate([tokens, np.full((2, 3), 7, np.int32)], axis=1)
    masked = loaded.logits(padded, mask=np.arange(12)[None] < np.full((2, 1), 9))
    np.testing.assert_allclose(
        masked[:, :9], whole, atol=1e-5
    )  # another shape, another order of sums


def test_a_model_is_quantized_as_it_is_loaded(tmp_path):
    c = replace(FAMILIES["llama2_7b"], d_model=64, d_ff=128, head_size=16)
    with building(tmp_path / "model") as folder:
        native.write_native(in_memory(c, random_params(c)), folder)
    loaded, plain = load(tmp_path / "model", quantize="nf4"), load(tmp_path / "model")
    tokens = random_batch(2, 16)["inputs"]
    specs = loaded.model.specs()
    matrices = [(r"layers/(attention|mlp)/\w+", "nf4"), (".*", None)]
    assert same(loaded.params, rules.quantize(plain.params, specs, matrices))
    assert not np.allclose(loaded.logits(tokens), plain.logits(tokens), atol=1e-3)
    with pytest.raises(ValueError, match="quantize='nf5' wants one of int8"):
        load(tmp_path / "model", quantize="nf5")


def test_a_certificate_is_checked_whenever_the_folder_is_opened(llama, tmp_path):
    convert(llama[0], tmp_path / "ours")
    assert verify(tmp_path / "ours")["rechecked"] == [
        "target hashes",
        "source hashes",
        "round trip",
    ]
    weights = tmp_path / "ours/params.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="params.safetensors is not the file that was certified"):
        load(tmp_path / "ours")
    weights.unlink()
    with pytest.raises(ValueError, match="lacks params.safetensors"):
        load(tmp_path / "ours")


def test_a_certificate_that_was_edited_is_refused(llama, tmp_path):
    convert(llama[0], tmp_path / "ours")
    file = tmp_path / "ours/certificate.json"
    file.write_text(file.read_text().replace('"unused": {}', '"unused": {"x": "y"}'))
    with pytest.raises(ValueError, match="certificate.json was changed"):
        verify(tmp_path / "ours")


def test_verify_finds_a_source_that_no_longer_gives_the_target(llama, tmp_path, monkeypatch):
    convert(llama[0], tmp_path / "ours")
    (llama[0] / "model.safetensors").unlink()
    assert verify(tmp_path / "ours")["rechecked"] == ["target hashes"]
    with pytest.raises(ValueError, match="no certificate.json"):
        verify(llama[0])


def test_a_narrower_type_is_certified_with_its_error(llama, tmp_path):
    trip = convert(llama[0], tmp_path / "half", dtype="bfloat16")["round_trip"]
    # bfloat16 keeps 8 bits: half a unit in the last place of values up to 4 is 2^-7.
    assert 0 < trip["root_mean_square_error"] < trip["largest_error"] <= 2**-7
    assert (
        load(tmp_path / "half", "bfloat16").params["layers"]["mlp"]["up"].dtype
        == jax.numpy.bfloat16
    )


def test_nothing_is_left_of_a_conversion_that_fails(llama, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("full")

    monkeypatch.setattr(native, "write_safetensors", fail)
    with pytest.raises(ValueError, match="full"):
        convert(llama[0], tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_target_that_is_there_is_left_alone(llama, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        convert(llama[0], tmp_path / "ours")
    assert (tmp_path / "ours/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v | {"model_type": "rwkv"}, "model_type='rwkv'; there are gemma, "),
        (lambda v: v | {"hidden_size": "large"}, "hidden_size='large'; wanted a positive integer"),
        (lambda v: v | {"hidden_size": 2**63}, "wanted a positive integer"),
        (
            lambda v: v | {"num_hidden_layers": 3},
            "no tensor 'model.layers.2.input_layernorm.weight'",
        ),
        (lambda v: v | {"num_hidden_layers": 1}, "'model.layers.1.* no place for"),
        (lambda v: v | {"intermediate_size": 65}, r"shape \[64, 32\], the config wants \[65, 32\]"),
        (
            lambda v: v | {"rope_scaling": {"rope_type": "mrope", "factor": 4.0}},
            "rope_type='mrope'; default, linear, llama3",
        ),
        (lambda v: v | {"hidden_act": "mish"}, "hidden_act='mish'"),
        (lambda v: {k: x for k, x in v.items() if k != "vocab_size"}, "no vocab_size"),
        (lambda v: [v], "no JSON object"),
    ],
)
def test_a_config_that_does_not_fit_is_named_in_one_line(llama, change, says):
    file = llama[0] / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=says) as error:
        open_checkpoint(llama[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("llama2_7b", "num_hidden_layers"),
        ("gemma3_1b", "num_hidden_layers"),
        ("mixtral_8x7b", "num_local_experts"),
        ("gpt2", "n_layer"),
        ("t5_small", "num_layers"),
        ("marian", "encoder_layers"),
    ],
)
def test_more_layers_than_tensors_are_refused_before_anything_is_built(family, field, tmp_path):
    c = MODELS[family]
    with building(tmp_path / "model") as folder:
        hf.write_folder(in_memory(c, random_params(c)), folder)
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: 10**9}))
    with pytest.raises(ValueError, match=rf"{field}=1,000,000,000, and the files hold \d+ tensors"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    "where",
    [
        "../llama/model.safetensors",
        "/etc/passwd",
        "..",
        "a/b.safetensors",
        "a\\b",
        "missing.safetensors",
        "",
        7,
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(llama, where):
    index = {"weight_map": {"lm_head.weight": where}}
    (llama[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="folder itself|is missing|no weight_map"):
        open_checkpoint(llama[0])


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_a_damaged_companion_does_not_keep_the_weights_from_loading(llama, content):
    (llama[0] / "tokenizer_config.json").write_text(content)
    loaded = load(llama[0])
    assert loaded.logits(np.zeros((1, 4), np.int32)).shape == (1, 4, 96)
    with pytest.raises(ValueError, match="tokenizer_config.json of .* is no"):
        loaded.begins_texts


def test_pickled_weights_are_never_read(llama):
    (llama[0] / "model.safetensors").rename(llama[0] / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are never read"):
        open_checkpoint(llama[0])


def test_new_and_old_spellings_of_the_rotary_scaling_mean_the_same(tmp_path):
    c = FAMILIES["llama3_405b"]
    with building(tmp_path / "model") as folder:
        hf.write_folder(in_memory(c, random_params(c)), folder)
    file = tmp_path / "model/config.json"
    values = json.loads(file.read_text())
    assert values["rope_scaling"]["rope_type"] == "llama3" and open_checkpoint(
        tmp_path / "model"
    ).config == replace(c, dropout=0.0, router_loss=0.0)
    scaling, theta = values.pop("rope_scaling"), values.pop("rope_theta")
    for new in (
        {**scaling, "rope_theta": theta},
        {"full_attention": {**scaling, "rope_theta": theta}},
    ):
        file.write_text(json.dumps(values | {"rope_parameters": new}))
        assert open_checkpoint(tmp_path / "model").config.rope_scaling == c.rope_scaling
        assert open_checkpoint(tmp_path / "model").config.rope_theta == c.rope_theta


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({"use_sliding_window": False}, [0, 0]),
        ({"use_sliding_window": True, "max_window_layers": 0}, [5, 5]),
        ({"use_sliding_window": True, "max_window_layers": 2}, [0, 0]),
        ({"use_sliding_window": True}, [0, 0]),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, [5, 5]),
        ({"use_sliding_window": True, "max_window_layers": 1}, [0, 5]),
        (
            {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            [5, 0],
        ),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"]}, None),
    ],
)
def test_qwens_windows_are_read_as_transformers_reads_them(change, windows, tmp_path):
    c = FAMILIES["qwen2.5_7b"]
    with building(tmp_path / "model") as folder:
        hf.write_folder(in_memory(c, random_params(c)), folder)
    file = tmp_path / "model/config.json"
    values = {k: v for k, v in json.loads(file.read_text()).items() if k != "max_window_layers"}
    file.write_text(json.dumps({**values, "sliding_window": 5, **change}))
    if windows is None:
        with pytest.raises(ValueError, match="for each of its 2 layers"):
            open_checkpoint(tmp_path / "model")
        return
    opened = open_checkpoint(tmp_path / "model").config
    assert layer_windows(opened) == windows
    family, again = describe_family(opened)  # and written so
    assert layer_windows(family.read_config(again, {"lm_head.weight"})) == windows


def test_experts_that_are_one_mlp_compute_what_it_computes():
    dense = FAMILIES["llama2_7b"]
    mixed = replace(dense, experts=4)
    params = random_params(dense)
    mlp = {
        name: np.repeat(np.asarray(w)[:, None], 4, axis=1)
        for name, w in params["layers"]["mlp"].items()
    }
    mlp["router"] = np.random.default_rng(1).normal(size=(2, 32, 4)).astype(np.float32)
    copied = {**params, "layers": {**params["layers"], "mlp": mlp}}
    from research.models.model import Model

    batch = {
        name: field
        for name, field in random_batch(2, 16).items()
        if not name.startswith("encoder_")
    }
    # The two experts' shares sum to one only to rounding.
    np.testing.assert_allclose(
        forward(Model(mixed), copied, batch), forward(Model(dense), params, batch), atol=2e-5
    )


def run(*arguments, **kwargs):
    """The command, with what it printed."""
    command = [sys.executable, "-m", "research.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_the_command_converts_verifies_and_answers_bad_input_in_one_line(llama, tmp_path):
    made = run(f"--source={llama[0]}", f"--target={tmp_path / 'ours'}", "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["round_trip"]["tensors"] == 21
    assert run(f"--verify={tmp_path / 'ours'}").returncode == 0
    (tmp_path / "ours/model.json").write_text("{}")
    refused = run(f"--verify={tmp_path / 'ours'}")
    assert (
        refused.returncode == 2
        and refused.stderr.count("\n") == 1
        and refused.stderr.startswith("error: ")
    )
    truncated = llama[0] / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    refused = run(f"--source={llama[0]}", f"--target={tmp_path / 'new'}")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_flag_that_would_change_nothing_is_refused(tmp_path):
    refused = run("--source=anything", f"--target={tmp_path / 'new'}", "--sound_stack=10")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --sound_stack is of the encoder that --sound names")


def test_one_text_has_the_logits_of_a_batch_of_one(llama):
    loaded = load(llama[0])
    ids = [5, 17, 3, 80, 2]
    got = loaded.logits(ids)
    assert got.dtype == np.float32 and got.shape == (5, 96)
    np.testing.assert_array_equal(got, loaded.logits(np.array([ids]))[0])


def test_the_package_gives_load_and_imports_no_jax_for_it():
    said = "import sys, research; assert 'jax' not in sys.modules; print(research.load.__module__)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "research.interop.load"
    with pytest.raises(ImportError, match="cannot import name 'unload'"):
        from research import unload  # noqa: F401


@pytest.mark.parametrize("to", ["native", "hf", "gguf"])
@pytest.mark.parametrize("certified", [True, False])
@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (70000.0, "float16", "values beyond 65504"),
        (3.4e38, "bfloat16", "values beyond 3.38"),
        (np.nan, "", "1 of .* values that are NaN or infinite"),
        (-np.inf, "float16", "1 of .* values that are NaN or infinite"),
    ],
)
def test_numbers_that_cannot_be_written_are_refused_by_the_tensors_name(
    value, dtype, says, certified, to, tmp_path
):
    c = FAMILIES["llama2_7b"]
    arrays = {path: np.array(x) for path, x in tree.paths(random_params(c)).items()}
    arrays["layers/mlp/down"][1, 0, 0] = value
    with building(tmp_path / "source") as folder:
        hf.write_folder(in_memory(c, tree.unflatten(arrays)), folder)
    named = {"native": "layers/mlp/down", "hf": "model.layers.1.mlp.down_proj.weight"}
    name = named.get(to, "blk.1.ffn_down.weight")
    with pytest.raises(ValueError, match=rf"(?s)^tensor '{re.escape(name)}'.*{says}") as refused:
        convert(tmp_path / "source", tmp_path / "target", to, dtype, certified)
    assert "\n" not in str(refused.value) and not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("to", "dtype", "says"),
    [
        ("gguf", "q8_0", "quantized as asked: q8_0, "),
        ("gguf", "q4_1", "quantized as asked: q4_1, "),
        ("hf", "bfloat16", "rounded as asked: bfloat16, "),
        ("native", "", " tensors come back bit by bit"),
    ],
)
def test_a_loss_that_was_asked_for_is_said_as_such(to, dtype, says, llama, tmp_path):
    certificate = convert(llama[0], tmp_path / "target", to, dtype)
    [line] = describe(certificate)
    assert says in line
    if dtype:
        trip = certificate["round_trip"]
        kept, lost = trip["bit_equal"], trip["tensors"] - trip["bit_equal"]
        assert f" of {lost} tensors; {kept} kept bit by bit" in line


def test_the_fields_of_the_config_are_part_of_the_certificate(llama, tmp_path, monkeypatch):
    certificate = convert(llama[0], tmp_path / "native")
    assert certificate["model"]["rope_theta"] == FAMILIES["llama2_7b"].rope_theta
    assert certificate["special"] == {"eos_token_id": 2}

    # A writer that loses a field, as a check of tensors alone would let through.
    def lossy(c, folder, dtype):
        native.write_native(replace(c, config=replace(c.config, rope_theta=9.0)), folder)

    row = replace(formats.FORMATS["native"], writes=lossy)
    monkeypatch.setitem(formats.FORMATS, "native", row)
    with pytest.raises(ValueError, match=r"came out with model\.rope_theta=9\.0"):
        convert(llama[0], tmp_path / "other")
    assert not (tmp_path / "other").exists()
