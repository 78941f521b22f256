"""The benchmark of transcripts: turns, medians, and whether the texts are equal."""

import wave

import numpy as np
import pytest

from research.bench import speech


def test_programs_take_turns_and_their_texts_are_compared(tmp_path, monkeypatch, caplog):
    turns = []

    def writer(name):
        return lambda: turns.append(name) or [f"one of {name}", "two"]

    monkeypatch.setattr(speech, "_ours", lambda checkpoint, sounds: writer("graft"))
    monkeypatch.setattr(speech, "_theirs", lambda folder, sounds: writer("faster-whisper"))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.arange(16_000, dtype="<i2").tobytes())
    files = [str(tmp_path / "a.wav")] * 2
    (tmp_path / "model.bin").touch()
    result = speech.compare(str(tmp_path), files, rounds=3, peers=True)
    assert turns == ["graft", "faster-whisper"] * 4
    assert result["sound_seconds"] == 2
    for row in result["programs"]:
        assert row["real_time_factor"] == row["seconds"] / 2
    assert "1 of 2 texts are equal" in speech.table(result)
    alone = speech.compare(str(tmp_path), files, rounds=1, peers=False)
    assert [row["program"] for row in alone["programs"]] == ["graft"]
    assert not caplog.messages
    (tmp_path / "model.bin").unlink()
    assert len(speech.compare(str(tmp_path), files, rounds=1, peers=True)["programs"]) == 1
    assert "faster-whisper takes no part" in caplog.text
    with pytest.raises(ValueError, match="--sounds=a.wav,b.wav"):
        speech.compare(str(tmp_path), [], rounds=1, peers=False)
