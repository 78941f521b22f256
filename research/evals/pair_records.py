"""Pairs of answers as token ids, from a file of preferences or the held-out part of a source."""

from dataclasses import dataclass
from pathlib import Path

from research.data.chat import ChatRefused
from research.data.conversations import read_spelt
from research.data.documents import Documents, UnreadableRecord
from research.data.files import FileDocuments
from research.data.plain_answers import answer_encoder
from research.data.preferences import SIDES
from research.data.sources import SOURCES, open_source
from research.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Side:
    """A prompt with one answer as token ids, and for each id whether it is the answer's."""

    ids: list[int]
    said: list[bool]

    @property
    def answer(self) -> int:
        """Tokens of the answer."""
        return sum(self.said)

    def answer_in(self, window: int) -> bool:
        """Whether the first `window` tokens have one of the answer, which the text does not begin
        with."""
        return any(self.said[1:window])

    def cut(self, window: int) -> "Side":
        """The first `window` tokens."""
        return Side(self.ids[:window], self.said[:window])

    def with_prompt(self, most: int) -> "Side":
        """The same with the last `most` tokens of the prompt, 0 for all of them."""
        begin = max(0, self.said.index(True) - most) if most and any(self.said) else 0
        return Side(self.ids[begin:], self.said[begin:])


Pair = tuple[Side, Side]  # the chosen answer's and the rejected one's


def read_preferences(
    source: str, tokenizer: Tokenizer, cache_dir: Path, prompt_tokens: int = 0
) -> list[Pair]:
    """(chosen, rejected) of each record of a file of preferences, `FILE` or `FILE?prompt=FIELD`, in
    the spellings of `research.data.preferences`, or of the held-out part of a source by its name.
    Of a prompt the last `prompt_tokens` tokens are kept, 0 for all. ValueError, with the number of
    the record, for one that is no pair or that the chat template rejects."""
    documents = _documents(source, cache_dir)
    records = [documents[index] for index in range(len(documents))]
    if not records:
        raise ValueError(f"--pairs={source} has no records; give some preferences")
    encoder, sides = answer_encoder(tokenizer), {}
    for side in SIDES:
        spelt = [read_spelt(record[side]) for record in records]
        encoded = encoder.encode_batch([one[0] for one in spelt], [one[1] for one in spelt])
        for index, one in enumerate(encoded):
            if isinstance(one, ChatRefused):
                raise UnreadableRecord(source.partition("?")[0], index, one)
        sides[side] = [Side(*one).with_prompt(prompt_tokens) for one in encoded]
    return list(zip(*(sides[side] for side in SIDES)))


def _documents(source: str, cache_dir: Path) -> Documents:
    file, _, query = source.partition("?")
    if source in SOURCES and not Path(file).expanduser().exists():
        return open_source(source, cache_dir, "preferences").heldout
    return FileDocuments(Path(file).expanduser(), query, cache_dir, "preferences")
