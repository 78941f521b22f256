"""A contender's process: python -m research.bench.decode_contender graft, engine, transformers,
llama_cpp:FILE or read:LIBRARY.

It answers a batch size with the seconds of one greedy continuation of that many prompts, "peak"
with its peak memory.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from research.bench.decode import NEW, PRESET, PROMPT
from research.models.presets import PRESETS

READ_BYTES = 1 << 29  # far more than caches hold

Run = Callable[[int], dict[str, float]]


def main() -> None:
    """Prepares the work that the argument names and does it when asked."""
    # Unix only, and not needed to import this module.
    import resource

    kind, _, rest = sys.argv[1].partition(":")
    if kind == "read":
        run = jax_read() if rest == "jax" else torch_read()
    elif kind == "llama_cpp":
        run = llama_cpp(rest)
    else:
        run = {"graft": graft, "engine": engine, "transformers": transformers}[kind]()
    # Standard output carries one JSON line for each question, so nothing else may print there.
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        # ru_maxrss is in KiB on Linux.
        peak = {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps(peak if line.strip() == "peak" else run(int(line))), flush=True)


def prompts(batch: int) -> np.ndarray:
    """Fixed random ids [B, T]."""
    return np.random.default_rng(0).integers(0, PRESETS[PRESET].vocab_size, (batch, PROMPT))


def _ours() -> tuple[Any, Any]:
    """The model and random weights: the time of a step does not depend on them."""
    import jax

    from research.models.model import Model
    from research.models.spec import initialize

    model = Model(PRESETS[PRESET])
    return model, jax.jit(lambda: initialize(jax.random.key(0), model.specs(), "float32"))()


def graft() -> Run:
    """Ours as `infer.decode` runs it; laying out the weights is timed apart."""
    import jax

    from research.infer import steps
    from research.infer.decode_layout import prepare
    from research.infer.sampling import SamplingConfig

    model, params = _ours()
    sampling = SamplingConfig(temperature=0).distribution
    # Ids of -1 never occur, so no row stops before all tokens are written.
    stop_ids = np.full(8, -1, np.int32)

    def _run(batch: int) -> dict[str, float]:
        times = [time.perf_counter()]
        # Generation lays out the weights anew for each call, so each turn does it too.
        prepared = jax.block_until_ready(prepare(model, params))
        times.append(time.perf_counter())
        streams = [(row, 0) for row in range(batch)]
        start = steps.Start(prompts(batch).tolist(), None, [NEW] * batch, streams, 0)
        # The first token comes with the prompt: this is the prefill.
        state, *written = steps.begin(model, params, prepared, start, sampling, stop_ids)
        # Fetching the tokens is part of generation, and waits until they are there.
        jax.device_get(written)
        times.append(time.perf_counter())
        for first in range(1, NEW, steps.TOKENS):
            # A NumPy number is traced: a Python one would compile anew for each count.
            count = np.int32(min(steps.TOKENS, NEW - first))
            # As many tokens a call as generation itself asks for.
            state, *written = steps.advance(
                prepared,
                state,
                np.ones(batch, bool),
                count,
                stop_ids,
                model=model,
                sampling=sampling,
            )
            jax.device_get(written)
        times.append(time.perf_counter())
        return dict(
            zip(("prepare_seconds", "prefill_seconds", "decode_seconds"), np.diff(times).tolist())
        )

    return _run


def engine() -> Run:
    """Ours as `serve.batch` runs it: prompts are read together as far as a step has room, and each
    token that follows is a call."""
    from types import SimpleNamespace

    from research.infer.padding import chunk_size
    from research.infer.sampling import SamplingConfig
    from research.serve.engine import Engine
    from research.serve.request import Request

    model, params = _ours()
    # Ids alone are timed, as of the others.
    tokenizer: Any = SimpleNamespace(decode=lambda ids: "", eos_id=None, bos_id=None)
    config = SamplingConfig(temperature=0, max_tokens=NEW)

    def _run(batch: int) -> dict[str, float]:
        times = [time.perf_counter()]
        # Whole pages of 16 tokens; as in the other a copy of the weights in each turn.
        sizes = {"pages": batch * (PROMPT + NEW) // 16, "rows": batch, "length": PROMPT + NEW}
        served = Engine(model, params, tokenizer, chunk=chunk_size(PROMPT), few=True, **sizes)
        times.append(time.perf_counter())
        texts = [served.submit(Request(ids, config)) for ids in prompts(batch).tolist()]
        while not all(text.token_ids for text in texts):
            served.step()
        times.append(time.perf_counter())
        left = sum(text.left for text in texts)
        while not all(text.finish for text in texts):
            served.step()
        times.append(time.perf_counter())
        prepare, prefill, decode = np.diff(times).tolist()
        # Some wrote already while others were read: what they wrote then counts as if it were now.
        decode *= batch * (NEW - 1) / left
        return {"prepare_seconds": prepare, "prefill_seconds": prefill, "decode_seconds": decode}

    return _run


def transformers() -> Run:
    """The Hugging Face model of the same shape on torch, eager, with its growing cache."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c = PRESETS[PRESET]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=c.max_length,
            tie_word_embeddings=c.tied,
            rope_theta=c.rope_theta,
        )
    ).eval()

    @torch.inference_mode()
    def _run(batch: int) -> dict[str, float]:
        def _step(ids, cache):
            # Logits of the last position alone, which is what its own generation asks for.
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values

        times = [time.perf_counter()]
        ids, cache = _step(torch.from_numpy(prompts(batch)), None)
        times.append(time.perf_counter())
        for _ in range(NEW - 1):
            ids, cache = _step(ids, cache)
        times.append(time.perf_counter())
        return dict(zip(("prefill_seconds", "decode_seconds"), np.diff(times).tolist()))

    return _run


