"""The source "spoken_commands": ten words said by the voices of espeak-ng, a program of the machine
(Debian's package espeak-ng), and which of them was said.

The words are those of the first Speech Commands (arXiv:1804.03209, section 5). A voice is an accent
and a variant; two variants are held out with all accents, so that no held-out record is of a voice
that was trained on.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from research.data.documents import Documents
from research.data.files import FileDocuments
from research.downloads.cache import built

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m7", "f4", "m5")
HELDOUT = ("f4", "m5")
SPEEDS = (150, 180)  # words a minute
_FORMAT = "1"  # part of the folder's name: raise it when the records change
_SECONDS = 30


def open_spoken(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """(conversations with a sound, those of held-out voices, facts for the provenance). The sounds
    are made once. ValueError without espeak-ng."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise ValueError(
            "the sounds of spoken_commands are made by espeak-ng, which is not installed; "
            "apt-get install espeak-ng"
        )
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_SECONDS)
    version = " ".join(said.stdout.split()[:4])
    place = cache_dir / "spoken" / f"{_FORMAT}-{version.split()[-1]}"
    folder = built(place, lambda made: _write(made, program), _check)
    parts = [
        FileDocuments(folder / name, "", cache_dir, "media")
        for name in ("train.jsonl", "heldout.jsonl")
    ]
    voices = len(ACCENTS) * len(HELDOUT)
    return parts[0], parts[1], {"program": version, "heldout_voices": voices}


def _write(folder: Path, program: str) -> None:
    lines: dict[bool, list[str]] = {False: [], True: []}
    for variant in VARIANTS:
        for accent in ACCENTS:
            for speed in SPEEDS:
                for word in WORDS:
                    name = f"{accent}+{variant}-{speed}-{word}.wav"
                    _say(program, f"{accent}+{variant}", speed, word, folder / name)
                    lines[variant in HELDOUT].append(json.dumps(_record(name, word)) + "\n")
    (folder / "train.jsonl").write_text("".join(lines[False]))
    (folder / "heldout.jsonl").write_text("".join(lines[True]))


def _record(name: str, word: str) -> dict[str, Any]:
    said = ("system", "Write down what is said."), ("user", "<audio>"), ("assistant", word)
    messages = [{"role": role, "content": content} for role, content in said]
    return {"audio": name, "messages": messages}


def _say(program: str, voice: str, speed: int, word: str, file: Path) -> None:
    command = [program, "-v", voice, "-s", str(speed), "-w", str(file), word]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode or not file.is_file():
        raise ValueError(f"espeak-ng cannot say {word!r} as {voice}: {done.stderr.strip()[:120]}")


def _check(folder: Path) -> Path:
    if not (folder / "heldout.jsonl").is_file():
        raise FileNotFoundError(folder)
    return folder
