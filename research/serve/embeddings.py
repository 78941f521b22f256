"""Vectors of texts, /v1/embeddings: those of an encoder, or the mean of a decoder's last states
over the text's tokens, scaled to length 1. They are computed beside the engine's steps, a text at a
time."""

import base64
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from research.infer.prompts import Prompt
from research.infer.sentences import SentenceSettings, pooled
from research.models.config import Execution
from research.models.model import Model
from research.serve.asked import Served, check_model_name, prompts_of
from research.serve.encoder import Encoder, padded
from research.serve.engine import Engine
from research.serve.refusal import Refused, check_names, field
from research.serve.request import Request
from research.tuning.adapter_bank import select

TEXTS = 256  # most texts of one request
_FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}
_SETTINGS = SentenceSettings()


class Vectors(Protocol):
    """What has a vector of a text: an `Encoder`, or a decoder in an engine."""

    @property
    def model(self) -> Model: ...

    def ids(self, text: Prompt) -> list[int]: ...

    def vector(self, ids: Sequence[int], adapter: str = "") -> np.ndarray: ...


class Decoder:
    """The vectors of an engine's model, or of one of its adapters."""

    def __init__(self, engine: Engine):
        self._engine, self.model = engine, engine.model

    def ids(self, text: Prompt) -> list[int]:
        """The tokens of a text. ValueError for a text that is too long."""
        return self._engine.prompt_ids(Request(text))

    def vector(self, ids: Sequence[int], adapter: str = "") -> np.ndarray:
        """The vector of a text with these tokens, float32 [D]."""
        runner = self._engine.runner
        tokens_BT, kept_BT = padded(ids, self._engine.length)
        params = select(runner.params, jnp.array([runner.adapter(adapter)]))
        # Layers may be a tuple, see `research.serve.step.step`.
        model = replace(runner.model, execution=replace(Execution(), unroll=0))
        return np.asarray(pooled(params, tokens_BT, kept_BT, model=model, settings=_SETTINGS))[0]


class Embeddings:
    """Answers with the vectors of what is served."""

    def __init__(self, engine: Engine | Encoder, served: Served):
        self._served = served
        self._vectors: Vectors = engine if isinstance(engine, Encoder) else Decoder(engine)
        self._lock = threading.Lock()  # one at a time beside the engine

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; takes as long as its texts. `Refused` for what is wrong, and
        ValueError for a text that is too long."""
        name = check_model_name(body, self._served)
        check_names(body, _FIELDS, ())
        form = field(body, "encoding_format", "string", "float")
        if form not in ("float", "base64"):
            raise Refused("encoding_format must be float or base64", param="encoding_format")
        size = self._vectors.model.config.d_model
        if field(body, "dimensions", "integer", size, 1) != size:
            raise Refused(
                f"the vectors have {size} numbers; leave out dimensions", param="dimensions"
            )
        given = prompts_of(body.get("input"), "input")
        if len(given) > TEXTS:
            raise Refused(f"{len(given)} texts are over {TEXTS}; send several", param="input")
        adapter = name if name != self._served.name else ""
        texts = [self._vectors.ids(one) for one in given]
        with self._lock:
            vectors = [self._vectors.vector(ids, adapter) for ids in texts]
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


def _spelt(vector_D: np.ndarray, form: str) -> list[float] | str:
    if form == "float":
        return vector_D.tolist()
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
