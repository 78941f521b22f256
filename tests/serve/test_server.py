"""The server over loopback: OpenAI's forms, bad input, and clients that go away."""

import base64
import http.client
import json
import socket
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from research.data.tokenizers import train_tokenizer
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.serve.engine import Engine
from research.serve.request import Request
from tests.families import FAMILIES
from tests.interop.memory import random_params

pytest.importorskip("starlette", reason="pip install 'graft-research[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")

from research.bench import soak
from research.serve.asked import _CHAT as CHAT_FIELDS
from research.serve.asked import Served
from research.serve.grammar import Grammars
from research.serve.refusal import check_names
from research.serve.server import make_server, run
from research.serve.worker import Worker

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)
LENGTH = 64


class Client:
    """A server in a thread, and what it answers."""

    def __init__(self, **settings):
        tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
        self.tokenizer = replace(tokenizer, chat_template=TEMPLATE)
        c = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=LENGTH)
        self.model, self.params = Model(c), random_params(c)
        worker = Worker(self.alone(), waiting=24)
        grammars = Grammars(self.tokenizer, (299,))
        served = Served("tiny", self.tokenizer, LENGTH, stop_ids=(299,), grammars=grammars)
        self._serve(worker, served, **settings)

    @classmethod
    def of(cls, worker, served):
        """A server of something else."""
        made = cls.__new__(cls)
        made._serve(worker, served)
        return made

    def _serve(self, worker, served, **settings):
        self.worker, self.engine = worker, worker.engine
        self.server = make_server(self.worker, served, **settings)
        self.thread = threading.Thread(target=run, args=(self.server, self.worker), daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def alone(self) -> Engine:
        """An engine like the server's."""
        return Engine(
            self.model, self.params, self.tokenizer, pages=16, page_size=8, rows=2, chunk=16
        )

    def ask(self, path, body=None, method=None, **headers):
        """(status, the answer's text)."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        link.request(method or ("GET" if body is None else "POST"), path, content, headers)
        answer = link.getresponse()
        text = answer.read().decode()
        link.close()
        return answer.status, text

    def json(self, path, body=None):
        """The value that it answers."""
        status, text = self.ask(path, body)
        assert status == 200, text
        return json.loads(text)

    def events(self, path, body):
        """The events of a stream, but for the last, which says that it is done."""
        status, text = self.ask(path, {**body, "stream": True})
        assert status == 200, text
        *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert done == "[DONE]"
        return [json.loads(event) for event in events]


def until(true, seconds=60):
    """Waits for something to be true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client():
    made = Client()
    yield made
    made.server.should_exit = True
    made.thread.join(20)
    assert not made.thread.is_alive()


GREEDY = {"prompt": "to be or", "max_tokens": 6, "temperature": 0}


def test_what_is_served_is_what_the_engine_writes(client):
    sampling = SamplingConfig(temperature=0.9, top_p=0.9, max_tokens=6, seed=5, stop_ids=(299,))
    body = {**GREEDY, "temperature": 0.9, "top_p": 0.9, "seed": 5, "n": 2}
    wanted = client.alone().generate([Request("to be or", sampling, copy) for copy in (0, 1)])
    answer = client.json("/v1/completions", body)
    assert [one["text"] for one in answer["choices"]] == [one.text for one in wanted]
    ids = list(wanted[0].prompt_ids)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    by_ids = client.json("/v1/completions", {**body, "prompt": ids})
    assert by_ids["choices"] == answer["choices"]
    # The pieces of a stream are the text.
    pieces = ["", ""]
    for event in client.events("/v1/completions", body):
        [choice] = event["choices"]
        pieces[choice["index"]] += choice["text"]
    assert pieces == [one.text for one in wanted]


def test_the_likeliest_of_several_texts_are_given(client):
    body = {**GREEDY, "temperature": 1, "seed": 5, "logprobs": 0, "prompt": ["to be", "or not"]}
    every = client.json(COMPLETIONS, {**body, "n": 4})
    best = client.json(COMPLETIONS, {**body, "n": 2, "best_of": 4})
    choices = []
    for first in (0, 4):
        group = every["choices"][first : first + 4]
        choices += sorted(group, key=lambda one: -np.mean(one["logprobs"]["token_logprobs"]))[:2]
    assert [one["text"] for one in best["choices"]] == [one["text"] for one in choices]
    assert [one["index"] for one in best["choices"]] == [0, 1, 2, 3]
    # What was not given was written all the same.
    assert best["usage"]["completion_tokens"] == every["usage"]["completion_tokens"]


def test_penalties_and_biases_of_a_request_reach_its_tokens(client):
    ids = client.json("/tokenize", {"prompt": "x"})["tokens"]
    body = {**GREEDY, "logit_bias": {str(ids[0]): 100}, "max_tokens": 2}
    assert client.json(COMPLETIONS, body)["choices"][0]["text"] == "xx"
    once = client.json(COMPLETIONS, {**body, "presence_penalty": 2, "logit_bias": {}})
    free = client.json(COMPLETIONS, {**GREEDY, "max_tokens": 2})
    assert once["choices"][0]["text"] and free["choices"][0]["text"]


def test_log_probabilities_in_the_form_that_scores_texts(client):
    body = {**GREEDY, "max_tokens": 1, "echo": True, "logprobs": 2}
    [choice] = client.json("/v1/completions", body)["choices"]
    told = choice["logprobs"]
    assert choice["text"].startswith("to be or")
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert len({len(values) for values in told.values()}) == 1
    assert told["text_offset"] == sorted(told["text_offset"])
    # The one that was written is the likeliest.
    assert told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())
    [streamed] = [e["choices"][0]["logprobs"] for e in client.events("/v1/completions", body)][:1]
    assert streamed["tokens"][: len(told["tokens"]) - 1] == told["tokens"][:-1]


