"""Whisper against transformers: what the reference computed of sound with random weights, our model
computes too."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.interop.huggingface.folder import write_folder
from research.interop.load import load, open_checkpoint
from research.models.model import Model, forward

FILE = Path(__file__).parent / "sound_goldens" / "whisper.npz"
# As for texts: sums of another order, of logits of the order of 5.
TOLERANCE = 1e-5


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


def write(folder: Path, **more: np.ndarray) -> Path:
    """The golden's folder of `save_pretrained`, with further tensors."""
    tensors = {k.partition("/")[2]: v for k, v in golden().items() if k.startswith("tensor/")}
    folder.mkdir(exist_ok=True)
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(str(golden()["config"]))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(write(tmp_path_factory.mktemp("whisper")))


def text(ids: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    """Texts of a batch, from position `first` on."""
    places = np.broadcast_to(np.arange(first, first + ids.shape[1], dtype=np.int32), ids.shape)
    return {"inputs": ids, "positions": places, "segments": np.ones_like(ids)}


def sound() -> np.ndarray:
    """[B, F, m], as our model reads it."""
    return golden()["mel"].swapaxes(1, 2)


def test_logits_are_the_references(loaded):
    batch = {"mel": sound(), **text(golden()["decoder_ids"])}
    got = jax.jit(forward, static_argnums=0)(loaded.model, loaded.params, batch)
    np.testing.assert_allclose(got, golden()["logits"], atol=TOLERANCE, rtol=0)


def test_a_cache_writes_the_references_continuation(loaded):
    # Tokens of the golden lead by 1e-2 or more.
    model, params = loaded.model, loaded.params
    memory = jax.jit(Model.encode, static_argnums=0)(model, params, {"mel": sound()})
    cache, written = model.make_cache(2, 20, 2), []
    ids, first = golden()["decoder_ids"][:, :2], 0

    @jax.jit
    def step(params, batch, cache, memory):
        hidden_BTD, cache = model.decode(params, batch, cache, memory)
        return jnp.argmax(model.logits(params, hidden_BTD)[:, -1], axis=-1), cache

    while len(written) < 6:
        batch = {**text(ids, first), "lengths": np.full(2, first + ids.shape[1], np.int32)}
        best_B, cache = step(params, batch, cache, memory)
        first, ids = first + ids.shape[1], np.asarray(best_B, np.int32)[:, None]
        written.append(ids)
    np.testing.assert_array_equal(np.concatenate(written, axis=1), golden()["greedy"])


def test_what_is_written_is_what_was_read(tmp_path):
    source, again = write(tmp_path / "source"), tmp_path / "again"
    again.mkdir()
    with open_checkpoint(source) as checkpoint:
        write_folder(checkpoint, again)
        config = checkpoint.config
    before, after = load_file(source / "model.safetensors"), load_file(again / "model.safetensors")
    # transformers computes its sinusoids where a file lacks them.
    assert before.keys() - after.keys() == {"model.encoder.embed_positions.weight"}
    for name, values in after.items():
        np.testing.assert_array_equal(values, before[name])
    with open_checkpoint(again) as checkpoint:
        assert checkpoint.config == config
    theirs, ours = (json.loads((f / "config.json").read_text()) for f in (source, again))
    for name in ("num_mel_bins", "max_source_positions", "max_target_positions", "model_type"):
        assert ours[name] == theirs[name]


def test_the_sinusoids_are_the_references():
    from research.models.sound import sinusoids

    wanted = golden()["tensor/model.encoder.embed_positions.weight"]
    # Whisper rounds its rates to float32; angles reach 12.
    np.testing.assert_allclose(sinusoids(*wanted.shape), wanted, atol=2e-6, rtol=0)


def test_a_head_that_is_not_the_table_is_refused(tmp_path):
    table = golden()["tensor/model.decoder.embed_tokens.weight"]
    write(tmp_path, **{"proj_out.weight": table})
    assert "proj_out.weight" in open_checkpoint(tmp_path).unused
    write(tmp_path, **{"proj_out.weight": table + 1})
    with pytest.raises(ValueError, match="proj_out.weight is meant to repeat embed/table"):
        open_checkpoint(tmp_path)


def test_a_batch_without_its_sound_is_refused(loaded):
    batch = text(golden()["decoder_ids"])
    with pytest.raises(ValueError, match=r"reads sound .*give \"mel\" \[rows, 24, 8\]"):
        loaded.model.hidden(loaded.params, batch)
    with pytest.raises(ValueError, match=r"the sound has the shape \[2, 8, 24\]"):
        loaded.model.hidden(loaded.params, {"mel": golden()["mel"], **batch})
