"""What a process does about the word that one of its job has failed, its own or another's."""

import contextlib
import threading

import pytest

from research import command
from research.parallel import peers


class Store:
    """The key-value store of a job's coordinator, in this process."""

    def __init__(self):
        self.words = {}

    def key_value_set(self, name, word):
        self.words.setdefault(name, word)

    def key_value_try_get(self, name):
        if name not in self.words:
            raise RuntimeError("NOT_FOUND")
        return self.words[name]


@pytest.fixture
def watched(monkeypatch):
    """(the store, the codes that this process left with) of a process that watches its peers."""
    store, codes = Store(), []

    def leave(code):
        codes.append(code)
        raise SystemExit

    def watching(ended):
        with contextlib.suppress(SystemExit):  # the thread ends, not the test
            watch(ended)

    watch = peers._watch
    monkeypatch.setattr(peers, "_watch", watching)
    monkeypatch.setattr(peers, "_client", lambda: store)
    monkeypatch.setattr(peers, "_EVERY", 0.01)
    monkeypatch.setattr(peers, "_take_aborts", lambda: None)
    monkeypatch.setattr(peers.os, "_exit", leave)
    monkeypatch.setattr(command, "AT_FAILURE", [])
    peers.watch_peers()
    [thread] = [one for one in threading.enumerate() if one.name == "peers"]
    yield store, codes
    store.key_value_set("graft/failed", "the test ends")
    thread.join(timeout=10)


def test_a_process_that_fails_ends_with_its_own_code_and_not_by_its_own_word(watched):
    store, codes = watched
    command.tell_failure(command.BUG)
    # Process 0 waits for the others to read it, three times as long as its own thread sleeps.
    assert "process 0" in store.words["graft/failed"] and "code 1" in store.words["graft/failed"]
    assert codes == []


def test_the_word_of_another_process_ends_this_one_to_be_started_again(watched):
    store, codes = watched
    store.key_value_set("graft/failed", "process 1 has failed with exit code 1")
    [thread] = [one for one in threading.enumerate() if one.name == "peers"]
    thread.join(timeout=10)
    assert codes == [command.RETRY]