def test_a_conversation_whole_and_in_pieces(client):
    body = {"messages": [{"role": "user", "content": "to be"}], "max_completion_tokens": 5}
    body |= {"temperature": 0, "logprobs": True, "top_logprobs": 1}
    answer = client.json("/v1/chat/completions", body)
    [choice] = answer["choices"]
    assert answer["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
    told = choice["logprobs"]["content"]
    assert len(told) == answer["usage"]["completion_tokens"]
    assert all(one["logprob"] == one["top_logprobs"][0]["logprob"] for one in told)
    body["stream_options"] = {"include_usage": True}
    *events, last = client.events("/v1/chat/completions", body)
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == choice["message"]["content"]
    assert last["choices"] == [] and last["usage"]["total_tokens"] > 5
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    # The prompt was there the second time.
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_what_is_beside_texts(client):
    assert client.json("/v1/models")["data"][0]["id"] == "tiny"
    assert client.json("/v1/models/tiny")["max_model_len"] == LENGTH
    ids = client.json("/tokenize", {"prompt": "to be"})["tokens"]
    assert client.json("/detokenize", {"tokens": ids})["prompt"] == "to be"
    info = client.json("/tokenizer_info")
    assert (info["eos_token"], info["chat_template"]) == ("<eos>", TEMPLATE)
    assert client.ask("/health")[0] == 200
    # A page that loads nothing from anywhere else.
    status, page = client.ask("/")
    assert status == 200 and "<title>Graft" in page and "://" not in page
    assert "graft_written_tokens" in client.ask("/metrics")[1]


def test_vectors_of_texts_are_the_mean_of_their_states(client):
    answer = client.json("/v1/embeddings", {"input": ["to be", "to be or not to be"]})
    packed = client.json("/v1/embeddings", {"input": "to be", "encoding_format": "base64"})
    first, second = (np.array(one["embedding"]) for one in answer["data"])
    ids = client.engine.prompt_ids(Request("to be"))
    batch = {"inputs": [ids], "positions": [range(len(ids))], "segments": [[1] * len(ids)]}
    hidden_1TD, _ = client.model.hidden(client.params, jax.tree.map(np.array, batch, is_leaf=_rows))
    mean_D = np.asarray(hidden_1TD[0]).mean(axis=0)
    # Sums in the order of the layout for decoding.
    np.testing.assert_allclose(first, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    spelt = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(spelt, first.astype(np.float32))
    assert abs(np.linalg.norm(second) - 1) < 1e-5 and answer["usage"]["total_tokens"] > len(ids)


def _rows(node):
    return isinstance(node, list)


def test_what_can_be_asked_for_is_described(client):
    described = client.json("/openapi.json")
    served = {route.path for route in client.server.config.app.routes}
    assert set(described["paths"]) <= served and described["openapi"] == "3.1.0"
    asked = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    fields = asked["application/json"]["schema"]["properties"]
    check_names(dict.fromkeys(fields), CHAT_FIELDS, ())


def test_a_text_has_the_form_that_is_asked_for(client):
    pytest.importorskip("llguidance", reason="pip install 'graft-research[serve]'")
    schema = {"type": "object", "properties": {"to": {"enum": ["be", "or"]}}, "required": ["to"]}
    form = {"type": "json_schema", "json_schema": {"name": "to", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": "to be"}], "max_completion_tokens": 24}
    [choice] = client.json("/v1/chat/completions", {**body, "response_format": form})["choices"]
    assert json.loads(choice["message"]["content"].removesuffix("<eos>"))["to"] in ("be", "or")
    [choice] = client.json("/v1/completions", {**GREEDY, "regex": "(be|or)"})["choices"]
    assert (choice["text"].removesuffix("<eos>"), choice["finish_reason"]) in (
        ("be", "stop"),
        ("or", "stop"),
    )


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        (COMPLETIONS, {**GREEDY, "temperature": 2.1}, 400, "in [0, 2]"),
        (COMPLETIONS, {**GREEDY, "temperature": -1}, 400, "in [0, 2]"),
        (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400, "in [0, 2]"),
        (COMPLETIONS, {**GREEDY, "max_tokens": 0}, 400, "at least 1"),
        (COMPLETIONS, {**GREEDY, "max_tokens": "6"}, 400, "type integer"),
        (COMPLETIONS, {**GREEDY, "prompt": "to " * 200}, 400, "at most 64"),
        (COMPLETIONS, {**GREEDY, "prompt": [10**6]}, 400, "ids in"),
        (COMPLETIONS, {**GREEDY, "prompt": {"a": 1}}, 400, "prompt must be"),
        (COMPLETIONS, {**GREEDY, "prompt": "\ud800"}, 400, "lone surrogate"),
        (COMPLETIONS, {**GREEDY, "prompt": ["a"] * 100, "n": 2}, 400, "128 texts"),
        (COMPLETIONS, {**GREEDY, "model": "other"}, 404, "'tiny'"),
        (COMPLETIONS, {**GREEDY, "temprature": 1}, 400, "'temperature'"),
        (COMPLETIONS, {**GREEDY, "suffix": "not"}, 400, "not served"),
        (COMPLETIONS, {**GREEDY, "logit_bias": {"to": 1}}, 400, "ids in [0, "),
        (COMPLETIONS, {**GREEDY, "logit_bias": {"5": 101}}, 400, "in [-100, 100]"),
        (COMPLETIONS, {**GREEDY, "presence_penalty": 2.1}, 400, "in [-2, 2]"),
        (COMPLETIONS, {**GREEDY, "n": 3, "best_of": 2}, 400, "at least n=3"),
        (COMPLETIONS, {**GREEDY, "best_of": 2, "stream": True}, 400, "cannot be streamed"),
        (COMPLETIONS, {**GREEDY, "stop": [""]}, 400, "none of them empty"),
        (COMPLETIONS, {**GREEDY, "top_k": 10**12}, 400, "top_k"),
        (COMPLETIONS, {**GREEDY, "response_format": {"type": "xml"}}, 400, "json_schema"),
        (COMPLETIONS, {**GREEDY, "response_format": {"type": "json_schema"}}, 400, "a schema"),
        (COMPLETIONS, {**GREEDY, "regex": "a", "grammar": "b"}, 400, "one of them"),
        (COMPLETIONS, {**GREEDY, "regex": "(" * 300_000}, 400, "a shorter one"),
        (COMPLETIONS, b"{", 400, "no JSON"),
        (COMPLETIONS, b"[" * 100_000, 400, "no JSON"),
        (COMPLETIONS, b"[]", 400, "JSON object"),
        (COMPLETIONS, b"\xff", 400, "no JSON"),
        (COMPLETIONS, b" " * (17 * 2**20), 413, "send less"),
        (COMPLETIONS, None, 405, "GET"),
        (CHAT, {"messages": "hi"}, 400, "messages must be"),
        (CHAT, {"messages": []}, 400, "end in an answer"),
        (CHAT, {"messages": [{"role": 1}]}, 400, "no message"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 1}, 400, "=true"),
        ("/v1/embeddings", {"input": []}, 400, "input must be"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, 400, "leave out"),
        ("/v1/embeddings", {"input": "a", "model": "b"}, 404, "'tiny'"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": [1]}, 400, "tools must"),
        ("/detokenize", {"tokens": [-1]}, 400, "ids in"),
        ("/nowhere", {}, 404, "/nowhere"),
    ],
)
def test_bad_input_is_refused_in_openais_form(client, path, body, status, said):
    got, text = client.ask(path, body)
    error = json.loads(text)["error"]
    assert (got, error["type"]) == (status, "invalid_request_error") and said in error["message"]
    assert client.worker.failed is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_leaves_nothing(client, stream):
    body = {"prompt": "to be", "max_tokens": 60, "ignore": 0, "n": 2, "stream": stream}
    del body["ignore"]
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", client.port)) as link:
            link.sendall(head.encode() + content)
            time.sleep(0.02)
    until(lambda: client.engine.running == client.engine.waiting == client.engine.pages.held == 0)
    # And who is beside it gets the same as ever.
    assert client.json("/v1/completions", GREEDY)["choices"][0]["text"]


@pytest.mark.slow
def test_nothing_is_left_of_clients_that_come_and_go_at_once(client):
    url = f"http://127.0.0.1:{client.port}"
    seen = soak.run(url, clients=6, seconds=4)
    left = soak.settled(url)
    assert [left[f"graft_{name}"] for name in ("running", "waiting", "pages_held")] == [0, 0, 0]
    assert seen.failed == 0 and not seen.errors and client.worker.failed is None
    assert len(seen.texts) <= 1  # 0 on a machine that is too busy
    assert {status for (kind, status), _ in seen.statuses.items() if kind == "broken"} <= {400, 404}


def test_too_many_that_wait_are_refused(client):
    status, text = client.ask("/v1/completions", {**GREEDY, "n": 100})
    assert status == 429 and "try again" in json.loads(text)["error"]["message"]


def test_a_token_is_wanted_where_one_is_set():
    # Says no before anything is computed.
    client = Client(token="secret")
    assert client.ask("/v1/models")[0] == 401
    assert client.ask("/v1/models", authorization="Bearer secret")[0] == 200
    assert client.ask("/health")[0] == 200
    client.server.should_exit = True


def test_what_is_half_written_when_the_time_is_over_ends_there(monkeypatch):
    written = Client()
    whole = written.json(COMPLETIONS, {**GREEDY, "max_tokens": 40, "n": 2})["choices"][0]["text"]
    written.server.should_exit = True
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: time.sleep(0.02) or step(self))
    client = Client(drain=0.3)
    answers = []
    # The third and fourth wait for the first two, of which there are two rows.
    body = {**GREEDY, "max_tokens": 40, "n": 4, "logprobs": 1}
    asking = threading.Thread(target=lambda: answers.append(client.ask(COMPLETIONS, body)))
    asking.start()
    until(lambda: client.engine.counts.written > 2)
    client.server.should_exit = True
    asking.join(20)
    client.thread.join(20)
    [(status, text)] = answers
    choices = json.loads(text)["choices"]
    assert status == 200 and {one["finish_reason"] for one in choices} == {"abort"}
    parts = [one["text"] for one in choices]
    assert parts[0] and whole.startswith(parts[0]) and parts[0] != whole and parts[3] == ""


def test_what_is_not_written_in_time_is_told_when_the_server_stops(monkeypatch):
    monkeypatch.setattr(Engine, "step", lambda self: time.sleep(0.05) or [])
    client = Client(drain=0.3)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.ask(COMPLETIONS, GREEDY)))
    asking.start()
    until(lambda: client.engine.waiting)
    client.server.should_exit = True
    asking.join(20)
    [(status, text)] = answers
    assert status == 503 and "shutting down" in json.loads(text)["error"]["message"]
    client.thread.join(20)
    assert not client.thread.is_alive()
