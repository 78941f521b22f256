"""The benchmark of servers: its arithmetic, its client against a server that is none, and a small
model served for real."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from research.bench import serving as bench
from research.bench.serving_client import Answer
from tests.serve.engines import save

pytestmark = pytest.mark.usefixtures("quick_commands")


def test_a_row_has_the_figures_that_the_field_prints():
    # Two texts of three tokens in 2 s, whose tokens come 0.1 s apart, and one that failed.
    answers = [
        Answer(sent, [sent + first, sent + first + 0.1, sent + first + 0.2], 7, 3, "")
        for sent, first in ((0.0, 0.2), (1.0, 0.4))
    ]
    row = bench.row("ours", [*answers, Answer(error="400: no")], 2.0)
    assert (row["requests"], row["failed"], row["error"]) == (3, 1, "400: no")
    assert row["requests_per_second"] == 1.0
    assert (row["input_tokens_per_second"], row["output_tokens_per_second"]) == (7.0, 3.0)
    assert row["ttft_ms"]["p50"] == pytest.approx(300)
    assert [row[name]["p99"] for name in ("tpot_ms", "itl_ms")] == pytest.approx([100, 100])
    head, line, _ = bench.table([row]).splitlines()
    assert line.split()[:4] == ["ours", "2", "1", "1.00"] and len(head) == len(line)
    nothing = bench.row("none", [Answer(error="gone")], 2.0)
    assert nothing["ttft_ms"]["p50"] is None and "-" in bench.table([nothing])
    json.dumps([row, nothing])


def test_requests_come_at_their_rate_and_are_the_same_for_a_seed():
    load = bench.Load(requests=2000, rate=5.0, prompt=10, written=6)
    drawn = list(load.drawn(1))
    assert drawn == list(load.drawn(1)) != list(load.drawn(2))
    # 2,000 exponential gaps: their sum is off by 1 part in 45 of itself.
    assert drawn[-1][0] == pytest.approx(400, rel=0.1)
    lengths = [(len(prompt.split()), tokens) for _, prompt, tokens in drawn]
    assert {min(column) for column in zip(*lengths)} == {5, 3}
    assert {max(column) for column in zip(*lengths)} == {15, 9}


class Echo(BaseHTTPRequestHandler):
    """Streams a word of the prompt as each piece, and refuses every prompt of five words."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "echo"}]}')

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = asked["prompt"].split()
        self.send_response(400 if len(words) == 5 else 200)
        self.end_headers()
        count = min(asked["max_tokens"], len(words))
        usage = {"prompt_tokens": len(words), "completion_tokens": count}
        events = [{"choices": [{"text": word}]} for word in words[:count]]
        for event in [*events, {"choices": [], "usage": usage}]:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def test_servers_take_turns_and_failures_are_counted():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    load = bench.Load(requests=8, rate=1000.0, prompt=4, written=3)
    [one, two] = bench.compare({}, {"one": url, "two": url}, load, rounds=2)
    server.shutdown()
    server.server_close()
    drawn = [request for turn in (1, 2) for request in load.drawn(turn)]
    refused = sum(len(prompt.split()) == 5 for _, prompt, _ in drawn)
    assert one["requests"] == two["requests"] == 16 and one["failed"] == two["failed"] == refused
    assert 0 < refused < 16 and one["error"].startswith("400: ")


def test_a_server_that_does_not_listen_is_told():
    with pytest.raises(RuntimeError, match="broken does not listen"):
        bench.compare({"broken": [sys.executable, "-c", "print('no')"]}, {}, bench.Load(), 1)


@pytest.mark.slow
def test_a_small_model_is_served_and_measured(tmp_path):
    pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")
    flags = [f"--checkpoint={save(tmp_path / 'tiny')}", "--port=0", "--rows=2", "--compiled=0"]
    command = [sys.executable, "-m", "research.serve", *flags]
    load = bench.Load(requests=3, rate=100.0, prompt=4, written=4)
    [row] = bench.compare({"graft": command}, {}, load, rounds=1)
    assert (row["failed"], row["error"]) == (0, "") and row["output_tokens_per_second"] > 0
