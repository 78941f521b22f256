"""Vectors of texts, /v1/embeddings: the mean of a decoder's last states over the text's tokens,
scaled to length 1. They are computed beside the engine's steps, a text at a time."""

import base64
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.infer.sentences import SentenceSettings, pooled
from research.models.config import Execution
from research.serve.asked import Served, check_model_name, prompts_of
from research.serve.engine import Engine
from research.serve.refusal import Refused, check_names, field
from research.serve.request import Request
from research.tuning.adapter_bank import select

TEXTS = 256  # most texts of one request
_LEAST = 32  # tokens that texts are padded to, or twice as many, and so on
_FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}
_SETTINGS = SentenceSettings()


class Embeddings:
    """Answers with vectors, of an engine's model or one of its adapters."""

    def __init__(self, engine: Engine, served: Served):
        self._engine, self._served = engine, served
        self._lock = threading.Lock()  # one at a time beside the engine

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; takes as long as its texts. `Refused` for what is wrong, and
        ValueError for a text that is too long."""
        name = check_model_name(body, self._served)
        check_names(body, _FIELDS, ())
        form = field(body, "encoding_format", "string", "float")
        if form not in ("float", "base64"):
            raise Refused("encoding_format must be float or base64", param="encoding_format")
        size = self._engine.model.config.d_model
        if field(body, "dimensions", "integer", size, 1) != size:
            raise Refused(
                f"the vectors have {size} numbers; leave out dimensions", param="dimensions"
            )
        given = prompts_of(body.get("input"), "input")
        if len(given) > TEXTS:
            raise Refused(f"{len(given)} texts are over {TEXTS}; send several", param="input")
        adapter = name if name != self._served.name else ""
        texts = [self._engine.prompt_ids(Request(one)) for one in given]
        with self._lock:
            vectors = [self._vector(ids, adapter) for ids in texts]
        count = sum(map(len, texts))
        return {
            "object": "list",
            "model": name,
            "data": [
                {"object": "embedding", "index": index, "embedding": _spelt(vector_D, form)}
                for index, vector_D in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def _vector(self, ids: Sequence[int], adapter: str) -> np.ndarray:
        runner, length = self._engine.runner, _LEAST
        while length < len(ids):
            length *= 2
        tokens_BT = np.zeros((1, min(length, self._engine.length)), np.int32)
        kept_BT = np.zeros_like(tokens_BT)
        tokens_BT[0, : len(ids)], kept_BT[0, : len(ids)] = ids, 1
        params = select(runner.params, jnp.array([runner.adapter(adapter)]))
        # Layers may be a tuple, see `research.serve.step.step`.
        model = replace(runner.model, execution=replace(Execution(), unroll=0))
        return np.asarray(pooled(params, tokens_BT, kept_BT, model=model, settings=_SETTINGS))[0]


def _spelt(vector_D: np.ndarray, form: str) -> list[float] | str:
    if form == "float":
        return vector_D.tolist()
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
