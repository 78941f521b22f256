"""Quantizing an opened checkpoint, and a receipt of what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import tree
from research.compress.calibration import calibrate, layer_errors, windows
from research.data.sources import open_source
from research.downloads.cache import cache_directory
from research.evals.receipt import compare, size_of
from research.interop.load import Loaded
from research.weights import rules
from research.weights.matrices import LINEAR
from research.weights.rounded_inputs import round_inputs


@dataclass(frozen=True)
class Settings:
    """What `research.quantize` is asked for; the fields are its flags."""

    checkpoint: str
    adapter: str
    method: str
    group: int | None
    embeddings: str
    activations: bool
    data: str
    tokens: int
    calibration_tokens: int
    window: int

    def window_of(self, loaded: Loaded) -> int:
        """Tokens seen at once, as many as the model can see at most."""
        return min(self.window, loaded.window)


@dataclass(frozen=True)
class Texts:
    """Token ids to measure on and, where the method wants them, to calibrate with."""

    source: str
    fingerprint: str
    heldout: np.ndarray
    calibration: np.ndarray | None


def read_texts(loaded: Loaded, settings: Settings) -> Texts:
    """The first tokens of the source's held-out documents, and of its others. ValueError for a
    checkpoint without tokenizer and for a source with too little text."""
    if loaded.tokenizer is None:
        raise ValueError(
            f"{settings.checkpoint} has no tokenizer; put its tokenizer.json into the folder"
        )
    # Errors are measured on held-out documents, and calibration sees only the others.
    source = open_source(settings.data, cache_directory())
    heldout = first_ids(
        loaded.tokenizer, source.heldout, settings.tokens + 1, f"--data={settings.data}"
    )
    calibration = None
    if settings.method != "rtn":
        count = settings.calibration_tokens
        calibration = first_ids(loaded.tokenizer, source.train, count, f"--data={settings.data}")
    return Texts(settings.data, source.fingerprint, heldout, calibration)


def quantize_loaded(loaded: Loaded, format: str, settings: Settings, texts: Texts | None) -> Any:
    """The model's parameters with the matrices of its layers in a format, without the adapter.

    ValueError for an adapter that adds what cannot be merged, and as the methods have them.
    """
    # Quantized is the base alone: the adapter goes on the result again, as QLoRA has it.
    specs, (params, _) = loaded.model.specs(), rules.detach(loaded.params)
    for path in sorted(tree.paths(params, rules.is_leaf).keys() ^ tree.paths(specs).keys()):
        raise ValueError(
            f"--adapter={settings.adapter} adds {path}, which is on no weight and cannot be merged "
            "into one"
        )
    if settings.embeddings:
        tables = [("(embed|head)/table", settings.embeddings), (".*", None)]
        params = rules.quantize(params, specs, tables)
    chosen = [(LINEAR, format), (".*", None)]
    if texts is None or texts.calibration is None:
        return rules.quantize(params, specs, chosen, settings.group)
    batches = windows(texts.calibration, settings.window_of(loaded), 4)
    return calibrate(loaded.model, params, chosen, batches, settings.method, settings.group)


def measure(
    loaded: Loaded, quantized: Mapping[str, Any], settings: Settings, texts: Texts
) -> dict[str, Any]:
    """The receipt, of JSON values: what the model loses in each format, and what merging the
    adapter changes."""
    model, window = loaded.model, settings.window_of(loaded)
    base, adapters = rules.detach(loaded.params)
    changed = {name: rules.attach(params, adapters) for name, params in quantized.items()}
    if settings.activations:
        changed = {name: round_inputs(params) for name, params in changed.items()}
    # Both sides in float32, so that differences are those of the quantization.
    score, compared = compare(model, loaded.params, changed, texts.heldout, window)
    heldout = windows(texts.heldout[:window], window, 1)
    errors = layer_errors(model, loaded.params, changed, heldout)
    results = {
        name: _result(compared[name], size_of(quantized[name], base), errors[name])
        for name in changed
    }
    # Serving may merge the adapter, which rounds it into the base's type.
    drift = {}
    if adapters:
        for name, params in {"float32": loaded.params, **changed}.items():
            drift[name] = _merge_drift(model, params, texts.heldout[: 2 * window + 1], window)
    return {
        "checkpoint": settings.checkpoint,
        "adapter": settings.adapter,
        "method": settings.method,
        "group": settings.group,
        "embeddings": settings.embeddings,
        "activations": settings.activations,
        "text": {
            "source": texts.source,
            "fingerprint": texts.fingerprint,
            "tokens": score.tokens,
            "window": window,
        },
        "original": {
            "dtype": "float32",
            "perplexity": score.perplexity,
            "nats": score.nll_per_token,
        },
        "results": results,
        "merge_drift": drift,
    }


def first_ids(tokenizer: Any, documents: Any, count: int, source: str) -> np.ndarray:
    """The first `count` ids of documents, each begun by the token that begins or ends a text.
    ValueError, with the `source` as it was asked for, where it has too few."""
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids: list[int] = []
    for index in range(len(documents)):
        # A token has fewer characters than this; the rest of a long document need not be split.
        ids += [first, *tokenizer.encode(documents[index]["text"][: 16 * count])]
        if len(ids) >= count:
            return np.array(ids[:count], np.int32)
    raise ValueError(
        f"{source} has {len(ids)} tokens, wanted {count}; give more text or ask for fewer"
    )


def _result(compared: Any, size: Any, errors_L: np.ndarray) -> dict[str, Any]:
    return {
        "bits": size.linear,
        "bits_whole": size.whole,
        "perplexity": compared.score.perplexity,
        "nats": compared.score.nll_per_token,
        "mean_kl": compared.mean_kl,
        "kl_99": compared.kl_99,
        "flip_rate": compared.flip_rate,
        "layer_error": float(errors_L.mean()),
        "layer_errors": errors_L.tolist(),
    }


def _merge_drift(model: Any, params: Any, ids: np.ndarray, window: int) -> dict[str, float]:
    """How far logits move when the adapters of `params` are merged."""
    _, compared = compare(model, params, {"merged": rules.merge(params)}, ids, window)
    merged = compared["merged"]
    return {"mean": merged.mean_difference, "largest": merged.largest_difference}
