"""How often a model prefers the answer that people preferred.

A reward model prefers by its rewards. A language model prefers the answer that it finds likelier,
and measured against a reference, as DPO trains it, the one whose log-probability it has raised more
(arXiv:2305.18290, section 4). Beside these stands how often the longer answer is the preferred
one: a model that does no better has learnt to count tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.evals.evaluation import Opened
from research.evals.intervals import student, wilson
from research.evals.pair_records import Pair
from research.evals.side_scores import answer_scores, rewards


@dataclass(frozen=True)
class PairAccuracy:
    """What is printed. A share has its 95% interval beside it, NAME_low to NAME_high (Wilson's; of
    "gain", which compares by pair, Student's t).

    pairs      pairs that were compared
    shares     by name, each with its interval. An equal score for both answers counts half:
               accuracy              of rewards; of a language model of log p of the answer, the sum
                                     over its tokens, less the reference's if there is one
               per_token             of a language model: the same, averaged over the tokens
               reference             by the reference's own log p, as it was before training
               reference_per_token   the same, averaged over the tokens
               gain                  accuracy less the better of the reference's two
               longer                of preferring the answer of more tokens
    margin     mean difference of the scores that accuracy is of: rewards, or nats
    cut        pairs of which a text was longer than the window and has lost its end
    left_out   pairs of which an answer begins behind the window's end; they are not compared
    """

    pairs: int
    shares: dict[str, tuple[float, float, float]]
    margin: float
    cut: int
    left_out: int

    @property
    def accuracy(self) -> float:
        """The share named so, without its interval."""
        return self.shares["accuracy"][0]

    def values(self) -> dict[str, float | int | None]:
        """The printed values by name."""
        flat = {
            f"{name}{end}": value
            for name, share in self.shares.items()
            for end, value in zip(("", "_low", "_high"), share)
        }
        ends = {"margin": self.margin, "cut": self.cut, "left_out": self.left_out}
        return {"pairs": self.pairs, **flat, **ends}


def pair_accuracy(
    opened: Opened,
    pairs: Sequence[Pair],
    window: int = 0,
    reference: Opened | None = None,
) -> PairAccuracy:
    """What a model makes of pairs of answers; texts are cut at the end to `window` tokens, 0 for as
    many as the model saw in training.

    ValueError for a model that neither scores texts nor predicts the next token, for a reference of
    another tokenizer or beside a reward model, and if no pair has both its answers in the window.
    """
    scores = _scorer(opened, reference)
    window = window or opened.window
    kept = [pair for pair in pairs if all(side.answer_in(window) for side in pair)]
    if not kept:
        raise ValueError(
            f"of {len(pairs)} pair(s) none has both answers within {window} tokens; set --window"
        )
    sides = [side.cut(window) for pair in kept for side in pair]
    lengths_P2 = np.array([[side.answer for side in pair] for pair in kept])
    cut = sum(any(len(side.ids) > window for side in pair) for pair in kept)
    # Of each pair 1, 0 or a half by each way to choose.
    ways, margin = scores(sides)
    ways["longer"] = _preferred(lengths_P2)
    shares = {name: _share(preferred) for name, preferred in ways.items()}
    if reference is not None:
        better = max(("reference", "reference_per_token"), key=lambda name: shares[name][0])
        gains = (ways["accuracy"] - ways[better]).tolist()
        interval = student(gains) if len(gains) > 1 else (-math.inf, math.inf)
        shares["gain"] = float(np.mean(gains)), *interval
    return PairAccuracy(len(kept), shares, margin, cut, len(pairs) - len(kept))


def _scorer(opened: Opened, reference: Opened | None):
    """A function from 2 P sides to ({name: float [P], 1 where the chosen answer is preferred},
    mean difference of the first of these scores)."""
    config = opened.model.config
    if config.labels == 1 and config.scores_texts:
        if reference is not None:
            raise ValueError("a reward model has no reference; leave --reference out")

        def by_reward(sides):
            found_P2 = rewards(opened, [side.ids for side in sides]).reshape(-1, 2)
            return {"accuracy": _preferred(found_P2)}, _margin(found_P2)

        return by_reward
    if config.kind != "decoder" or config.labels:
        raise ValueError(
            f"--pairs wants a reward model or one that predicts the next token; this one is of "
            f"kind {config.kind!r} with model.labels={config.labels}"
        )
    if reference is not None and reference.model.config.vocab_size != config.vocab_size:
        raise ValueError(
            f"the reference has {reference.model.config.vocab_size} tokens and the model "
            f"{config.vocab_size}; give the checkpoint that the model was trained from"
        )
    if reference is not None and _prints(reference) != _prints(opened):
        raise ValueError(
            "the reference has another tokenizer or chat template than the model; give the "
            "checkpoint that the model was trained from"
        )

    def _by_likelihood(sides):
        found_P2 = answer_scores(opened, sides).reshape(-1, 2)
        answers_P2 = np.array([side.answer for side in sides], np.float32).reshape(-1, 2)
        beside_P2 = np.zeros_like(found_P2)
        if reference is not None:
            beside_P2 = answer_scores(reference, sides).reshape(-1, 2)
        gained_P2 = found_P2 - beside_P2
        ways = {
            "accuracy": _preferred(gained_P2),
            "per_token": _preferred(gained_P2 / answers_P2),
        }
        if reference is not None:
            ways["reference"] = _preferred(beside_P2)
            ways["reference_per_token"] = _preferred(beside_P2 / answers_P2)
        return ways, _margin(gained_P2)

    return _by_likelihood


def _prints(opened: Opened) -> tuple[str, str | None] | None:
    tokenizer = opened.tokenizer
    return tokenizer and (tokenizer.fingerprint, tokenizer.chat_template)


def _preferred(scores_P2: np.ndarray) -> np.ndarray:
    """Float [P]: 1 where the first of two scores is higher, a half where they are equal."""
    difference_P = scores_P2[:, 0] - scores_P2[:, 1]
    return (difference_P > 0) + (difference_P == 0) / 2


def _margin(scores_P2: np.ndarray) -> float:
    return float(np.mean(scores_P2[:, 0] - scores_P2[:, 1]))


def _share(preferred_P: np.ndarray) -> tuple[float, float, float]:
    right, count = float(preferred_P.sum()), len(preferred_P)
    return right / count, *wilson(right, count)
