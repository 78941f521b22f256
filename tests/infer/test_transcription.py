"""Transcripts: texts of a window as CTranslate2 writes them, and the windows of a sound."""

import json
import os
import subprocess
import sys
import wave
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from research.data.tokenizers import huggingface
from research.infer import speech_steps as steps
from research.infer import transcription
from research.infer.speech_search import Text, listen, open_speech, sample, search
from research.infer.speech_tokens import read_speech_tokens
from research.infer.transcription import SpeechConfig, split, transcribe
from research.interop.load import load
from research.models.config import ModelConfig
from tests.configs import ROOT
from tests.interop.test_whisper import sound, write

CASES = json.loads((Path(__file__).parent / "speech_goldens" / "ctranslate2.json").read_text())
NAMES = "endoftext startoftranscript translate transcribe startoflm startofprev nocaptions"
END, START, TIMES = 40, 41, 48
# Sums of another order, over ten tokens, of log-probabilities of the order of 5.
TOLERANCE = 2e-5


def tokenizer_file(languages: bool = False) -> bytes:
    """A tokenizer.json of 40 words and the special tokens of Whisper."""
    words = {f"w{n}": n for n in range(END)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = f"{NAMES} notimestamps".split()
    names[2:2] = ["en", "de"] if languages else []
    backend.add_special_tokens([f"<|{name}|>" for name in names])
    return backend.to_str().encode()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """The golden Whisper, which suppresses nothing but special tokens."""
    loaded = load(write(tmp_path_factory.mktemp("whisper")))
    tokenizer = huggingface.load(tokenizer_file(), {})
    return open_speech(loaded.model, loaded.params, tokenizer, {})


def test_the_tokens_are_those_of_the_vocabulary(speech):
    tokens = speech.tokens
    assert (tokens.end, tokens.start, tokens.times) == (END, START, TIMES)
    assert np.flatnonzero(tokens.suppressed).tolist() == [41, 42, 43, 44, 45, 46, 47]
    assert tokens.prompt([7, 50], 20, "", "transcribe") == [45, 7, 50, START]
    assert tokens.prompt(list(range(30)), 20, "en", "transcribe") == [45, *range(21, 30), START]
    with pytest.raises(ValueError, match="knows English alone"):
        tokens.prompt([], 20, "de", "transcribe")
    with pytest.raises(ValueError, match="knows English alone"):
        tokens.prompt([], 20, "", "translate")


def test_a_model_of_several_languages_is_told_which_and_what_to_do(speech):
    tokenizer = huggingface.load(tokenizer_file(languages=True), {})
    given = {"is_multilingual": True, "suppress_tokens": [3]}
    told = open_speech(speech.model, speech.params, tokenizer, given)
    assert told.tokens.suppressed[3] and told.tokens.languages == {"en": 42, "de": 43}
    assert told.tokens.prompt([], 20, "de", "translate") == [START, 43, 44]
    told.tokens.check("", "translate")  # the language is for the model to tell
    with pytest.raises(ValueError, match="'fr' is none of the model's: de, en"):
        told.tokens.prompt([], 20, "fr", "transcribe")
    memory = steps.hear(told.params, sound()[:1], model=told.model)
    heard = listen(told, memory, [START])
    wanted = max(("en", "de"), key=lambda one: heard.logits_1V[0, told.tokens.languages[one]])
    assert transcription.detect_language(told, memory) == wanted


def test_other_models_and_tokenizers_are_refused(speech):
    tokenizer, config = speech.tokens.tokenizer, speech.model.config
    with pytest.raises(ValueError, match="writes no text of sound"):
        read_speech_tokens(tokenizer, ModelConfig(), {})
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>"):
        read_speech_tokens(huggingface.train(300, ["a b"]), config, {})
    with pytest.raises(ValueError, match="has 96 tokens and times want 99"):
        read_speech_tokens(tokenizer, replace(config, frames=100), {})


def among(speech, words):
    """The model with all other words suppressed."""
    suppressed = speech.tokens.suppressed.copy()
    suppressed[[n for n in range(END) if n not in words]] = True
    return replace(speech, tokens=replace(speech.tokens, suppressed=suppressed))


@pytest.mark.parametrize("beams", [1, 5])
def test_texts_are_those_of_ctranslate2(speech, beams):
    cases = [case for case in CASES if case["beams"] == beams]
    assert any(sum(n >= TIMES for n in case["ids"]) > 2 for case in cases)
    assert any(len(case["ids"]) < 10 for case in cases)
    for case in cases:
        own = among(speech, case["words"])
        memory = steps.hear(own.params, sound()[case["mel"]][None], model=own.model)
        heard = listen(own, memory, case["prompt"])
        text = search(own, heard, beams)
        assert text.ids == case["ids"]
        assert text.score == pytest.approx(case["score"], abs=TOLERANCE)
        assert text.silence == pytest.approx(case["silence"], rel=1e-3)


def test_a_model_whose_logits_are_not_finite_is_told(speech):
    memory = steps.hear(speech.params, sound()[:1], model=speech.model)
    heard = listen(speech, memory, [START])
    with pytest.raises(ValueError, match="logits are not finite"):
        search(speech, replace(heard, logits_1V=heard.logits_1V * np.nan), 2)


def test_texts_are_drawn_by_their_probability(speech):
    own = among(speech, CASES[0]["words"])
    heard = listen(own, steps.hear(own.params, sound()[:1], model=own.model), [START])
    best = search(own, heard, 5)
    # Near temperature 0 a draw is the likeliest token, so the text is that of one beam.
    cold = sample(own, heard, 5, 1e-4, jax.random.key(0))
    assert cold.ids == search(own, heard, 1).ids
    hot = [sample(own, heard, 5, 1.0, jax.random.key(seed)) for seed in range(3)]
    assert len({tuple(one.ids) for one in hot}) > 1
    assert all(one.score < best.score + TOLERANCE for one in hot)
    for one in (cold, *hot):
        times = [n for n in one.ids if n >= TIMES]
        assert one.ids[0] >= TIMES and times == sorted(times)


@pytest.mark.parametrize(
    "ids, parts, step",
    [
        ([48, 5, 6], [(0, 24, [48, 5, 6])], 24),  # cut off: to the end of the window
        ([48, 5, 6, 53], [(0, 10, [48, 5, 6, 53])], 24),
        ([48, 5, 53, 53, 6], [(0, 10, [48, 5, 53])], 10),  # 6 is heard again
        ([49, 5, 53, 54, 6, 57], [(2, 10, [49, 5, 53]), (12, 18, [54, 6, 57])], 24),
        ([48, 5, 53, 53], [(0, 10, [48, 5, 53])], 10),
        ([49], [(0, 2, [49])], 24),
        ([48, 48], [(0, 0, [48])], 24),
    ],
)
def test_a_text_is_split_at_its_times(ids, parts, step):
    assert split(ids, TIMES, 24) == (parts, step)


def script(monkeypatch, texts):
    """Lets windows have these (ids, mean, silence, temperature); returns the prompts they got."""
    prompts, left = [], iter(texts)
    real = listen

    def listened(speech, memory, prompt):
        prompts.append(prompt)
        return real(speech, memory, prompt)

    def written(*_):
        ids, mean, silence, temperature = next(left)
        return Text(ids, mean * (len(ids) + 1) / len(ids), silence), temperature

    monkeypatch.setattr(transcription, "listen", listened)
    monkeypatch.setattr(transcription, "write", written)
    return prompts


def test_windows_go_on_where_a_text_ends_and_know_what_was_said(speech, monkeypatch):
    prompts = script(
        monkeypatch,
        [
            ([48, 5, 53, 53, 6], -0.5, 0.1, 0.0),  # ends at frame 10
            ([48, 7, 60], -0.5, 0.9, 0.8),  # likely, so not silence; too hot to be told
            ([48, 8], -1.5, 0.9, 0.0),  # silence
            ([48, 48], -0.5, 0.1, 0.0),  # nothing: the window is passed over
            ([50, 9, 52], -0.5, 0.1, 0.0),
        ],
    )
    samples = np.zeros(160 * 100, np.float32)
    segments = transcribe(speech, samples, SpeechConfig())
    found = [(round(one.start, 2), round(one.end, 2), one.text) for one in segments]
    assert found == [(0.0, 0.1, "w5"), (0.1, 0.34, "w7"), (0.82, 0.9, "w9")]
    assert prompts[:3] == [[START], [45, 48, 5, 53, START], [START]]
    assert len(prompts) == 5


def test_a_sound_shorter_than_a_frame_has_no_text(speech):
    assert transcribe(speech, np.zeros(100, np.float32)) == []


@cache
def texts():
    """One good text, one that repeats itself and one that is unlikely."""
    good, unlikely = Text([48, 5, 50], -0.4, 0.1), Text([48, 6, 50], -2.0, 0.1)
    return good, Text([48, *[7] * 60], -0.2, 0.1), unlikely


@pytest.mark.parametrize(
    "order, chosen, temperature",
    [
        ("g", "g", 0.0),
        ("rug", "g", 0.4),
        ("uuuuuu", "u", 1.0),
        ("rrrrrr", "r", 1.0),
        ("rururu", "u", 1.0),  # what repeats itself is the last choice
    ],
)
def test_a_doubtful_text_is_written_again(speech, monkeypatch, order, chosen, temperature):
    by = dict(zip("gru", texts()))
    left = iter(order)
    monkeypatch.setattr(transcription, "search", lambda *_: by[next(left)])
    monkeypatch.setattr(transcription, "sample", lambda *_: by[next(left)])
    found = transcription.write(speech, None, jax.random.key(0), SpeechConfig())
    assert found == (by[chosen], temperature)


def test_an_unlikely_text_of_silence_is_not_written_again(speech, monkeypatch):
    silent = replace(texts()[2], silence=0.9)
    monkeypatch.setattr(transcription, "search", lambda *_: silent)
    found = transcription.write(speech, None, jax.random.key(0), SpeechConfig())
    assert found == (silent, 0.0)


@pytest.mark.slow
def test_the_command_goes_on_after_what_it_cannot_read(tmp_path):
    folder = write(tmp_path / "whisper")
    (folder / "tokenizer.json").write_bytes(tokenizer_file())
    samples = (8000 * np.sin(np.arange(8000) / 3)).astype("<i2")
    for name, channels, content in (("good", 1, samples), ("silent", 2, 0 * samples)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((channels, 2, 16_000 // channels, 0, "NONE", ""))
            file.writeframes(content.tobytes())
    (tmp_path / "cut.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:-8000])
    (tmp_path / "notes.txt").write_text("no sound")
    names = ["good.wav", "notes.txt", "silent.wav", "missing.wav", "cut.wav"]
    done = subprocess.run(
        [sys.executable, "-m", "research.transcribe", *names, "--checkpoint=whisper", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == ["good.wav", "silent.wav", "cut.wav"]
    assert rows[1] == {"file": "silent.wav", "text": "", "segments": []}
    for row in rows:
        assert row.keys() == {"file", "text", "segments"}
        # The tiny model has times beyond its window, and random weights choose them.
        assert all(0 <= one["start"] < one["end"] for one in row["segments"])
    told = [line for line in done.stderr.splitlines() if ".wav:" in line or ".txt:" in line]
    for line, words in zip(
        told,
        (
            "notes.txt: it is no WAV of whole numbers",
            "silent.wav: silent; 2 channels averaged; resampled from 8000 to 16000 Hz",
            "missing.wav: there is no such file",
            "cut.wav: cut off, 0.2 of 0.5 s are there",
        ),
        strict=True,
    ):
        assert words in line
