"""Every family and every preset, from a Hugging Face folder to a GGUF file and back: without a
difference, or with the line that says what such a file cannot hold, or refused by name."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from research.interop.convert import convert
from research.interop.gguf.encoders import body
from research.interop.gguf.model import plan_gguf_model
from research.interop.load import open_checkpoint
from research.interop.storage.checkpoint import Checkpoint, Parameter, specs_by_path, stacked_axes
from research.models.config import Shape
from research.models.presets import PRESETS
from tests.interop import golden

EXACT, BODY, ROUNDED = "", "of an encoder", "norms are stored as 1 + w, which float32 rounds"
_ENCODER_DECODER = "no architecture for this encoder_decoder"
# Encoders by their family, whatever heads they have.
_ENCODERS = dict.fromkeys(("bert", "distilbert", "electra", "roberta", "xlm", "modernbert"), BODY)
_ENCODERS["mpnet"] = "no architecture for this encoder with learned positions"
# By golden: what comes of it. A text that is none of the above is of the refusal.
OUTCOMES = {
    **dict.fromkeys(("gpt2", "gpt_neox", "granite", "mistral", "mixtral", "ministral3"), EXACT),
    **dict.fromkeys(("llama_gqa", "llama_mha", "llama_mqa", "llama_rope3", "llama_wide"), EXACT),
    **dict.fromkeys(("llama_yarn", "llama_sharded", "llama_bfloat16", "phi3_window"), EXACT),
    **dict.fromkeys(("olmo2", "olmo3", "olmoe", "phi3", "qwen2", "qwen3", "qwen3_moe"), EXACT),
    **dict.fromkeys(("deepseek_v2_lite", "deepseek_v3", "t5", "t5_v1_1", "mt5"), EXACT),
    **dict.fromkeys(("bert_classifier", "roberta_classifier"), EXACT),
    "gemma": ROUNDED,
    # llama.cpp has no such model: no key for it, or no layer.
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus"), _ENCODER_DECODER),
    "opt": "no architecture for this decoder with learned positions",
    "llama_dynamic": "no dynamic scaling",
    # Goldens with settings that no published model of the family has.
    "deepseek_v2": "equal mscale and mscale_all_dim",
    **{f"gemma{n}": f"gemma{n} architecture has no attention_scale=" for n in (2, 3)},
    "phimoe": "phimoe architecture has no router_jitter=0.3",
    "qwen3_moe_dense": "qwen3moe architecture has no dense_layers=1",
    "gpt_oss": "gpt-oss architecture has no gate_limit=0.9",
    "modernbert_classifier": "modern-bert architecture has no norm_bias=True",
    "ministral": "llama architecture has no layer_kinds=('global', 'local', 'local')",
    "qwen2_moe": "qwen2moe architecture has no window=6",
    "smollm3": "smollm3 architecture has no unrotated_every=2",
}


def _takes_no_t5(c):
    return c.kind == "encoder_decoder" and c.position != "relative"


# Presets that no file holds, and why; all others read back as they are.
REFUSED = {
    **{name: _ENCODER_DECODER for name, c in PRESETS.items() if _takes_no_t5(c)},
    **{name: "no architecture for this decoder with learned" for name in PRESETS if "opt" in name},
    "mpnet_base": "no architecture for this encoder with learned",
    "gpt3_13b": "40 of 128 in 5140",  # the paper's own numbers
    # llama.cpp reads images from a file of their own.
    **{name: "architecture has no image=" for name, c in PRESETS.items() if c.image.layers},
}


@pytest.mark.parametrize("name", golden.GOLDENS)
def test_a_family_comes_back_or_is_refused_by_name(name, tmp_path):
    known = {name: _ENCODERS.get(name.split("_")[0])} | OUTCOMES
    wanted = known[name]
    assert wanted is not None, "a new family wants a row in the table"
    (tmp_path / "hf").mkdir()
    source = golden.write(name, tmp_path / "hf")
    if wanted not in (EXACT, BODY, ROUNDED):
        with pytest.raises(ValueError) as error:
            convert(source, tmp_path / "gguf", "gguf")
        assert wanted in str(error.value) and str(error.value).endswith("; use --to=hf")
        return
    notes = convert(source, tmp_path / "gguf", "gguf", certified=False)["notes"]
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    assert any(BODY in line for line in notes) == (wanted == BODY)
    with open_checkpoint(source) as whole, open_checkpoint(tmp_path / "again") as after:
        before = body(whole)[0]
        assert before.parameters.keys() == after.parameters.keys()
        for field in fields(Shape):
            mine, theirs = (getattr(one.config, field.name) for one in (before, after))
            assert mine == theirs, field.name
        for path, parameter in before.parameters.items():
            for index in parameter.indices():
                mine = parameter.read(index).astype(np.float32)
                theirs = after.parameters[path].read(index).astype(np.float32)
                # Of 1 + w, whose last bit is 2^-23 below 2.
                apart = 2.0**-24 if wanted == ROUNDED and "norm" in path else 0
                np.testing.assert_allclose(theirs, mine, rtol=0, atol=apart, err_msg=path)


def unread(c):
    """A model's checkpoint without its numbers."""
    parameters = {
        path: Parameter(spec.shape, "float32", stacked_axes(spec), None)
        for path, spec in specs_by_path(c).items()
    }
    return Checkpoint(Path("preset"), "memory", c, parameters)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_or_refused_by_name(name):
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]) as error:
            plan_gguf_model(unread(PRESETS[name]), "Q8_0")
        assert str(error.value).endswith("; use --to=hf")
        return
    # Whatever the metadata does not give back is refused there.
    metadata, entries, _ = plan_gguf_model(unread(PRESETS[name]), "Q8_0")
    assert metadata["general.architecture"] and len(entries) > PRESETS[name].layers
