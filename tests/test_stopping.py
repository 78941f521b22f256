"""The first signal asks for a stop where work can be saved, and ends the program elsewhere."""

import os
import signal

import pytest

from research.stopping import Interrupted, StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_where_it_is_polled_and_the_second_ends_the_program(number):
    with StopRequest() as request, request.polled():
        os.kill(os.getpid(), number)
        assert request.received == number
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_ends_the_program_before_it_is_polled(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with StopRequest(), pytest.raises(Interrupted):
        os.kill(os.getpid(), number)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_the_first_leaves_work_that_can_be_done_again():
    done = []
    with StopRequest() as request, request.polled():
        with request.abandoned():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("never")
        assert request.received == signal.SIGTERM and not done
        with pytest.raises(Interrupted), request.abandoned():
            os.kill(os.getpid(), signal.SIGTERM)


def test_one_of_several_processes_passes_it_on(monkeypatch):
    sent = []
    with StopRequest(distributed=True) as request, request.polled():
        monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
        with request.abandoned():
            signal.raise_signal(signal.SIGINT)
        # Only once all have agreed.
        assert sent == [signal.SIGTERM] and request.received is None
