"""Models by their names on the hub, served by a loopback server that speaks the hub's paths."""

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.downloads.hub import hub_path, pinned
from research.interop.convert import convert
from research.interop.inspection import inspect
from research.interop.load import load, open_checkpoint
from research.run.loop import train
from research.run.opened import open_model
from research.run.pinned import pin_init
from tests.configs import experiment
from tests.interop import golden as tensors
from tests.interop.test_beside import source

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")
COMMIT, LATER = (hashlib.sha1(name).hexdigest() for name in (b"tiny", b"later"))
# Names that the server answers with an error, as the hub does.
REFUSED = {"org/gated": (403, "GatedRepo"), "org/down": (500, "")}


class Hub(BaseHTTPRequestHandler):
    """Answers for the models of `self.server.models`: {name: {file: bytes}}."""

    commit = COMMIT

    def do_GET(self):
        words = self.path.partition("?")[0].strip("/").split("/")
        api = words[:2] == ["api", "models"]
        name = "/".join(words[2:4] if api else words[:2])
        files = self.server.models.get(name)
        if files is None:
            return self.send(*REFUSED.get(name, (404, "RepoNotFound")))
        rest = words[4:] if api else words[2:]
        commits = self.server.commits
        revision = rest[1] if rest else "main"
        if revision not in ("main", *commits):
            return self.send(404, "RevisionNotFound")
        self.commit = commits[-1] if revision == "main" else revision
        if not api:
            self.server.fetched.append("/".join(rest[2:]))
            return self.send(200, body=files["/".join(rest[2:])])
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": n, "size": len(b), "oid": "0"} for n, b in files.items()
            ]
            return self.send(200, body=json.dumps(entries).encode())
        listed = {"id": name, "sha": self.commit, "siblings": [{"rfilename": n} for n in files]}
        return self.send(200, body=json.dumps(listed).encode())

    do_HEAD = do_GET

    def send(self, status, code="", body=b""):
        self.send_response(status)
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        headers |= {"Content-Length": str(len(body))} | ({"X-Error-Code": code} if code else {})
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return source(tmp_path_factory.mktemp("model") / "a")


