"""Records of questions that a passage answers: where in it the answers stand, none where it has
none (arXiv:1806.03822).

    {"question": TEXT, "context": TEXT, "answers": {"text": [TEXT], "answer_start": [PLACE]}}
    {"question": TEXT, "context": TEXT, "answers": [{"text": TEXT, "answer_start": PLACE}]}

A place is the number of characters before the answer. SQuAD's own files, with "paragraphs" of
questions, are read as records of the second kind (`research.data.squad`).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.census import Census
from research.data.conversations import plain
from research.data.documents import Documents, digest
from research.data.framing import Frame
from research.data.stretches import Places, SplitCensus, all_stretches, token_span, trimmed
from research.data.tokenizers import Tokenizer
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


def read_question(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"question", "context", "answers": [[first character, last + 1], ...] as JSON}. ValueError
    for an answer that does not stand at its place."""
    question, context = (_text(row.get(columns[name]), name) for name in ("question", "context"))
    if not question.strip():
        raise ValueError("the question is empty")
    places = []
    for text, start in _answers(plain(row.get(columns["answers"]))):
        stop = start + len(text)
        if context[start:stop] != text:
            found = context.find(text)
            hint = f"; it is at {found}" if text and found >= 0 else ""
            raise ValueError(
                f"answer {text[:40]!r} is not at {start} of the context, where "
                f"{context[start:stop][:40]!r} stands{hint}: places count characters, not bytes"
            )
        # An answer of no characters says that there is none.
        places += [[start, stop]] if text.strip() else []
    return {"question": question, "context": context, "answers": json.dumps(places)}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"field {name!r} is {type(value).__name__}, wanted text")
    return (value.encode("utf-8") if isinstance(value, str) else value).decode("utf-8")


def _answers(value: Any) -> list[tuple[str, int]]:
    """(text, place) of each answer, in either spelling."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        texts, starts = (list(value.get(name) or ()) for name in ("text", "answer_start"))
    elif isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        texts, starts = ([one.get(name) for one in value] for name in ("text", "answer_start"))
    else:
        raise ValueError(
            "answers are no {'text': [...], 'answer_start': [...]}, and no list of {'text', "
            "'answer_start'}"
        )
    if len(texts) != len(starts):
        raise ValueError(f"{len(texts)} answers but {len(starts)} places of answers")
    for text, start in zip(texts, starts):
        if not isinstance(text, str) or type(start) is not int or start < 0:
            raise ValueError(f"answer {text!r} at {start!r} is no text with the place of its start")
    return list(zip(texts, starts))


class _Bounds:
    """A tokenizer of the field "answers": their number, then the bounds of each."""

    vocab_size = 2**32 - 1
    fingerprint = digest("answers", "")

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        places = [json.loads(text) for text in texts]
        # The number in front: a store of questions without any answer would hold nothing.
        return [[len(one), *(n for bounds in one for n in bounds)] for one in places]


class QuestionWindows:
    """Windows of one question and a stretch of its context: [bos] question [eos] context [eos].

    `[i]` is a dict of int32 arrays: "tokens", "segments", "positions" and "token_types" [length] as
    `Frame.row` gives them, and "ends" [2], the places in the row of the first token of the answer
    and of the last: both 0, the first token, where the stretch does not hold all of the first
    answer. A question is cut at `Frame.question_tokens`.
    """

    def __init__(self, stores: Mapping[str, TokenStore], options: WindowOptions):
        self._stores, self.length = stores, options.length
        self.stores = tuple(stores.values())
        self._frame = Frame.of(options.tokenizer)
        most = self._frame.question_tokens(self.length)
        questions, contexts = (np.diff(stores[name].offsets) for name in ("question", "context"))
        self._most = most
        rooms = [self._frame.room(self.length, n) for n in np.minimum(questions, most).tolist()]
        self._windows = all_stretches(contexts.tolist(), rooms, options.overlap)
        split, cut = int((contexts > rooms).sum()), int((questions > most).sum())
        self.census: Census = SplitCensus(
            "questions with their contexts",
            len(questions),
            self.length,
            split=split,
            windows=len(self._windows) - len(questions) + split,
            overlap=options.overlap,
            notes=(f"cut {cut} of {len(questions)} questions at {most} tokens",) if cut else (),
        )

    def __len__(self) -> int:
        return len(self._windows)

    def _ids(self, name: str, record: int) -> np.ndarray:
        store = self._stores[name]
        return store.ids[store.offsets[record] : store.offsets[record + 1]]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record, stretch = self._windows[index]
        question = self._ids("question", record)[: self._most]
        context = self._ids("context", record)[stretch.start : stretch.stop]
        ends = np.zeros(2, np.int32)
        bounds = self._ids("answers", record)
        if bounds[0]:
            places = self._ids("places", record).reshape(-1, 2)
            first, last = token_span(places[:, 0], places[:, 1], int(bounds[1]), int(bounds[2]))
            if stretch.start <= first <= last < stretch.stop:
                shift = self._frame.start(len(question)) - stretch.start
                ends[:] = first + shift, last + shift
        return self._frame.row(self.length, question, context) | {"ends": ends}


def question_windows(documents: Documents, options: WindowOptions) -> QuestionWindows:
    """Windows of questions, in the order of the documents."""
    encoders: dict[str, tuple[str, Any]] = {
        "question": ("question", None),
        "context": ("context", None),
        "places": ("context", Places(options.tokenizer)),
        "answers": ("answers", _Bounds()),
    }
    stores = {
        name: options.tokens(documents, field, encoder)
        for name, (field, encoder) in encoders.items()
    }
    return QuestionWindows(stores, options)


def question_rows(
    tokenizer: Tokenizer, question: str, context: str, length: int, overlap: int
) -> list[tuple[dict[str, np.ndarray], int, np.ndarray]]:
    """(row as `Frame.row` gives it, where its stretch of the context begins in the row, first and
    last character + 1 of each token of the stretch [tokens, 2]) of each window of one question."""
    frame = Frame.of(tokenizer)
    asked = tokenizer.encode(question)[: frame.question_tokens(length)]
    [(ids, places)] = tokenizer.align_batch([context])
    bounds = np.array(trimmed(context, places), np.int64).reshape(-1, 2)
    rows = []
    for _, one in all_stretches([len(ids)], [frame.room(length, len(asked))], overlap):
        row = frame.row(length, asked, ids[one.start : one.stop])
        rows.append((row, frame.start(len(asked)), bounds[one.start : one.stop]))
    return rows
