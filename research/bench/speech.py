"""The time in which sounds are written down, beside faster-whisper's on the same machine."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from research.data.media.sound import RATE, read_sound
from research.infer.speech_search import open_speech
from research.infer.transcription import transcribe
from research.interop.ctranslate2.whisper import FILE
from research.interop.load import load, local_path

# Writes down all sounds: the text of each.
Writer = Callable[[], list[str]]


def compare(checkpoint: str, files: Sequence[str], rounds: int, peers: bool) -> dict[str, Any]:
    """{"sound_seconds", "programs": [{"program", "seconds", "real_time_factor", "texts"}]}: medians
    over the rounds, in which the programs take turns. The first turn of each, which compiles and
    reads, does not count. faster-whisper takes part with `peers` where the checkpoint is a folder
    of CTranslate2's. ValueError without sounds, and where it is not installed."""
    if not files:
        raise ValueError("no sound to write down; give --sounds=a.wav,b.wav")
    sounds = [read_sound(Path(file).expanduser())[0] for file in files]
    writers: dict[str, Writer] = {"graft": _ours(checkpoint, sounds)}
    folder = local_path(checkpoint)
    if peers and (folder / FILE).is_file():
        writers["faster-whisper"] = _theirs(folder, sounds)
    elif peers:
        logging.warning("faster-whisper takes no part: %s has no %s", folder, FILE)
    texts = {name: write() for name, write in writers.items()}
    taken: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, write in writers.items():
            start = time.perf_counter()
            write()
            taken[name].append(time.perf_counter() - start)
    length = sum(map(len, sounds)) / RATE
    rows = []
    for name, seconds in taken.items():
        row = {"program": name, "seconds": median(seconds)}
        rows.append(row | {"real_time_factor": row["seconds"] / length, "texts": texts[name]})
    return {"sound_seconds": length, "programs": rows}


def table(result: dict[str, Any]) -> str:
    """The numbers as lines for a person, and whether the programs wrote the same."""
    lines = [
        f"{'':<16}{'seconds':>9}{'of real time':>14}   {result['sound_seconds']:.1f} s of sound"
    ]
    for row in result["programs"]:
        share = row["real_time_factor"]
        lines.append(f"{row['program']:<16}{row['seconds']:>9.2f}{share:>14.3f}")
    first, *others = [row["texts"] for row in result["programs"]]
    for texts in others:
        same = sum(ours == theirs for ours, theirs in zip(first, texts))
        lines.append(f"{same} of {len(first)} texts are equal")
    return "\n".join(lines)


def _ours(checkpoint: str, sounds: list) -> Writer:
    opened = load(checkpoint)
    generation = opened.checkpoint.generation
    speech = open_speech(opened.model, opened.params, opened.tokenizer, generation)
    return lambda: ["".join(one.text for one in transcribe(speech, sound)) for sound in sounds]


def _theirs(folder: Path, sounds: list) -> Writer:
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise ValueError(
            "faster-whisper is not installed; pip install faster-whisper, or give --nopeers"
        ) from None
    model = WhisperModel(str(folder), device="cpu", compute_type="float32")
    return lambda: ["".join(one.text for one in model.transcribe(s)[0]) for s in sounds]
