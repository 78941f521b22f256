"""A judge behind an address, against a server of this process."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from research.evals import judge
from research.evals.choose import make_evaluations
from research.evals.evaluation import RunData
from tests.evals.test_laws import opened


@pytest.fixture
def server():
    """(address, requests so far, answers to give: a text, or an HTTP status)."""
    seen: list = []
    answers: list = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            answer = answers.pop(0)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            content = {"choices": [{"message": {"content": answer}}]}
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/v1", seen, answers
    made.shutdown()
    made.server_close()


def test_a_judge_is_asked_and_its_rating_read(server, tmp_path, monkeypatch):
    address, seen, answers = server
    answers += ["Fine: [[8]]", 500, "I cannot say."]
    monkeypatch.setenv("JUDGE_KEY", "secret")
    monkeypatch.setattr(judge.time, "sleep", lambda _: None)
    (tmp_path / "q.jsonl").write_text('{"prompt": "a?", "answer": "b"}\n{"prompt": "c?"}\n')
    settings = {"data": str(tmp_path / "q.jsonl"), "max_tokens": 4, "threads": 1}
    settings |= {"address": address, "model": "big", "key": "JUDGE_KEY"}
    [evaluation] = make_evaluations({"judge": settings}, RunData(kind="decoder")).values()
    first, second = evaluation.items(opened())
    assert first.totals["rating"] == (8.0, 1.0) and first.texts["judge"] == "Fine: [[8]]"
    assert "rating" not in second.totals and second.totals["rated"] == (0.0, 1.0)
    path, key, body = seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "big"
    asked = body["messages"][0]["content"]
    assert "[Question]\na?" in asked and "[Reference answer]\nb" in asked
    # Busy once, then asked again.
    assert len(seen) == 3 and "Reference" not in seen[2][2]["messages"][0]["content"]


def test_a_refusal_ends_it_in_a_line(server):
    address, seen, answers = server
    answers += [401]
    with pytest.raises(ValueError, match=r"the judge at .* does not answer \(HTTP Error 401"):
        judge.ask_at(address, "big", "")("a")
    assert len(seen) == 1


def test_without_an_address_or_its_key_nothing_is_judged():
    with pytest.raises(ValueError, match="give the address of a judge"):
        judge.JudgeConfig(data="a.jsonl")
    with pytest.raises(ValueError, match="key=NO_SUCH_KEY is no environment variable"):
        judge.JudgeConfig("http://127.0.0.1:1", "big", "NO_SUCH_KEY", data="a.jsonl")


@pytest.mark.parametrize(
    ("answer", "rating"),
    [("[[3]] no, [[ 4.5 ]]", 4.5), ("[[11]]", None), ("7", None), ("[[0]]", None)],
)
def test_ratings(answer, rating):
    assert judge.rating_of(answer) == rating
