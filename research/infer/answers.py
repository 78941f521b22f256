"""Answers that stand in a passage: the likeliest span of an encoder with scores of an answer's ends
(arXiv:1810.04805, sections 4.2 and 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.data.questions import question_rows
from research.data.tokenizers import Tokenizer
from research.infer.label_rows import label_scores
from research.models.model import Model
from research.tree import Tree

LONGEST = 30  # most tokens of an answer (arXiv:1810.04805's run_squad.py)
_TRIED = 20  # likeliest first and last tokens of a window that are tried with each other


@dataclass(frozen=True)
class Answer:
    """An answer: characters `start` to `stop` - 1 of the passage, `text`, or "" with both 0 where
    having none is likelier. `score` is the sum of its ends' logits, `none` that of no answer, at
    least in any window."""

    text: str
    start: int
    stop: int
    score: float
    none: float


def answer(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, str]],
    max_tokens: int,
    overlap: int,
    *,
    always: bool = False,
) -> list[Answer]:
    """The answer of each (question, passage). A passage that is longer than `max_tokens` with its
    question is read in windows that share `overlap` tokens. With `always` no question is without
    an answer. ValueError for a model without scores of an answer's ends.

        answer(model, params, tokenizer, [("Who wrote it?", "Ada wrote it.")], 384, 128)[0].text
    """
    longest = min(max_tokens, model.config.max_length)
    overlap = min(overlap, longest // 3)
    windows = [
        (number, row)
        for number, (question, passage) in enumerate(questions)
        for row in question_rows(tokenizer, question, passage, longest, overlap)
    ]
    rows = [row for _, (row, _, _) in windows]
    best: list[tuple[float, int, int]] = [(-np.inf, 0, 0)] * len(questions)
    none = [np.inf] * len(questions)
    for at, scores_T2 in label_scores(model, params, rows, "spans"):
        number, (_, begin, places) = windows[at]
        none[number] = min(none[number], float(scores_T2[0].sum()))
        found = best_span(scores_T2[begin : begin + len(places)])
        if found is not None and found[0] > best[number][0]:
            score, first, last = found
            best[number] = score, int(places[first, 0]), int(places[last, 1])
    answers = []
    for (_, passage), (score, start, stop), without in zip(questions, best, none):
        if score == -np.inf or (score < without and not always):
            start = stop = 0
        answers.append(Answer(passage[start:stop], start, stop, score, without))
    return answers


def best_span(scores_T2: np.ndarray) -> tuple[float, int, int] | None:
    """(sum of scores, first token, last) of the best span of at most `LONGEST` tokens, from the
    scores [T, 2] of each token as an answer's first and last; None without a token."""
    if not len(scores_T2):
        return None
    firsts, lasts = (np.argsort(-column, kind="stable")[:_TRIED] for column in scores_T2.T)
    pairs = [
        (float(scores_T2[first, 0] + scores_T2[last, 1]), -int(first), int(last))
        for first in firsts
        for last in lasts
        if first <= last < first + LONGEST
    ]
    # The likeliest ends may lie the wrong way round; then an answer is its first token.
    likeliest = int(firsts[0])
    pairs = pairs or [(float(scores_T2[likeliest].sum()), -likeliest, likeliest)]
    score, first, last = max(pairs)
    return score, -first, last
