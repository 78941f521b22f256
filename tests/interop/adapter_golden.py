"""What tests/interop/adapters/make.py wrote, turned back into folders of peft's
`save_pretrained`."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "adapters"
ADAPTERS = sorted(path.stem for path in FOLDER.glob("*.npz"))


# Fields that give an adapter more than factors on modules: it is not written back as it was.
_BESIDE = ("lora_bias", "trainable_token_indices", "layer_replication", "target_parameters")


@cache
def adapter(name: str) -> dict[str, np.ndarray]:
    """The fields of a golden, as the script's first lines list them."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def plain(name: str) -> bool:
    """True for LoRA, IA3 and prompts without any of LoRA's rarer fields."""
    config = json.loads(str(adapter(name)["config"]))
    kinds = ("LORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING")
    beside = config.get("bias", "none") != "none" or any(config.get(key) for key in _BESIDE)
    return config["peft_type"] in kinds and not beside


def tensors(name: str) -> dict[str, np.ndarray]:
    """The tensors that were saved, by their names."""
    return {
        key.removeprefix("tensor/"): value
        for key, value in adapter(name).items()
        if key.startswith("tensor/")
    }


def write_adapter(name: str, folder: Path, changes: dict[str, str] | None = None) -> Path:
    """A folder with the golden's adapter_config.json, pieces of its text changed, and its
    tensors."""
    folder.mkdir()
    text = str(adapter(name)["config"])
    for old, new in (changes or {}).items():
        if old not in text:
            raise ValueError(f"{name} has no {old}")
        text = text.replace(old, new)
    (folder / "adapter_config.json").write_text(text)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors(name).items()},
        folder / "adapter_model.safetensors",
    )
    return folder
