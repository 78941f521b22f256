"""What a checkpoint says about generating text, in generation_config.json or in the metadata of a
GGUF file: the tokens that end a text, and how tokens are drawn.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

FILE = "generation_config.json"
# Fields of `research.infer.sampling.SamplingConfig`, by which they are known here too, with the
# keys of a GGUF file for the same numbers (llama.cpp's "recommended sampler parameters").
SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
_ENDS, _FORCED = "eos_token_id", "forced_bos_token_id"


def read_sampling(values: Mapping[str, Any], source: Any) -> dict[str, float]:
    """The fields of a `SamplingConfig` that a generation_config.json sets; {} where it sets none.

    `do_sample: false` is temperature 0, as transformers means it; an absent `do_sample` leaves the
    other fields as they are. A field that is not a number or is out of range is left out with a
    warning that names `source`: a recommendation is no reason to refuse a model.
    """
    sampling: dict[str, float] = {}
    for name in SAMPLING:
        value = values.get(name)
        if value is None:  # how transformers writes "not set"
            continue
        if type(value) not in (int, float) or not _in_range(name, value):
            logging.warning("%s: %s has %s=%r, which is left out", source, FILE, name, value)
            continue
        sampling[name] = int(value) if name == "top_k" else float(value)
    if values.get("do_sample") is False:
        # What would narrow the draw has no say where the likeliest token is taken.
        penalty = {k: v for k, v in sampling.items() if k == "repetition_penalty"}
        return {"temperature": 0.0, **penalty}
    return sampling


def _in_range(name: str, value: float) -> bool:
    """True for a value that a `SamplingConfig` takes; NaN is in no range."""
    low_included = name in ("temperature", "top_k", "min_p")
    high = 1 if name in ("top_p", "min_p") else 1e9
    return (0 <= value if low_included else 0 < value) and value <= high


def end_ids(special: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text, of a checkpoint's `special`: `eos_token_id` is one or a list."""
    ids = special.get(_ENDS, ())
    return tuple(n for n in (ids if isinstance(ids, list) else [ids]) if type(n) is int)


def decoder_ids(special: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids from which the decoder of an encoder-decoder writes: its start, and the token that is
    forced to follow, such as that of a language; () where a checkpoint says nothing of a start."""
    start, forced = (special.get(name) for name in ("decoder_start_token_id", _FORCED))
    if type(start) is not int:
        return ()
    return (start,) if type(forced) is not int else (start, forced)


def as_special(ids: Iterable[int | None]) -> int | list[int] | None:
    """Several end ids as `eos_token_id` spells them: each once and in order, a number if there is
    one, None if there is none."""
    # `dict.fromkeys` keeps the first of equal ids, and their order.
    unique = list(dict.fromkeys(n for n in ids if n is not None))
    return unique if len(unique) > 1 else next(iter(unique), None)


def generation_file(values: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, bytes]:
    """The generation_config.json of a folder to be written, as {name: content}: that of the source,
    `values`, with the end ids of `special`. {} where that of the source, or none, will do.

    transformers ends at the ids of this file alone if there is one, whatever config.json says.
    """
    # Needed where the source has this file, which overrules config.json, and where a text has
    # several ends.
    ends = special.get(_ENDS)
    needed = bool(values) or isinstance(ends, list)
    if ends is None or not needed or values.get(_ENDS) == ends:
        return {}
    text = json.dumps({**values, _ENDS: ends}, indent=2, ensure_ascii=False)
    return {FILE: (text + "\n").encode()}


def read_metadata(metadata: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """A generation_config.json of what a GGUF file says of it; {} where it says nothing."""
    # Numbers come as float32; the shortest decimal of one is what was written: 0.9, not
    # 0.899999976.
    values = {
        name: metadata[key] if name == "top_k" else float(str(np.float32(metadata[key])))
        for name, key in SAMPLING.items()
        if key in metadata
    }
    # Sampling is what transformers does only if asked: without `do_sample` it ignores the
    # numbers.
    if values:
        values = {"do_sample": values.get("temperature") != 0, **values}
    several = {_ENDS: special[_ENDS]} if isinstance(special.get(_ENDS), list) else {}
    return {**several, **values}


def write_metadata(sampling: Mapping[str, float]) -> dict[str, int | float]:
    """The keys of a GGUF file that recommend this sampling."""
    return {SAMPLING[name]: value for name, value in sampling.items()}
