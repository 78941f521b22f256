"""Spoken commands, by a program that stands for espeak-ng."""

import json
import os
import sys

import pytest

from research.data import spoken
from research.data.media.sound import read_sound
from tests.data.media.test_sound import TONE, wav

PROGRAM = """#!{python}
import shutil, sys
if "--version" in sys.argv:
    print("eSpeak NG text-to-speech: 9.9  Data at: nowhere")
elif "{broken}" in sys.argv:
    sys.exit("no such voice")
else:
    shutil.copy({tone!r}, sys.argv[sys.argv.index("-w") + 1])
"""


def install(folder, monkeypatch, broken: str = "-") -> None:
    (folder / "tone.wav").write_bytes(wav(TONE))
    program = folder / "espeak-ng"
    tone = str(folder / "tone.wav")
    program.write_text(PROGRAM.format(python=sys.executable, tone=tone, broken=broken))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_held_out_voices_are_of_variants_that_no_training_record_has(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "ACCENTS", ("en-us",))
    monkeypatch.setattr(spoken, "SPEEDS", (150,))
    monkeypatch.setattr(spoken, "WORDS", ("yes", "no"))
    monkeypatch.setattr(spoken, "VARIANTS", ("f1", "f4", "m5"))
    install(tmp_path, monkeypatch)
    train, heldout, facts = spoken.open_spoken(tmp_path / "cache")
    assert facts == {"program": "eSpeak NG text-to-speech: 9.9", "heldout_voices": 2}
    names = [[d.media(i)[0].source.name for i in range(len(d))] for d in (train, heldout)]
    assert names[0] == ["en-us+f1-150-yes.wav", "en-us+f1-150-no.wav"]
    assert [name.split("-")[1] for name in names[1]] == ["us+f4", "us+f4", "us+m5", "us+m5"]
    [medium] = train.media(1)
    assert len(read_sound(medium.source)[0]) == len(TONE)
    assert json.loads(train[1]["conversation"])[-1]["content"][0]["text"] == "no"


def test_without_the_program_or_a_voice_of_it_one_line_says_so(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, broken="en-us+f1")
    with pytest.raises(ValueError, match=r"cannot say 'yes' as en-us\+f1: no such voice"):
        spoken.open_spoken(tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="apt-get install espeak-ng"):
        spoken.open_spoken(tmp_path / "cache")
