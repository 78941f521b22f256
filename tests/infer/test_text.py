"""The text of a continuation as its tokens come."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from research.data.tokenizers import load_tokenizer, train_tokenizer
from research.infer.text import Continuation

BYTES = load_tokenizer("bytes")
LETTERS = st.text(alphabet="abn é\u20ac\U0001f600\n", max_size=40)
STOPS = st.lists(st.text(alphabet="abn é\u20ac", min_size=1, max_size=3), max_size=3)


def write(decode, prompt, ids, stop=()):
    """The text, its pieces as they become certain, and the number of tokens taken."""
    text = Continuation(decode, prompt, stop)
    pieces, sent = [], 0
    for taken, token_id in enumerate(ids, 1):
        text.add(token_id)
        pieces.append(text.text[sent : text.certain])
        sent = text.certain
        if text.stopped:
            return text.text, pieces, taken
    text.close()
    return text.text, [*pieces, text.text[sent : text.certain]], len(ids)


@settings(deadline=None)
@given(LETTERS, LETTERS, STOPS)
@example("", "nab", ["b", "ab"])  # both end with the same token
def test_pieces_join_to_the_text_before_the_first_stop_string(prompt, continuation, stop):
    text, pieces, taken = write(
        BYTES.decode, BYTES.encode(prompt), BYTES.encode(continuation), stop
    )
    assert "".join(pieces) == text
    read = BYTES.decode(BYTES.encode(continuation)[:taken])
    found = [read.find(s) for s in stop if s in read]
    assert text == (read[: min(found)] if found else continuation)
    before = BYTES.decode(BYTES.encode(continuation)[: taken - 1])
    assert not any(
        s in before for s in stop
    )  # it ends with the token that completes a stop string, no later


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=60))
def test_any_tokens_give_what_decoding_them_at_once_gives(ids):
    text, pieces, _ = write(BYTES.decode, BYTES.encode("x"), ids)
    assert "".join(pieces) == text == BYTES.decode(ids)


def test_half_a_letter_is_held_back():
    first, second, third = BYTES.encode("\u20ac")
    text = Continuation(BYTES.decode, [], ())
    for token_id, certain in ((ord("a"), 1), (first, 1), (second, 1), (third, 2)):
        text.add(token_id)
        assert text.certain == certain
    assert text.text == "a\u20ac"


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not():
    text = Continuation(BYTES.decode, [], ("\n\nQ",))
    for letter, certain in (("a", 1), ("\n", 1), ("\n", 1), ("b", 4)):
        text.add(ord(letter))
        assert text.certain == certain


@pytest.mark.parametrize("spelling", ["sentencepiece:320", "bpe:300"])
def test_a_prompt_and_its_continuation_join_to_the_whole(spelling):
    tokenizer = train_tokenizer(
        spelling, ["the cat sat on the mat and the dog sat on the cat. " * 40]
    )
    whole = tokenizer.encode("the cat sat on the mat")
    for cut in range(1, len(whole)):
        text, pieces, _ = write(tokenizer.decode, whole[:cut], whole[cut:])
        assert (
            tokenizer.decode(whole[:cut]) + text == "the cat sat on the mat"
            and "".join(pieces) == text
        )


def test_a_continuation_keeps_the_space_it_begins_with():
    def decode(ids):
        """As LLaMA's tokenizer: a space before each word, but for the first of what is decoded."""
        return "".join(f" w{i}" for i in ids).removeprefix(" ")

    ids = list(range(50))
    for cut in (1, 9, 40):
        text, _, _ = write(decode, ids[:cut], ids[cut:])
        assert decode(ids[:cut]) + text == decode(ids)
