"""An encoder behind a server: vectors as `research.embed` has them, and nothing else."""

import http.client
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from research.data.tokenizers import train_tokenizer
from research.infer.sentences import SentenceSettings, embed
from research.models.model import Model
from research.serve.encoder import Encoder
from tests.families import FAMILIES
from tests.interop.memory import random_params

pytest.importorskip("starlette", reason="pip install 'graft-research[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")

from research.serve.asked import Served
from research.serve.worker import Worker
from tests.serve.test_server import Client

SETTINGS = SentenceSettings(pooling="cls", max_tokens=32)
TEXTS = ["to be", "or not to be, that is the question"]


@pytest.fixture(scope="module")
def client():
    tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    c = replace(FAMILIES["bert_base"], vocab_size=tokenizer.vocab_size)
    encoder = Encoder(Model(c), random_params(c), tokenizer, SETTINGS)
    made = Client.of(Worker(encoder), Served("bert", tokenizer, encoder.length))
    yield made
    made.server.should_exit = True
    made.thread.join(20)


def test_vectors_are_those_of_the_command(client):
    answer = client.json("/v1/embeddings", {"input": TEXTS})
    got = np.array([one["embedding"] for one in answer["data"]])
    encoder = client.engine
    want = embed(encoder.model, encoder.params, encoder.tokenizer, TEXTS, SETTINGS)
    # Sums of the same float32 products in another order.
    np.testing.assert_allclose(got, want, atol=1e-5)
    by_ids = client.json("/v1/embeddings", {"input": encoder.ids(TEXTS[0])})
    np.testing.assert_array_equal(by_ids["data"][0]["embedding"], got[0])


@pytest.mark.parametrize(
    "path, body, said",
    [
        ("/v1/completions", {"prompt": "to be"}, "ask /v1/embeddings"),
        ("/v1/completions", {"prompt": "to be", "stream": True}, "ask /v1/embeddings"),
        ("/v1/embeddings", {"input": "to be " * 40}, "reads at most 32"),
        ("/v1/embeddings", {"input": [10**6]}, "the model's vocabulary"),
    ],
)
def test_what_an_encoder_does_not_do_is_refused(client, path, body, said):
    status, text = client.ask(path, body)
    assert status == 400 and said in json.loads(text)["error"]["message"]


STUCK = """
import time
from types import SimpleNamespace
from research.data.tokenizers import load_tokenizer
from research.infer.sentences import SentenceSettings
from research.models.image_config import ImageConfig
from research.models.sound_config import SoundConfig
from research.serve.asked import Served
from research.serve.encoder import Encoder
from research.serve.server import make_server, run
from research.serve.worker import Worker

media = {"image": ImageConfig(), "sound": SoundConfig()}
config = SimpleNamespace(max_length=64, d_model=4, vocab_size=400, **media)
encoder = Encoder(SimpleNamespace(config=config), {}, load_tokenizer("bytes"), SentenceSettings())
encoder.vector = encoder.step = lambda *_: time.sleep(60)  # as long as a large program's compiler
worker = Worker(encoder)
run(make_server(worker, Served("stuck", encoder.tokenizer, 64), drain=1.0), worker)
"""


@pytest.mark.slow
def test_a_server_whose_threads_do_not_end_ends_in_time():
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STUCK], **piped) as server:
        link = http.client.HTTPConnection(
            "127.0.0.1", int(server.stdout.readline().rsplit(":", 1)[1])
        )
        try:
            link.request("POST", "/v1/embeddings", json.dumps({"input": "to be"}))
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            # Of the 60 seconds, on a busy machine.
            assert server.wait(20) == 0 and "end of --drain" in server.stderr.read()
        finally:
            link.close()
            server.kill()


def test_what_is_beside_vectors(client):
    assert client.ask("/health")[0] == 200 and client.ask("/metrics")[0] == 200
    assert client.json("/v1/models")["data"][0]["id"] == "bert"
