"""Records with sounds: what a row holds, and what is said of doubtful and broken ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research.data.files import FileDocuments
from research.data.media.mel import SILENCE, mel_table, mel_window
from research.data.media.soft_tokens import SoftTokens, SoundTokens
from research.data.media_windows import caption_windows, media_windows
from research.data.tokenizers import load_tokenizer
from research.data.tokens import BadRecords
from research.data.windows import WindowOptions
from tests.data.media.test_sound import TONE, wav

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
FRAMES, MELS = 20, 4
SOFT = SoftTokens(sound=SoundTokens(FRAMES, MELS, tokens=3, token=300))


def options(tmp_path, **changes) -> WindowOptions:
    tokenizer = replace(load_tokenizer("bytes"), chat_template=TEMPLATE)
    made = WindowOptions(tokenizer, tmp_path / "cache", length=120, soft=SOFT, max_bad_records=9)
    return replace(made, **changes)


def written(folder, sounds, **more):
    """Records of sounds by name, each with its name for a text."""
    lines = []
    for name, content in sounds.items():
        (folder / f"{name}.wav").write_bytes(content)
        lines.append(json.dumps({"audio": f"{name}.wav", "text": name, **more}) + "\n")
    (folder / "records.jsonl").write_text("".join(lines))
    return FileDocuments(folder / "records.jsonl", "", folder / "cache", "media")


def test_a_row_has_the_log_mel_frames_of_its_sounds_in_order(tmp_path):
    documents = written(tmp_path, {"longer": wav(TONE), "low": wav(TONE[::2] / 2)})
    [row] = media_windows(documents, options(tmp_path))
    assert "images" not in row and row["sounds"].shape == (40, FRAMES, MELS)
    places = row["tokens"] == 300
    assert [int((places & (row["segments"] == n)).sum()) for n in (1, 2)] == [3, 3]
    assert not (row["assistant"] & places).any()
    # Half steps of 16 bits are heard in the quiet bands of a tone.
    for sound, wanted in zip(row["sounds"], (TONE, TONE[::2] / 2)):
        np.testing.assert_allclose(sound, mel_window(wanted, FRAMES, MELS), atol=0.05)
    assert not row["sounds"][2:].any()
    assert b"Write down what is said." in bytes(row["tokens"][~places].tolist())


def test_doubtful_sounds_are_told_and_broken_ones_left_out_with_their_record(tmp_path, caplog):
    sounds = {
        **{"silent": wav(np.zeros(160)), "clipped": wav(np.clip(4 * TONE, -1, 1))},
        **{"stereo": wav(np.stack([TONE, TONE], axis=1)), "slow": wav(TONE[:800], rate=8_000)},
        **{"cut": wav(TONE)[:-1601], "hour": wav(np.zeros(3_600 * 4_000), 1, rate=4_000)},
        **{"over": wav(np.zeros(4_000)), "empty": b"", "mp3": b"ID3\x04" * 20},
    }
    windows = media_windows(written(tmp_path, sounds), options(tmp_path))
    for line in (
        "1 of 9 records have media that are silent, the first: records.jsonl:0",
        "1 of 9 records have media that are clipped, the first: records.jsonl:1",
        "are of several channels, averaged, the first: records.jsonl:2",
        "are of another rate, made 16000 Hz, the first: records.jsonl:3",
        "1 of 9 records have media that are cut off, the first: records.jsonl:4",
        "left out records.jsonl:5, record 5: audio 0 (",
        "it is longer than the 1 s that are read",
        "it lasts 0.25 s, over the 0.2 s that the model's encoder reads at once "
        "(model.sound.frames=20)",
        "it is empty",
        "it is no WAV of whole numbers",
    ):
        assert line in caplog.text
    assert len(windows.stores[0].bad_records) == 4
    (tmp_path / "again").mkdir()
    documents = written(tmp_path / "again", sounds)
    with pytest.raises(BadRecords, match="longer than the 1 s.*unreadable record 4, 0 allowed"):
        media_windows(documents, options(tmp_path, max_bad_records=0))


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ("<audio> and <audio>", "it has 2 places for audio and 1 audio media"),
        ("<image><audio>", "it has 1 places for image and 0 image media"),
    ],
)
def test_places_without_sounds_are_refused_with_the_record(tmp_path, messages, line):
    turns = [{"role": "user", "content": messages}, {"role": "assistant", "content": "x"}]
    (tmp_path / "a.wav").write_bytes(wav(TONE))
    record = {"messages": turns, "audio": "a.wav"}
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    documents = FileDocuments(tmp_path / "records.jsonl", "", tmp_path / "cache", "media")
    with pytest.raises(BadRecords, match=f"record 0: {line}"):
        media_windows(documents, options(tmp_path, max_bad_records=0))


def test_a_model_that_lacks_an_encoder_leaves_the_record_out_by_name(tmp_path, caplog):
    documents = written(tmp_path, {"one": wav(TONE), "two": wav(TONE)})
    sees = SoftTokens(size=4, tokens=3, token=300)
    with pytest.raises(BadRecords, match="records.jsonl:0.*it has audio, and the model has no"):
        media_windows(documents, options(tmp_path, soft=sees, max_bad_records=0))
    with pytest.raises(ValueError, match="set config.model.image"):
        caption_windows(documents, options(tmp_path))


def test_sounds_of_texts_become_one_table_with_silence_behind():
    frames = mel_window(TONE, FRAMES, MELS)
    table = mel_table([[TONE, frames], None, [np.zeros(160)]], FRAMES, MELS)
    assert table.shape == (3, 2, FRAMES, MELS)
    np.testing.assert_array_equal(table[0, 0], table[0, 1])
    # A step of float32: the logarithm is computed of each.
    np.testing.assert_allclose(table[1:].ravel(), SILENCE, atol=2e-7)
    with pytest.raises(ValueError, match="sound 1 of text 0: it lasts 0.30 s, over the 0.2 s"):
        mel_table([[TONE, np.zeros(4_800)]], FRAMES, MELS)
