"""llama.cpp behind the endpoints that `research.bench serve` asks:
python -m research.bench.llama_server FILE.gguf [STREAMS]

The texts that run are decoded in one call, with the prompts of those that have just come, as
llama.cpp's own server does it. Completions are greedy and streamed.
"""

import ctypes
import json
import os
import queue
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

SLOTS = 512  # tokens of a text
BATCH = 512  # tokens of a call


@dataclass
class Job:
    """A text: the tokens that are to be read, its position, how many tokens may still come, and the
    pieces of its text, None at its end."""

    ids: list[int]
    left: int
    position: int = 0
    pieces: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)


class Llama:
    """A model of llama.cpp that writes several texts at once, in a thread of its own."""

    def __init__(self, path: str, streams: int):
        import llama_cpp as lib

        self.lib, self.streams = lib, streams
        lib.llama_backend_init()
        self._silent = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._silent, None)
        model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp cannot load {path}; give a GGUF file")
        self.vocab = lib.llama_model_get_vocab(model)
        self.words = lib.llama_vocab_n_tokens(self.vocab)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = streams * SLOTS, streams
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = os.cpu_count()
        self.ctx = lib.llama_init_from_model(model, params)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        raw, room = text.encode(), len(text) + 8
        found = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), found, room, True, True)
        return list(found[:count])

    def text(self, token: int) -> bytes:
        """The bytes of a token."""
        buffer = (ctypes.c_char * 256)()
        size = self.lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        return bytes(buffer[:size])

    def _run(self) -> None:
        running: dict[int, Job] = {}
        while True:
            while len(running) < self.streams and (not running or not self.jobs.empty()):
                slot = next(n for n in range(self.streams) if n not in running)
                running[slot] = self.jobs.get()
            for slot in self._step(running):
                running.pop(slot).pieces.put(None)
                self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.ctx), slot, -1, -1)

    def _step(self, running: dict[int, Job]) -> list[int]:
        """Reads what each text has to read, as far as the call has room, and draws a token of each
        that has come to its end; the slots of those that have ended."""
        batch, last, used = self.batch, {}, 0
        # Texts that go on first, which have one token each.
        for slot, job in sorted(running.items(), key=lambda item: len(item[1].ids)):
            here = job.ids[: BATCH - used]
            for at, token in enumerate(here, used):
                batch.token[at], batch.pos[at] = token, job.position + at - used
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, slot, False
            used, job.position = used + len(here), job.position + len(here)
            del job.ids[: len(here)]
            if not job.ids and here:
                batch.logits[used - 1], last[slot] = True, used - 1
        batch.n_tokens = used
        if self.lib.llama_decode(self.ctx, batch):
            raise RuntimeError("llama_decode failed")
        return [slot for slot, at in last.items() if self._write(running[slot], at)]

    def _write(self, job: Job, at: int) -> bool:
        """Draws a text's next token; whether it was the last."""
        logits = self.lib.llama_get_logits_ith(self.ctx, at)
        token = int(np.ctypeslib.as_array(logits, shape=(self.words,)).argmax())
        job.ids, job.left = [token], job.left - 1
        ended = self.lib.llama_vocab_is_eog(self.vocab, token)
        if not ended:
            job.pieces.put(self.text(token))
        return ended or job.left == 0


def make_handler(llama: Llama) -> type[BaseHTTPRequestHandler]:
    """The endpoints."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            """The list of models."""
            self._begin("application/json")
            self.wfile.write(json.dumps({"data": [{"id": "llama.cpp"}]}).encode())

        def do_POST(self) -> None:
            """A completion, streamed."""
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = llama.ids(asked["prompt"])
            read, written = len(ids), 0
            job = Job(ids, min(asked["max_tokens"], SLOTS - read))
            llama.jobs.put(job)
            self._begin("text/event-stream")
            while (piece := job.pieces.get()) is not None:
                written += 1
                self._event({"choices": [{"text": piece.decode(errors="replace")}]})
            usage = {"prompt_tokens": read, "completion_tokens": written}
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _begin(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    return Handler


def main() -> None:
    """Serves the file that the first argument names."""
    streams = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(Llama(sys.argv[1], streams)))
    print(f"listening on http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
