"""What is said in a sound, and when: Whisper's windows, one after the other (arXiv:2212.04356,
section 3.8 and 4.5; rules and numbers are those of faster-whisper's defaults).

A window is 30 s. Its text tells where its last whole sentence ends, where the next window begins,
which is told what was said before. A text that repeats itself or is unlikely is written again at a
higher temperature.
"""

import zlib
from dataclasses import dataclass

import jax
import numpy as np

from research.data.media.mel import HOP, log_mel
from research.data.media.sound import RATE
from research.infer import speech_steps as steps
from research.infer.speech_search import Heard, Speech, Text, listen, sample, search
from research.infer.speech_tokens import STEP

FRAME = HOP / RATE  # seconds
_FRAMES = round(STEP / FRAME)  # from one time to the next


@dataclass(frozen=True)
class SpeechConfig:
    """beams         texts that are kept at temperature 0; 1 takes the likeliest token
    draws         texts of which the best is taken at the others
    temperatures  tried in turn, until a text is neither too repetitive nor too unlikely
    repetition    the most bytes of a text for each of its compressed ones
    likelihood    the least mean log-probability of a token, in nats
    silence       from which probability of silence on an unlikely text is none
    forget        over which temperature a text is not told to the next window
    language      of what is said; "" asks the model
    task          "transcribe", or "translate" into English
    seed          of the draws
    """

    beams: int = 5
    draws: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    repetition: float = 2.4
    likelihood: float = -1.0
    silence: float = 0.6
    forget: float = 0.5
    language: str = ""
    task: str = "transcribe"
    seed: int = 0

    def __post_init__(self):
        if self.beams < 1 or self.draws < 1:
            raise ValueError(f"beams={self.beams} and draws={self.draws} must be at least 1")
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"temperatures={self.temperatures} wants numbers of at least 0")


@dataclass(frozen=True)
class Segment:
    """What is said from `start` to `end`, in seconds. `ids` are its tokens with its times; `mean`
    is the mean log-probability of the window's text in nats, `silence` the probability that there
    is none, `temperature` the one at which it was written."""

    start: float
    end: float
    text: str
    ids: tuple[int, ...]
    mean: float
    silence: float
    temperature: float


def transcribe(
    speech: Speech, samples: np.ndarray, config: SpeechConfig = SpeechConfig()
) -> list[Segment]:
    """What is said in a sound, mono `samples` [n] in -1 to 1 at 16 kHz, in order; [] where nothing
    is. ValueError for a language or a task that the model has not."""
    c, tokens = speech.model.config, speech.tokens
    # A hop of silence more, as faster-whisper has it: it moves the floor of no quiet sound. Over
    # the whole sound and not a window, whose floor would go by the loudest of its own frames.
    mel_mF = log_mel(np.pad(samples, (0, HOP)), c.mels)
    length, at = mel_mF.shape[1] - 1, 0
    segments: list[Segment] = []
    earlier: list[int] = []
    language = config.language
    while at < length:
        size = min(c.frames, length - at)
        window_1Fm = np.zeros((1, c.frames, c.mels), np.float32)
        window_1Fm[0, :size] = mel_mF[:, at : at + size].T
        memory = steps.hear(speech.params, window_1Fm, model=speech.model)
        if tokens.languages and not language:
            language = detect_language(speech, memory)
        prompt = tokens.prompt(earlier, c.max_length, language, config.task)
        heard = listen(speech, memory, prompt)
        key = jax.random.fold_in(jax.random.key(config.seed), at)
        text, temperature = write(speech, heard, key, config)
        if text.silence > config.silence and text.mean <= config.likelihood:
            at += size
            continue
        parts, step = split(text.ids, tokens.times, size)
        said = []
        for first, last, ids in parts:
            words = tokens.decode(ids)
            if first == last or not words.strip():
                continue
            times = (at + first) * FRAME, (at + last) * FRAME
            more = text.mean, text.silence, temperature
            segments.append(Segment(*times, words, tuple(ids), *more))
            said += ids
        earlier = [] if temperature > config.forget else earlier + said
        at += step
    return segments


def write(speech: Speech, heard: Heard, key: jax.Array, config: SpeechConfig) -> tuple[Text, float]:
    """(the text of a window, its temperature): the first that is neither too repetitive nor too
    unlikely, or is silence. Where none is, the likeliest of those that do not repeat themselves,
    and the last temperature."""
    tried: list[tuple[Text, float]] = []
    for number, temperature in enumerate(config.temperatures):
        if temperature:
            own = jax.random.fold_in(key, number)
            text = sample(speech, heard, config.draws, temperature, own)
        else:
            text = search(speech, heard, config.beams)
        repetition = compression(speech.tokens.decode(text.ids).strip())
        unlikely = text.mean < config.likelihood
        if unlikely and text.silence > config.silence:
            return text, temperature
        if not unlikely and repetition <= config.repetition:
            return text, temperature
        tried.append((text, repetition))
    kept = [text for text, repetition in tried if repetition <= config.repetition]
    return max(kept or [text for text, _ in tried], key=lambda one: one.mean), temperature


def split(ids: list[int], times: int, size: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """([(first, last, ids)], step): the frames of a window of `size` at which each part of its text
    begins and ends, and the frame at which the next window begins. `times` is the id of time 0.

    Between two times side by side a part ends and the next begins. What follows the last such pair
    is heard again in the next window, unless it ends in a time: then nothing is said after it.
    """
    is_time = [n >= times for n in ids]
    cuts = [n for n in range(1, len(ids)) if is_time[n - 1] and is_time[n]]
    ended = len(ids) >= 2 and is_time[-1] and not is_time[-2]
    if not cuts:
        last = next((n - times for n in reversed(ids) if n >= times), 0)
        return [(0, last * _FRAMES if last else size, ids)], size
    parts, before = [], 0
    for cut in [*cuts, len(ids)] if ended else cuts:
        own = ids[before:cut]
        parts.append(((own[0] - times) * _FRAMES, (own[-1] - times) * _FRAMES, own))
        before = cut
    # Two times 0 and no more would be heard for ever.
    return parts, size if ended else parts[-1][1] or size


def compression(text: str) -> float:
    """Bytes of a text for each byte of its compressed form: a repeated text has many.

    >>> round(compression("la la la " * 20), 1)
    8.6
    """
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def detect_language(speech: Speech, memory: tuple) -> str:
    """The likeliest language of a window, such as "en"."""
    model, tokens = speech.model, speech.tokens
    prompt, one, first = np.array([[tokens.start]], np.int32), np.int32(1), np.int32(0)
    what = speech.params, memory, prompt, one, first
    _, logits_1V, _ = steps.read(*what, model=model, length=1)
    ids = list(tokens.languages.values())
    return list(tokens.languages)[int(np.argmax(np.asarray(logits_1V)[0, ids]))]
