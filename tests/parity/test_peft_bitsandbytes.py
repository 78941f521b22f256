"""peft and transformers load what we write: adapters, and weights in bitsandbytes' form."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
peft = pytest.importorskip("peft", reason="peft is not installed; pip install -e '.[parity]'")
bnb = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed; pip install -e '.[parity]'"
)

import transformers

from research.interop.bitsandbytes.write import write_bitsandbytes
from research.interop.load import load, open_checkpoint
from research.interop.peft.write import write_peft
from tests.interop.adapter_golden import ADAPTERS, adapter, plain
from tests.interop.golden import golden, real
from tests.interop.test_bitsandbytes import GOLDENS as QUANTIZED
from tests.interop.test_bitsandbytes import golden as quantized
from tests.interop.test_bitsandbytes import write as write_quantized
from tests.interop.test_peft import adapters_of
from tests.parity.test_transformers import INPUTS

pytestmark = pytest.mark.filterwarnings("ignore")  # peft calls what its own transformers deprecates
# peft's own logits before and after merging differ by 7e-6 to 2e-5.
TOLERANCE = 5e-5


def class_of(folder):
    """The model's class in transformers."""
    return getattr(
        transformers, json.loads((folder / "config.json").read_text())["architectures"][0]
    )


# Read as LoRA's factors, whatever they were before.
AS_LORA = ("adalora", "vera", "gpt2_vera", "mixtral_experts")
WRITTEN = [name for name in ADAPTERS if plain(name) or name in AS_LORA]


# Biases are multiplied, or tables are the base's own once they are read, and no part of what is
# written; `test_peft_grown` has adapters that bring tables with more rows.
OTHERWISE = ("gpt2_ia3", "tied_whole", "lora_resized")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in OTHERWISE])
def test_peft_loads_an_exported_adapter(name, tmp_path):
    adapters, config = adapters_of(name, tmp_path)
    (tmp_path / "again").mkdir()
    write_peft(tmp_path / "again", adapters, config, base="somewhere")
    base, fields = tmp_path / "base", golden(str(adapter(name)["base"]))
    model = class_of(base).from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "again").eval()
    given = {
        theirs: torch.from_numpy(fields[key].astype(np.int64))
        for key, theirs in INPUTS.items()
        if key in fields
    }
    with torch.no_grad():
        logits = model(**given).logits.numpy()
    if "classes" in adapter(name):
        np.testing.assert_allclose(logits, adapter(name)["classes"], atol=TOLERANCE)
        return
    where = real(str(adapter(name)["base"]))
    np.testing.assert_allclose(
        logits[:, -where.shape[1] :][where], adapter(name)["logits"][where], atol=TOLERANCE
    )


def in_float32(folder):
    """A quantized folder's model, without the path of some CPUs that goes through bfloat16."""
    model = (
        class_of(folder)
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "nf4_bfloat16"])
def test_transformers_loads_exported_codes(name, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    loaded = load(write_quantized(name, tmp_path / "theirs"))
    write_bitsandbytes(loaded.checkpoint, tmp_path / "ours", loaded.params)
    model = in_float32(tmp_path / "ours")
    assert any(
        isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)) for module in model.modules()
    )
    with torch.no_grad():
        logits = model(torch.from_numpy(quantized(name)["ids"].astype(np.int64))).logits.numpy()
    wanted = quantized(name)["activations" if name == "int8" else "logits"]
    np.testing.assert_allclose(logits, wanted, atol=TOLERANCE)


T5 = dict(vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
BERT = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_both_quantize_a_family_so_that_the_other_reads_it(name, tmp_path):
    kind, config = {
        "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config(**T5)),
        "bert": (transformers.BertForMaskedLM, transformers.BertConfig(**BERT)),
    }[name]
    kind(config).save_pretrained(tmp_path / "dense")
    (tmp_path / "ours").mkdir()
    with open_checkpoint(tmp_path / "dense") as checkpoint:
        write_bitsandbytes(checkpoint, tmp_path / "ours", format="nf4")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    quantizing = kind.from_pretrained(
        tmp_path / "dense", dtype=torch.float32, quantization_config=how
    )
    quantizing.save_pretrained(tmp_path / "theirs")
    ids = np.arange(10, 20)[None]
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        model, more = in_float32(folder), {}
        assert sum(isinstance(module, bnb.nn.Linear4bit) for module in model.modules()) >= 12
        if name == "t5":
            more = {"decoder_input_ids": torch.from_numpy(ids[:, :5])}
        with torch.no_grad():
            wanted = model(input_ids=torch.from_numpy(ids), **more).logits.numpy()
        got = load(folder).logits(ids, decoder_tokens=ids[:, :5] if more else None)
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
