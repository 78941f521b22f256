"""What the objectives share that learn from texts which the model has written itself."""

from dataclasses import dataclass

import numpy as np

from research.objectives.next_token import NextToken


@dataclass(frozen=True)
class Written(NextToken):
    """`research.run.rollout_feed` samples the texts with the weights of the step and gives them as
    windows. A window has the fields of a packed text, and for each token "assistant", 1 where the
    model wrote it, and "logprobs", the log-probability that it was sampled with. Every probability
    is that of the distribution that is sampled, softmax(logits / temperature)."""

    max_tokens: int = 64
    rewards: str = "exact_match"
    temperature: float = 1.0

    reads = "prompts"
    overlap = 0  # every prompt is a record of its own
    answers_chats = False
    reports = ()
    bits_per_byte = False
    writes_texts = True

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 where the model wrote the target), segments, positions and
        sampled (log-probabilities), each [T]."""
        if "tokens" not in window:
            raise ValueError("a prompt has no loss before the model has continued it")
        tokens, segments = window["tokens"], window["segments"]
        same = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        nothing = np.zeros(len(tokens), np.float32)
        return {
            "inputs": tokens[:-1],
            "targets": tokens[1:],
            "weights": (same & (window["assistant"][1:] > 0)).astype(np.float32),
            "segments": segments[:-1],
            "positions": window["positions"][:-1],
            "sampled": window.get("logprobs", nothing)[1:].astype(np.float32),
        }
