"""Rows of single tokens that an adapter has in place of the base's (`trainable_token_indices`)."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from research.interop.peft.tensors import Found
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.modules import HEAD, TABLE, Module
from research.interop.storage.parameter import Codes, Parameter

KEY = "trainable_tokens_delta"
Rows = Mapping[str, np.ndarray]


def take_rows(found: Found) -> tuple[Found, Rows]:
    """(what was found without them, the rows [n, D] by the name of their table's module)."""
    rows = {name: parts[KEY] for name, parts in found.parts.items() if KEY in parts}
    rest = {
        name: {key: x for key, x in parts.items() if key != KEY}
        for name, parts in found.parts.items()
    }
    parts = {name: part for name, part in rest.items() if part}
    return replace(found, parts=parts), rows


def with_rows(
    found: Found, rows: Rows, known: Mapping[str, Module], checkpoint: Checkpoint
) -> Checkpoint:
    """The checkpoint with these rows in its tables, which are read dense then. ValueError for rows
    that are not as many as the config's tokens, for tokens that the model has not, and for a tied
    head with rows of its own."""
    parameters, codes = dict(checkpoint.parameters), dict(checkpoint.codes)
    tables: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}
    for name, x in rows.items():
        # A tied head is no module here: peft has the table's rows once more for it.
        path = known[name].paths[0] if name in known else HEAD
        tables[path] = (_ids(found, name, x, checkpoint), x)
    if checkpoint.config.tied and HEAD in tables:
        same = TABLE in tables and np.array_equal(tables[HEAD][1], tables[TABLE][1])
        if not same or tables[HEAD][0] != tables[TABLE][0]:
            raise ValueError(
                "the adapter has rows of the head, which is the table of the words; merge it with "
                "peft, which parts the two"
            )
        del tables[HEAD]
    for path, (ids, x) in tables.items():
        parameters[path] = _with_own(parameters[path], ids, x)
        if path in codes:
            codes[path] = Codes({(): None}, codes[path].read)
    return replace(checkpoint, parameters=parameters, codes=codes)


def _ids(found: Found, name: str, x: np.ndarray, checkpoint: Checkpoint) -> tuple[int, ...]:
    tokens, c = found.config.tokens, checkpoint.config
    end = next((end for end in tokens if end and f".{name}".endswith(f".{end}")), "")
    ids = tokens.get(end, ())
    if x.shape != (len(ids), c.d_model) or max(ids, default=0) >= c.vocab_size:
        raise ValueError(
            f"{name} has rows {list(x.shape)} for the tokens {list(ids)[:4]} ... of "
            f"{c.vocab_size}; wanted one of {c.d_model} numbers for each"
        )
    return ids


def _with_own(parameter: Parameter, ids: tuple[int, ...], x: np.ndarray) -> Parameter:
    def _read(index: tuple[int, ...]) -> np.ndarray:
        values = np.array(parameter.read(index), np.float32)
        values[list(ids)] = x
        return values

    return replace(parameter, read=_read)
