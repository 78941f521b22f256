"""Rewards in several processes: each computes its share, and all know all."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from research.posttrain import shared_rewards
from research.posttrain.rewards import RewardFailed, Rewards

TEXTS = [("", text, {"path": f"a.jsonl:{number}"}) for number, text in enumerate("abcde")]


def together(rewards, monkeypatch, count=2):
    """What each of so many processes, here threads, gets for TEXTS: the rewards, or an error."""
    met, given, place = threading.Barrier(count, timeout=10), [None] * count, threading.local()

    def exchange(value):
        given[place.index] = value
        met.wait()
        return given

    def process(index):
        place.index = index
        try:
            return shared_rewards.shared_rewards(rewards, TEXTS)
        except RewardFailed as error:
            return error

    monkeypatch.setattr(shared_rewards.jax, "process_count", lambda: count)
    monkeypatch.setattr(shared_rewards.jax, "process_index", lambda: place.index)
    monkeypatch.setattr(shared_rewards, "exchange", exchange)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(process, range(count)))


@pytest.mark.parametrize("count", [2, 3])
def test_each_text_is_rewarded_once_and_all_processes_know_all(count, monkeypatch):
    asked = []

    def letter(prompt, completion, record):
        asked.append(completion)
        return float(ord(completion))

    alone = Rewards((("letter", letter, 0.1),))
    wanted = alone(TEXTS)
    asked.clear()
    assert together(alone, monkeypatch, count) == [wanted] * count
    assert sorted(asked) == list("abcde")


def test_a_reward_that_fails_in_one_process_ends_all_in_its_line(monkeypatch):
    def fails(prompt, completion, record):
        return 1.0 if completion != "e" else record["grade"]

    found = together(Rewards((("grade", fails, 1.0),)), monkeypatch)
    line = "reward grade on record a.jsonl:4 raised KeyError: 'grade'; mend the reward"
    assert [str(one)[: len(line)] for one in found] == [line] * 2
    # Where it happened the cause is known, as in a run of one process.
    assert isinstance(found[1].__cause__, KeyError) and found[0].__cause__ is None
