"""transformers reads what we write: every golden, converted to our form and back, is the golden
again."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; pip install -e '.[parity]'"
)

from safetensors.numpy import load_file

from research.interop.convert import convert
from tests.interop.golden import GOLDENS, golden, real, tensors, write

INPUTS = {
    "ids": "input_ids",
    "mask": "attention_mask",
    "token_types": "token_type_ids",
    "decoder_ids": "decoder_input_ids",
}
# The next-sentence head is none of our model's; Pegasus' sinusoids are computed on both sides.
LEFT_OUT = {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
# A Phi 3 without LongRoPE is a Mistral, whose queries, keys and values are apart.
UNDER_OTHER_NAMES = ("phi3_window",)
SINUSOIDS = {"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}


def plain(name):
    """A tensor's name without the prefix that the bare model leaves out; transformers takes
    both."""
    return name.removeprefix("bert.").removeprefix("roberta.")


@pytest.mark.parametrize("name", GOLDENS)
def test_an_exported_folder_is_the_model(name, tmp_path):
    (tmp_path / "theirs").mkdir()
    write(name, tmp_path / "theirs")
    left_out = LEFT_OUT | (SINUSOIDS if name == "pegasus" else set())
    convert(tmp_path / "theirs", tmp_path / "ours", "native", certified=False)
    convert(tmp_path / "ours", tmp_path / "again", "hf", certified=False)
    written = {
        plain(key): value for key, value in load_file(tmp_path / "again/model.safetensors").items()
    }
    wanted = {plain(key): value for key, value in tensors(name).items() if key not in left_out}
    assert name in UNDER_OTHER_NAMES or written.keys() == wanted.keys()
    for key in written.keys() & wanted.keys():
        value = wanted[key]
        assert written[key].dtype == value.dtype and written[key].tobytes() == value.tobytes(), key

    kind = getattr(
        transformers, json.loads((tmp_path / "again/config.json").read_text())["architectures"][0]
    )
    model, info = kind.from_pretrained(
        tmp_path / "again", dtype=torch.float32, output_loading_info=True
    )
    assert (
        set(info["missing_keys"]) <= left_out
        and not info["unexpected_keys"]
        and not info["mismatched_keys"]
    )
    fields = golden(name)
    given = {
        theirs: fields[key].astype(np.int64) for key, theirs in INPUTS.items() if key in fields
    }
    with torch.no_grad():
        found = model.eval()(**{key: torch.from_numpy(value) for key, value in given.items()})
    outputs = {
        "logits": "logits",
        "hidden": "last_hidden_state",
        "pooled": "pooler_output",
        "classes": "logits",
    }
    if "prediction_logits" in found:
        outputs["logits"] = "prediction_logits"
    if "start_logits" in found:  # the two classes of a model that marks spans
        found["spans"] = torch.stack([found.start_logits, found.end_logits], -1)
        outputs["classes"] = "spans"
    compared = [key for key in outputs if key in fields and outputs[key] in found]
    assert compared
    for key in compared:
        where = real(name) if fields[key].ndim == 3 else ...
        # Float32: the golden's own attention was the eager one, whose sums have another order.
        np.testing.assert_allclose(
            found[outputs[key]].numpy()[where], fields[key][where], atol=1e-4, err_msg=key
        )
