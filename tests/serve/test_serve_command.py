"""python -m research.serve, from its first line to SIGTERM."""

import http.client
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from research.data.tokenizers import train_tokenizer
from research.files import building
from research.interop import native
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")
pytestmark = pytest.mark.usefixtures("quick_commands")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a small decoder and its tokenizer."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    c = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=4096)
    with building(folder) as made:
        native.write_native(in_memory(c, random_params(c)), made)
        tokenizer.save(made)
    return folder


def command(*flags):
    return [sys.executable, "-m", "research.serve", *flags]


@pytest.mark.slow
def test_it_answers_and_finishes_what_it_writes_when_it_is_told_to_stop(checkpoint):
    # Time enough for a busy machine: what is tested is that nothing is cut off.
    flags = [f"--checkpoint={checkpoint}", "--port=0", "--rows=2", "--compiled=64", "--drain=90"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*flags), **piped) as server:
        try:
            link = ask(server, {"model": "tiny", "max_tokens": 200})
            time.sleep(0.5)
            server.send_signal(signal.SIGTERM)
            answer = json.loads(link.getresponse().read())
            link.close()
            # At its length or the model's own end token, and not where the signal came.
            assert answer["choices"][0]["finish_reason"] in ("length", "stop")
            assert server.wait(30) == 0
            assert "compiled" in server.stderr.read()
        finally:
            server.kill()


# The interpreter is not free while this sleeps, as in a compiler that does not let go of it.
HELD = """
import ctypes, runpy, sys
from research.serve.engine import Engine
Engine.step = lambda self: ctypes.PyDLL(None).sleep(60)
sys.argv = ["research.serve", *sys.argv[1:]]
runpy.run_module("research.serve", run_name="__main__")
"""
NO_END = {"2": -100}
DRAIN = 4.0  # seconds; a busy machine may run what is to end a process a second late


@pytest.mark.slow
def test_nothing_keeps_a_server_longer_than_its_drain(checkpoint):
    flags = [f"--checkpoint={checkpoint}", "--port=0", "--compiled=0", f"--drain={DRAIN}"]
    writing = command(*flags, "--length=4096", "--rows=1")
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(writing, **piped) as cut,
        subprocess.Popen([sys.executable, "-c", HELD, *flags], **piped) as held,
    ):
        try:
            link = ask(cut, {"max_tokens": 4000, "n": 4, "logit_bias": NO_END, "stream": True})
            answer = link.getresponse()
            first = answer.readline()  # so something is written
            lost = ask(held, {"max_tokens": 2})
            time.sleep(1.0)  # in which its step begins
            told = time.monotonic()
            for server in (cut, held):
                server.send_signal(signal.SIGTERM)
            events = (first + answer.read()).decode().split("\n\n")
            assert cut.wait(60) == 0 and held.wait(60) == -signal.SIGKILL
            assert time.monotonic() - told < DRAIN + 1
            assert "the interpreter was held" in held.stderr.read()
        finally:
            cut.kill()
            held.kill()
    lost.close()
    link.close()
    assert events[-2:] == ["data: [DONE]", ""]
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "abort"


def ask(server, body):
    """The connection on which a server that has just started is asked to write."""
    line = server.stdout.readline()
    assert line.startswith("listening on http://127.0.0.1:"), server.stderr.read()
    link = http.client.HTTPConnection("127.0.0.1", int(line.rsplit(":", 1)[1]), timeout=90)
    link.request("POST", "/v1/completions", json.dumps({"prompt": "to be", **body}))
    return link


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--port=8000"], "give --workdir"),
        (["--checkpoint=/nowhere", "--rows=0"], "rows"),
        (["--checkpoint=/nowhere", "here"], "unexpected argument"),
        (["--checkpoint=/nowhere", "--adapter=/a", "--adapter=b=/b"], "NAME=FOLDER"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(flags, said):
    asked = subprocess.run(command(*flags), capture_output=True, text=True, timeout=120)
    assert asked.returncode == 2 and said in asked.stderr and asked.stderr.count("\n") == 1