@pytest.fixture
def server(tmp_path, monkeypatch, model):
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    unread = ("README.md", "model.fp16.safetensors", "pytorch_model.bin", "onnx/config.json")
    served = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    served.fetched, served.commits = [], [COMMIT]
    served.models = {
        "org/tiny": files | dict.fromkeys(unread, b"x"),
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"},
        "org/ggufs": {"a-Q4.gguf": b"x", "a-Q8.gguf": b"x"},
    }
    thread = threading.Thread(
        target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    hub.close_session()
    yield served
    hub.close_session()
    served.shutdown()
    thread.join()
    served.server_close()


def test_only_what_is_needed_is_fetched_and_once(server, model):
    path = hub_path("hf:org/tiny")
    assert sorted(set(server.fetched)) == sorted(file.name for file in model.iterdir())
    server.fetched.clear()
    assert hub_path(f"hf:org/tiny@{COMMIT}") == path and not server.fetched
    with open_checkpoint("hf:org/tiny@main") as theirs, open_checkpoint(model) as ours:
        assert theirs.config == ours.config and theirs.source == path


def test_a_tokenizer_comes_without_the_weights(server, model):
    assert load_tokenizer("hf:org/tiny").fingerprint == load_tokenizer(model).fingerprint
    assert server.fetched and not [n for n in server.fetched if n.endswith(".safetensors")]


def test_the_certificate_has_the_commit(server, tmp_path):
    certificate = convert("hf:org/tiny", tmp_path / "b", "hf")
    assert certificate["source"]["hub"] == f"hf:org/tiny@{COMMIT}"
    assert inspect(tmp_path / "b")["certificate"] == f"hf:org/tiny@{COMMIT}"
    assert pinned(tmp_path) == ""


def test_what_is_in_the_cache_needs_no_network(server, monkeypatch):
    path = hub_path("hf:org/tiny")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    hub.close_session()
    assert hub_path("hf:org/tiny") == hub_path(f"hf:org/tiny@{COMMIT}") == path
    with pytest.raises(ValueError, match="hf:org/other is not in the cache .* HF_HUB_OFFLINE"):
        hub_path("hf:org/other")


def test_one_of_several_files_is_named(server):
    path = hub_path("hf:org/ggufs/a-Q8.gguf")
    assert path.name == "a-Q8.gguf" and set(server.fetched) == {"a-Q8.gguf"}
    assert pinned(path) == f"hf:org/ggufs/a-Q8.gguf@{COMMIT}"


@pytest.mark.parametrize(
    ("spelling", "says"),
    [
        ("hf:org/nothing", "is not on http://127.0.0.1.*, or is private.*hf auth login"),
        ("hf:org/gated", "is gated: accept its terms at .*/org/gated, then run hf auth login"),
        ("hf:org/tiny@v9", "no such revision; they are listed at .*/org/tiny/commits"),
        ("hf:org/down", "answered .*500.*; try again later"),
        ("hf:org/pickled", "no safetensors; it has pytorch_model.bin, and pickled"),
        ("hf:org/ggufs", "add one of its GGUF files to the name: a-Q4.gguf, a-Q8.gguf"),
        ("hf:org/ggufs/b.gguf", "is not there; add one of its GGUF files"),
        ("hf:tiny", "wanted hf:ORG/NAME"),
        ("org/tiny", "no path here; if it is a model of the Hugging Face hub, write hf:org/tiny"),
    ],
)
def test_what_cannot_be_had_is_one_line(server, monkeypatch, spelling, says):
    # The package waits and asks again where the hub is down.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=says) as error:
        open_checkpoint(spelling)
    assert "\n" not in str(error.value)


def test_shards_with_an_index_go_before_one_file(server, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    path = Path(tensors.write("llama_sharded", folder))
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    server.models["org/shards"] = files | {"model.safetensors": b"x"}
    with open_checkpoint("hf:org/shards") as checkpoint:
        assert checkpoint.parameters and "model.safetensors" not in server.fetched


@pytest.mark.slow
def test_a_run_keeps_the_commit_that_it_started_from(server, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"abc abc abc {n}"}) for n in range(60)))
    arg = f"method=lora,task=causal_lm,data={data},smoke"
    fields = {"train.steps": 1, "checkpoint.every": 1, "train.eval_every": 0}
    fields |= {"data.sequence_length": 16, "data.batch_size": 8, "train.sample_every": 0}
    fields |= {"model.vocab_size": 272}  # the model is smaller than its tokenizer

    def run(steps):
        changed = {**fields, "train.steps": steps}
        train(experiment("finetune", arg, init="hf:org/tiny", **changed), tmp_path / "run")
        return json.loads((tmp_path / "run/config.json").read_text())["init"]

    assert run(1) == f"hf:org/tiny@{COMMIT}"
    # The page has another model now: a resume does not read it, a new run does.
    server.commits.append(LATER)
    assert run(2) == f"hf:org/tiny@{COMMIT}"
    base = open_model(tmp_path / "run").params["embed"]["table"]
    np.testing.assert_array_equal(base[:96], load("hf:org/tiny").params["embed"]["table"])
    assert pinned(hub_path("hf:org/tiny")) == f"hf:org/tiny@{LATER}"


def test_a_commit_that_is_spelt_out_stays(server, tmp_path):
    e = experiment("finetune", "smoke", init=f"hf:org/tiny@{COMMIT}")
    assert pin_init(e, tmp_path) == (e, [])
    new, [line] = pin_init(replace(e, init="hf:org/tiny@main"), tmp_path)
    assert new == e and line == f"config.init=hf:org/tiny@main is {e.init}, for resumes too"