def llama_cpp(path: str) -> Run:
    """llama.cpp on a GGUF file, a sequence for each prompt and one decoding call for all of
    them."""
    import llama_cpp as lib

    lib.llama_backend_init()
    # It logs to standard error for each context, which would hide the progress of the turns.
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, None)
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        raise ValueError(f"llama.cpp cannot load {path}")
    words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    contexts = {}

    def _step(ctx, ids_BT: np.ndarray, position: int) -> np.ndarray:
        rows, width = ids_BT.shape
        batch = lib.llama_batch_init(rows * width, 0, 1)
        batch.n_tokens = rows * width
        for slot, (row, column) in enumerate(np.ndindex(rows, width)):
            # Ids are drawn from the preset's vocabulary, which the file's may fall short of.
            batch.token[slot], batch.pos[slot] = int(ids_BT[row, column]) % words, position + column
            batch.n_seq_id[slot], batch.seq_id[slot][0] = 1, row
            batch.logits[slot] = column == width - 1  # of the last position alone
        if lib.llama_decode(ctx, batch):
            raise RuntimeError("llama_decode failed")
        last = [lib.llama_get_logits_ith(ctx, row * width + width - 1) for row in range(rows)]
        ids = [[int(np.ctypeslib.as_array(logits, shape=(words,)).argmax())] for logits in last]
        lib.llama_batch_free(batch)
        return np.array(ids)

    def _run(batch: int) -> dict[str, float]:
        ctx = contexts[batch] = contexts.get(batch) or _llama_context(lib, model, batch)
        # A context is kept for each batch size, emptied of the turn before.
        lib.llama_memory_clear(lib.llama_get_memory(ctx), True)
        times = [time.perf_counter()]
        ids_BT = _step(ctx, prompts(batch), 0)
        times.append(time.perf_counter())
        for position in range(PROMPT, PROMPT + NEW - 1):
            ids_BT = _step(ctx, ids_BT, position)
        times.append(time.perf_counter())
        return dict(zip(("prefill_seconds", "decode_seconds"), np.diff(times).tolist()))

    _run.log = silent  # ctypes frees a callback that nobody holds, and the library calls it later
    return _run


def _llama_context(lib: Any, model: Any, batch: int) -> Any:
    """A context of llama.cpp for that many sequences, on all of the machine's cores."""
    params = lib.llama_context_default_params()
    # 256 slots a sequence hold the prompt's 64 tokens and the 128 that follow.
    params.n_ctx, params.n_seq_max = batch * 256, batch
    # The prompts of a batch of 8 in one call: 8 * 64 tokens.
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = os.cpu_count()
    return lib.llama_init_from_model(model, params)


def jax_read() -> Run:
    """The product of a large matrix and a vector by XLA."""
    import jax
    import jax.numpy as jnp

    # Rows of 1,024 float32 numbers, 4,096 bytes each: the vector stays in the cache, the matrix
    # cannot.
    w, x = jnp.ones((READ_BYTES // 4096, 1024), jnp.float32), jnp.ones((1024,), jnp.float32)
    product = jax.jit(jnp.matmul)
    return _timed(lambda: jax.block_until_ready(product(w, x)))


def torch_read() -> Run:
    """The sum of a large array by torch."""
    import torch

    x = torch.ones(READ_BYTES // 4)
    return _timed(lambda: x.sum())


def _timed(read: Callable) -> Run:
    """Seconds for each byte of four readings, whatever the batch."""

    def _run(_: int) -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(4):
            read()
        # Four readings, since one is short beside the clock and what else the machine does.
        return {"read_seconds": (time.perf_counter() - start) / 4 / READ_BYTES}

    return _run


if __name__ == "__main__":
    main()
