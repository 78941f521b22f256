"""How often a reward model prefers the answer that people preferred, and how often the longer
answer is the preferred one: a model that does no better has learnt to count tokens.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from research.data.chat import ChatEncoder, ChatRefused
from research.data.conversations import read_spelt
from research.data.documents import UnreadableRecord
from research.data.files import FileDocuments
from research.data.preferences import SIDES
from research.data.tokenizers import Tokenizer
from research.evals.evaluation import Opened
from research.evals.intervals import wilson

_ROWS = 16  # of a batch


@dataclass(frozen=True)
class Side:
    """Prompt and answer as token ids, and the number of tokens of the answer."""

    ids: list[int]
    answer: int


@dataclass(frozen=True)
class PairAccuracy:
    """The printed values.

    pairs            pairs that were compared
    accuracy         share of them whose preferred answer has the higher reward; equal rewards count
                     half
    accuracy_low     its 95% interval (Wilson's), to
    accuracy_high
    margin           mean difference of the rewards
    longer           accuracy of preferring the answer of more tokens, equal ones counting half
    longer_low       its interval, to
    longer_high
    cut              pairs of which a text was longer than the window and has lost its end
    """

    pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    margin: float
    longer: float
    longer_low: float
    longer_high: float
    cut: int

    def values(self) -> dict[str, float | int | None]:
        """By name, in the order of the class."""
        return asdict(self)


def read_preferences(source: str, tokenizer: Tokenizer, cache_dir: Path) -> list[tuple[Side, Side]]:
    """(chosen, rejected) of each record of a file of preferences, `FILE` or `FILE?prompt=FIELD`, in
    the spellings of `research.data.preferences`. ValueError, with the number of the record, for one
    that is no pair or that the chat template rejects."""
    file, _, query = source.partition("?")
    documents = FileDocuments(Path(file).expanduser(), query, cache_dir, "preferences")
    records = [documents[index] for index in range(len(documents))]
    if not records:
        raise ValueError(f"--pairs={source} has no records; give some preferences")
    encoder, sides = ChatEncoder(tokenizer), {}
    for side in SIDES:
        spelt = [read_spelt(record[side]) for record in records]
        encoded = encoder.encode_batch([one[0] for one in spelt], [one[1] for one in spelt])
        for index, one in enumerate(encoded):
            if isinstance(one, ChatRefused):
                raise UnreadableRecord(file, index, one)
        sides[side] = [Side(ids, sum(said)) for ids, said in encoded]
    return list(zip(*(sides[side] for side in SIDES)))


def pair_accuracy(
    opened: Opened, pairs: Sequence[tuple[Side, Side]], window: int = 0
) -> PairAccuracy:
    """What a reward model makes of pairs of answers; texts are cut at the end to `window` tokens, 0
    for as many as the model saw in training. ValueError for a model that gives no score."""
    labels = opened.model.config.labels
    if labels != 1 or not opened.model.config.scores_texts:
        raise ValueError(
            f"--pairs wants a reward model, which has model.labels=1, and this one has {labels}; "
            "train one with --config=configs/posttrain.py:task=reward"
        )
    window = window or opened.window
    texts = [side.ids[:window] for pair in pairs for side in pair]
    rewards = score_texts(opened, texts).reshape(-1, 2)
    lengths = np.array([[side.answer for side in pair] for pair in pairs])
    right, longer = (_preferred(x[:, 0] - x[:, 1]) for x in (rewards, lengths))
    count = len(pairs)
    cut = sum(any(len(side.ids) > window for side in pair) for pair in pairs)
    margin = float(np.mean(rewards[:, 0] - rewards[:, 1]))
    low, high = wilson(right, count)
    longer_low, longer_high = wilson(longer, count)
    return PairAccuracy(
        pairs=count,
        accuracy=right / count,
        accuracy_low=low,
        accuracy_high=high,
        margin=margin,
        longer=longer / count,
        longer_low=longer_low,
        longer_high=longer_high,
        cut=cut,
    )


def score_texts(opened: Opened, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """The reward of each text of token ids, float32 [N]."""
    rewards = np.zeros(len(texts), np.float32)
    # Texts of one length together, and lengths that are powers of 2: few programs, little padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        length = 1 << max(5, (len(texts[chosen[-1]]) - 1).bit_length())
        tokens_BT, kept_BT = np.zeros((2, _ROWS, length), np.int32)
        for row, index in enumerate(chosen):
            tokens_BT[row, : len(texts[index])] = texts[index]
            kept_BT[row, : len(texts[index])] = 1
        positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
        batch = {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}
        scored_B = np.asarray(_scores(opened.params, batch, model=opened.model))
        rewards[chosen] = scored_B[: len(chosen)]
    return rewards


def _preferred(difference: np.ndarray) -> float:
    return float(np.sum(difference > 0) + np.sum(difference == 0) / 2)


@partial(jax.jit, static_argnames="model")
def _scores(params, batch, *, model):
    hidden_BTD = model.hidden(params, batch)[0]
    return model.class_logits(params, hidden_BTD, segments_BT=batch["segments"])[:, 0, 0]
