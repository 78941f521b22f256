"""What tests/interop/goldens/make.py wrote, turned back into folders of `save_pretrained`."""

import json
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "goldens"
GOLDENS = sorted(path.stem for path in FOLDER.glob("*.npz"))


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The fields of a golden, as the script's first lines list them."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


# Those of LLaMA's cases whose file is the only thing special about them are not written with again.
WRITERS = [
    name
    for name in GOLDENS
    if "greedy" in golden(name) and name not in ("llama_bfloat16", "llama_sharded")
]
TWO_SIDED = [name for name in GOLDENS if "decoder_ids" in golden(name)]


def tensors(name: str) -> dict[str, np.ndarray]:
    """The tensors that were saved, by their names."""
    found = {}
    for key, values in golden(name).items():
        kind, _, plain = key.partition("/")
        if plain:
            found[plain] = values.view(ml_dtypes.bfloat16) if kind == "bfloat16" else values
    return found


def write(
    name: str,
    folder: Path,
    config: str = "config",
    rename=lambda name: name,
    more: dict | None = None,
) -> Path:
    """A folder with the golden's config.json and its tensors, in shards where it had an index."""
    fields = golden(name)
    arrays = {rename(key): values for key, values in tensors(name).items()} | (more or {})
    (folder / "config.json").write_text(str(fields[config]))
    if "index" not in fields:
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    (folder / "model.safetensors.index.json").write_text(str(fields["index"]))
    where = json.loads(str(fields["index"]))["weight_map"]
    for file in set(where.values()):
        save_file(
            {key: arrays[key] for key, place in where.items() if place == file}, folder / file
        )
    return folder


def inputs(name: str) -> dict[str, np.ndarray]:
    """What a loaded model's functions are called with."""
    fields, names = golden(name), {"ids": "tokens_BT", "mask": "mask", "token_types": "token_types"}
    found = {argument: fields[key] for key, argument in names.items() if key in fields}
    return found | ({"decoder_tokens": fields["decoder_ids"]} if "decoder_ids" in fields else {})


def real(name: str) -> np.ndarray:
    """Where the golden's states and logits mean something, [B, T]: what pads a row has none."""
    fields = golden(name)
    return (
        np.ones_like(fields["decoder_ids"], bool) if "decoder_ids" in fields else fields["mask"] > 0
    )
