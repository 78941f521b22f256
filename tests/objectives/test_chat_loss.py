"""Which tokens of a conversation are learnt."""

import numpy as np
import pytest

from research.objectives.chat import Chat, ChatConfig

WINDOW = {
    "tokens": np.arange(8, dtype=np.int32),
    "segments": np.array([1, 1, 1, 2, 2, 2, 0, 0], np.int32),
    "positions": np.array([0, 1, 2, 0, 1, 2, 0, 0], np.int32),
    "assistant": np.array([0, 0, 1, 0, 1, 1, 0, 0], np.int32),
}


@pytest.mark.parametrize(
    "loss_on, wanted", [("assistant", [0, 1, 0, 1, 1, 0, 0]), ("all", [1, 1, 0, 1, 1, 0, 0])]
)
def test_the_loss_is_on_the_assistant_or_on_all(loss_on, wanted):
    chat = Chat.make(ChatConfig(loss_on=loss_on), None)
    example = chat.example(WINDOW, np.random.default_rng(0))
    # Never across the seam of two conversations, and never on padding.
    np.testing.assert_array_equal(example["weights"], wanted)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="objective.loss_on='everyone'; choose one of assistant"):
        ChatConfig(loss_on="everyone")
