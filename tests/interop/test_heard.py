"""A decoder that is given the encoder of a Whisper: what each had is as it was, only the projector
is new, and what the sounds say reaches the words."""

from dataclasses import replace

import numpy as np
import pytest

from research.infer.prompts import check_ids
from research.interop.convert import join_sound
from research.interop.load import load, open_checkpoint
from research.models.config import ModelConfig
from research.models.presets import PRESETS
from tests.checkpoints import save_checkpoint

SMALL = {"d_model": 8, "heads": 2, "kv_heads": 2, "head_size": 4, "d_ff": 12, "max_length": 64}
DECODER = ModelConfig(vocab_size=264, layers=1, **SMALL)
WHISPER = replace(
    PRESETS["whisper_tiny"], vocab_size=32, layers=1, encoder_layers=1, mels=4, frames=40, **SMALL
)


def test_a_decoder_with_ears_computes_with_both_and_hears(tmp_path):
    decoder = save_checkpoint(tmp_path / "text", DECODER, template="{{ messages }}")
    whisper = save_checkpoint(tmp_path / "whisper", WHISPER)
    notes = join_sound(tmp_path / "text", tmp_path / "whisper", tmp_path / "both", stack=4)["notes"]
    assert notes[0].startswith("a sound of 0.4 s takes 5 places of id 264 in a text")
    both = load(tmp_path / "both")
    assert both.tokenizer.chat_template == "{{ messages }}"
    assert both.config.sound.tokens == 5 and both.config.sound.token == 264
    np.testing.assert_array_equal(both.params["embed"]["table"], decoder["embed"]["table"])
    np.testing.assert_array_equal(
        both.params["sound"]["layers"]["mlp"]["up"], whisper["encoder"]["layers"]["mlp"]["up"]
    )
    # An untrained projector draws what it says of the sounds, and draws the same every time.
    join_sound(tmp_path / "text", tmp_path / "whisper", tmp_path / "again", stack=4)
    with open_checkpoint(tmp_path / "again") as again:
        up = again.parameters["sound/projector/up"].read(())
    np.testing.assert_array_equal(up, both.params["sound"]["projector"]["up"])

    rng, ids = np.random.default_rng(0), [9, *[264] * 5, 8]
    one, other = (rng.normal(size=6400).astype(np.float32) / 9 for _ in range(2))
    alone = both.logits(ids, audio=[one])
    rows = both.logits([ids, ids], audio=[[one], [other]])
    # Two rows or one: the same float32 sums in another order.
    np.testing.assert_allclose(rows[0], alone, rtol=0, atol=1e-5)
    assert np.abs(rows[1] - rows[0])[0].max() == 0 and np.abs(rows[1] - rows[0])[1:].max() > 1e-4
    # The place named once, and prompts of two lengths, one of them without a sound.
    written = both.generate(
        [[9, 264, 8], [7, 8]], audio=[[one], None], max_tokens=3, temperature=0, stop_ids=()
    )
    wanted = [list(ids), [7, 8]]
    for text, sounds in zip(wanted, ([one], None)):
        for _ in range(3):
            text.append(int(both.logits(text, audio=sounds)[-1].argmax()))
    assert written == [both.tokenizer.decode(text[-3:]) for text in wanted]
    with pytest.raises(ValueError, match="prompt 0 has places of sounds .*generate.*audio="):
        check_ids(both.config, 0, "", ids)
    with pytest.raises(ValueError, match="5 places of soft tokens .* no sounds were given"):
        both.logits(ids)
    with pytest.raises(ValueError, match="it lasts 0.41 s, over the 0.4 s"):
        both.logits(ids, audio=[np.zeros(6500)])


@pytest.mark.parametrize(
    ("source", "sound", "line"),
    [
        ("text", "text", "--sound=.*text has no encoder of sounds; give a Whisper"),
        ("whisper", "whisper", "the model of --source is an encoder_decoder"),
        ("hears", "whisper", "the model of --source reads sounds already"),
    ],
)
def test_models_that_cannot_be_joined_are_refused(source, sound, line, tmp_path):
    save_checkpoint(tmp_path / "text", DECODER)
    save_checkpoint(tmp_path / "whisper", WHISPER)
    if source == "hears":
        join_sound(tmp_path / "text", tmp_path / "whisper", tmp_path / "hears")
    with pytest.raises(ValueError, match=line):
        join_sound(tmp_path / source, tmp_path / sound, tmp_path / "new")
    assert not (tmp_path / "new").exists()
