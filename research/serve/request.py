"""What an engine is asked for, and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from research.infer.decode import Generation
from research.infer.prompts import Prompt
from research.infer.sampling import SamplingConfig
from research.serve.draw import ALTERNATIVES
from research.serve.grammar import Grammar
from research.serve.penalties import NONE, Penalties
from research.serve.soft import NONE as NO_MEDIA

# (token, log-probability in nats) of the likeliest tokens, the likeliest first.
Alternatives = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Request:
    """A prompt to continue, a string or token ids, and how.

    copy            which of several continuations of one prompt: each has random numbers of its
                    own, the same ones as the text with this number among equal prompts of
                    `research.infer.decode.generate`
    alternatives    how many of the likeliest tokens to tell beside each token
    prompt_logprobs whether to tell the log-probabilities of the prompt's own tokens, too
    salt            texts with different ones share no pages of the cache
    adapter         the name of the engine's adapter that writes, "" for the model alone
    penalties       what is added to the logits of tokens
    grammar         what the text must follow; it ends there, "stop", where its grammar has no more
    media           "images" [I, size, size, 3] and "sounds" [I, frames, mels] in the order of their
                    places in the prompt, which names the place once for each or for each soft token

    ValueError for a number out of range.
    """

    prompt: Prompt
    sampling: SamplingConfig = SamplingConfig()
    copy: int = 0
    alternatives: int = 0
    prompt_logprobs: bool = False
    salt: str = ""
    adapter: str = ""
    grammar: Grammar | None = None
    penalties: Penalties = NONE
    media: Mapping[str, np.ndarray] = field(default_factory=lambda: NO_MEDIA, compare=False)

    def __post_init__(self):
        if not 0 <= self.alternatives <= ALTERNATIVES:
            raise ValueError(
                f"alternatives={self.alternatives} must be in [0, {ALTERNATIVES}]; ask for fewer"
            )
        if self.copy < 0:
            raise ValueError(f"copy={self.copy} must be at least 0, the first of equal prompts")


@dataclass(frozen=True)
class Completion(Generation):
    """A continuation, with what an engine knows beside the text.

    finish           also "cancelled", and "abort" where the server ended before the text
    alternatives     the likeliest tokens at each sampled token, () where none were asked for
    prompt_ids       the prompt's tokens
    prompt_logprobs  log-probability in nats of each of them but the first, which has none; () where
                     they were not asked for, and `prompt_alternatives` likewise
    cached_tokens    how many of the prompt's tokens were found in the cache
    """

    alternatives: tuple[Alternatives, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    prompt_alternatives: tuple[Alternatives, ...] = ()
    cached_tokens: int = 0
