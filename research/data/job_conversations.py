"""The sources "xsum", "alpaca_briefs" and "narrativeqa": conversations that teach a job, made of
records in packages, each with held-out records that its evaluation asks.

xsum           an article and a sentence that sums it up (arXiv:1808.08745)
alpaca_briefs  a brief and a text: the brief's constraints are read off the text, which so meets
               them all
narrativeqa    two turns of questions on numbered passages, and answers that name theirs
               (arXiv:1712.07040); in one of ten no passage has the answer
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.brief import read_brief
from research.data.documents import Documents, digest
from research.data.files import FileDocuments
from research.data.grounding import INSTRUCTION, NOTHING, grounded_text
from research.data.packaged import read_packaged
from research.downloads.cache import built, cache_directory

Record = dict[str, Any]
SUMMARIZE = "Summarize the article in one sentence."
SYSTEM = "You answer customers' questions from the passages that they come with."
# Records of the package from here on are held out.
_XSUM_TRAIN, _ALPACA_TRAIN, _STORIES_TRAIN = 800, 850, 0.9
_STRETCH = 600  # letters of a passage
_FORMAT = "1"  # part of the folder's name: raise it when other conversations are made


def open_xsum(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """(conversations, held-out ones, {}) of XSum's first thousand test articles."""
    return _conversations("xsum", cache_dir, functools.partial(map, _summary), _xsum)


def open_alpaca_briefs(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """The same of briefs and texts."""
    return _conversations("alpaca_briefs", cache_dir, functools.partial(map, _written), _briefs)


def open_narrativeqa(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """The same of questions on stories' summaries."""
    return _conversations("narrativeqa", cache_dir, _dialogues, _stories)


def heldout(read: Callable[[Path], tuple[Sequence[Record], Sequence[Record]]]) -> list[Record]:
    """The held-out records that a source is made of, for its evaluation."""
    return list(read(cache_directory())[1])


def _xsum(cache_dir: Path) -> tuple[Sequence[Record], Sequence[Record]]:
    records = read_packaged("xsum", cache_dir)
    return records[:_XSUM_TRAIN], records[_XSUM_TRAIN:]


def _summary(record: Record) -> list[Record]:
    return _turn(f"{record['document']}\n\n{SUMMARIZE}", record["summary"])


def _briefs(cache_dir: Path) -> tuple[Sequence[Record], Sequence[Record]]:
    """Records {"topic", constraints, "text"}."""
    found = [one for one in map(_brief, read_packaged("alpaca", cache_dir)) if one]
    return found[:_ALPACA_TRAIN], found[_ALPACA_TRAIN:]


def _brief(record: Record) -> Record | None:
    """The brief of an instruction and its answer, None for an answer that is too short or long."""
    text, words = record["output"].strip(), record["output"].split()
    if record.get("input") or not 8 <= len(words) <= 90:
        return None
    rng = np.random.default_rng(int(digest(text)[:16], 16))
    # Long words are telling; twenty words more or less are what a person would ask for.
    long = sorted({word.strip(".,:;!?()\"'").lower() for word in words if len(word) > 6})
    chosen = [str(one) for one in rng.permutation(long)[:2] if str(one).isalpha()]
    brief: Record = {"topic": record["instruction"], "max_words": len(words) // 10 * 10 + 20}
    brief |= {"min_words": max(1, len(words) // 10 * 10 - 10)}
    brief |= {"keywords": chosen} if chosen else {}
    if "\n" not in text:
        brief["format"] = "paragraph"
    return {**brief, "text": text}


def _written(record: Record) -> list[Record]:
    fields = {name: value for name, value in record.items() if name != "text"}
    return _turn(read_brief(record["topic"], fields).instruction(), record["text"])


def _stories(cache_dir: Path) -> tuple[Sequence[Record], Sequence[Record]]:
    """Records {"question", "answer": texts, "passage", "source"}; passages of held-out stories are
    in no conversation."""
    records = read_packaged("narrativeqa", cache_dir)
    names = {text: n for n, text in enumerate(dict.fromkeys(one["passage"] for one in records))}
    named = [{**one, "source": f"story {names[one['passage']]}"} for one in records]
    first = int(len(names) * _STORIES_TRAIN)
    parts: tuple[list[Record], list[Record]] = ([], [])
    for one in named:
        parts[names[one["passage"]] >= first].append(one)
    return parts


def _dialogues(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Two questions on a story as two turns."""
    for number, (one, other) in enumerate(zip(records[::2], records[1::2])):
        rng = np.random.default_rng(number)
        stranger = records[int(rng.integers(len(records)))]["passage"]
        system = [{"role": "system", "content": SYSTEM}]
        yield [*system, *_asked(one, stranger, rng), *_asked(other, stranger, rng)]


def _asked(record: Record, stranger: str, rng: np.random.Generator) -> list[Record]:
    """The question beside the stretch of its story that says most of the answer, and another's."""
    answer, passage = record["answer"][0], record["passage"]
    stretches = [passage[at : at + _STRETCH] for at in range(0, len(passage), _STRETCH // 2)]
    words = set(answer.lower().split())
    right = max(stretches, key=lambda text: len(words & set(text.lower().split())))
    wrong, place = stranger[:_STRETCH], int(rng.integers(2))
    shown = [wrong, right] if place else [right, wrong]
    said = f"{answer} [{place + 1}]"
    if rng.random() < 0.1 and stranger != passage:
        shown, said = [wrong], NOTHING
    return _turn(f"{INSTRUCTION}\n\n{grounded_text(record['question'], shown)}", said)


def _turn(asked: str, said: str) -> list[Record]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def _conversations(
    name: str,
    cache_dir: Path,
    make: Callable[[Sequence[Record]], Any],
    read: Callable[[Path], tuple[Sequence[Record], Sequence[Record]]],
) -> tuple[Documents, Documents, dict[str, Any]]:
    """Kept as JSON lines, so that they are read like any file of a user."""

    def write(folder: Path) -> None:
        for part, records in zip(("train", "heldout"), read(cache_dir)):
            lines = [json.dumps({"messages": one}, ensure_ascii=False) for one in make(records)]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def check(folder: Path) -> Path:
        if not (folder / "heldout.jsonl").is_file():
            raise FileNotFoundError(folder)
        return folder

    folder = built(cache_dir / "jobs" / f"{name}-{_FORMAT}", write, check)
    train, held = (
        FileDocuments(folder / f"{part}.jsonl", "", cache_dir, "conversations")
        for part in ("train", "heldout")
    )
    return train, held, {}


# By the name of a source, the held-out records that its evaluation asks.
HELD_OUT: dict[str, Callable[[], list[Record]]] = {
    "xsum_heldout": functools.partial(heldout, _xsum),
    "alpaca_briefs": functools.partial(heldout, _briefs),
    "narrativeqa": functools.partial(heldout, _stories),
}
