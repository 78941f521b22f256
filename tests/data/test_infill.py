"""Texts with gaps: what a model learns is the text in another order."""

import numpy as np
import pytest

from research.data.documents import TextDocuments, UnreadableRecord
from research.data.infill import (
    CHARACTERS,
    GAPS,
    Gap,
    Infilled,
    gap_ids,
    refuse_without_gaps,
    sentinels_of,
    spelt,
    stretches,
    with_gap,
)
from research.data.number_words import english, german
from research.data.tokenizers import load_tokenizer, train_tokenizer

CODE = "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n"


def put_back(text: str) -> str:
    """The text that one with a gap was made of."""
    one, two, three = GAPS
    if not text.startswith(one):
        return text
    before, rest = text.removeprefix(one).split(two)
    behind, middle = rest.split(three)
    # With the suffix first the middle goes on from the prefix, which stands in front of it.
    return before + middle + behind


def test_every_order_is_the_same_text():
    made = [with_gap(CODE, np.random.default_rng(seed)) for seed in range(200)]
    assert {put_back(text) for text in made} == {CODE}
    with_gaps = [text for text in made if text != CODE]
    assert 160 <= len(with_gaps) <= 196  # nine in ten
    suffix_first = sum(text.startswith(GAPS[0] + GAPS[1]) for text in with_gaps)
    assert 0.35 < suffix_first / len(with_gaps) < 0.65
    gap = Gap("a", "b", "c")
    assert spelt(gap, True).endswith(f"{GAPS[2]}ab")


def test_stretches_are_whole_lines_and_all_of_the_text():
    text = "".join(f"line {n} {'x' * (n % 50)}\n" for n in range(200)) + "y" * 2 * CHARACTERS
    places = stretches(text)
    assert "".join(text[a:b] for a, b in places) == text
    assert all(b - a <= CHARACTERS for a, b in places[:-1])
    assert all(text[b - 1] == "\n" for _, b in places[:-1]) and stretches(" \n\n") == []


class Broken(TextDocuments):
    """Documents of which the second cannot be read."""

    def __getitem__(self, index):
        if index == 1:
            raise UnreadableRecord("b", 0, "it is broken")
        return super().__getitem__(index)


def test_a_document_that_cannot_be_read_is_one_record():
    made = Infilled(Broken({"a": CODE, "b": "lost", "c": CODE * 40}))
    assert len(made) == 2 + len(stretches(CODE * 40))
    assert put_back(made[0]["text"]) == CODE
    with pytest.raises(UnreadableRecord):
        made[1]
    assert made[2] == made[2] and made[2]["path"] == "c:0"


def test_a_trained_tokenizer_has_tokens_for_gaps_and_others_are_refused():
    tokenizer = train_tokenizer("bpe:300+fim", [CODE])
    ids = sentinels_of(tokenizer)
    assert [tokenizer.decode([n]) for n in ids] == list(GAPS)
    assert tokenizer.vocab_size == 300 and tokenizer.decode(tokenizer.encode(CODE)) == CODE
    refuse_without_gaps("infill:stdlib", tokenizer)
    refuse_without_gaps("stdlib", load_tokenizer("bytes"))
    with pytest.raises(ValueError, match="set config.data.tokenizer to bpe:VOCAB"):
        refuse_without_gaps("infill:stdlib", load_tokenizer("bytes"))
    with pytest.raises(ValueError, match="use bpe:.*\\+fim or more text"):
        train_tokenizer("bpe:4096+fim", [CODE])
    # What is read before a gap is filled begins what is learnt, in both orders.
    for suffix_first in (False, True):
        read, cut = gap_ids(tokenizer, ids, "def f", " + 1", 100, suffix_first)
        learnt = tokenizer.encode(spelt(Gap("def f", "(x)", " + 1"), suffix_first))
        assert learnt[: len(read)] == read and cut == 0


@pytest.mark.parametrize(
    ("number", "words", "zahl"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (21, "twenty-one", "einundzwanzig"),
        (101, "one hundred one", "einhunderteins"),
        (1000, "one thousand", "eintausend"),
        (3916, "three thousand nine hundred sixteen", "dreitausendneunhundertsechzehn"),
        (7042, "seven thousand forty-two", "siebentausendzweiundvierzig"),
    ],
)
def test_numbers_are_spelt_as_they_are(number, words, zahl):
    assert (english(number), german(number)) == (words, zahl)
