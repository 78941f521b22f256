"""The tensors of an adapter's file, sorted by the modules of a model."""

import re
from dataclasses import dataclass

import numpy as np

from research.interop.peft.config import PeftConfig
from research.interop.peft.experts import Parts, experts_apart
from research.interop.storage.family import Family
from research.interop.storage.modules import canonical
from research.interop.storage.safetensors import SafeTensors
from research.models.config import ModelConfig

Arrays = dict[str, np.ndarray]

# Ends of names by which an adapter's tensors are known; any other tensor is a whole weight.
_PART = re.compile(
    r"(.*)\.(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|hada_w[12]_[ab]"
    r"|lokr_w[12](?:_[ab])?|vera_lambda_[bd]|oft_R|boft_[Rs]|trainable_tokens_delta)"
    r"(?:\.weight|(\.bias))?"
)


@dataclass(frozen=True)
class Found:
    """The tensors of an adapter's file.

    parts   float32 arrays by module and kind: parts["model.layers.0.mlp.up_proj"]["lora_A"]
    whole   whole weights: their name in the model, with the tensor's name in the file
    names   for experts that were split from a stacked module: the name that peft matches with its
            patterns
    """

    config: PeftConfig
    tensors: SafeTensors
    parts: Parts
    whole: dict[str, str]
    names: dict[str, str]

    def rank(self, module: str) -> int:
        """The rank that the config gives a module."""
        return self.config.rank_of(self.names.get(module, module))

    def scale(self, module: str) -> np.float32:
        """The factor of a module's update, alpha / rank or alpha / sqrt(rank)."""
        return np.float32(self.config.scale_of(self.names.get(module, module)))


def sort_tensors(config: PeftConfig, tensors: SafeTensors, c: ModelConfig, family: Family) -> Found:
    """The tensors of an adapter for a model of this config, named as in the family's rules."""
    whole, parts = {}, {}
    # float32 whatever the file has: adapters are small, and their products are exact then.
    for name, actual in canonical(tensors.names, c, family).items():
        # Of a model with resized tables peft saves these thrice: as the plain name, as the trained
        # module inside its wrapper, and as the base's own weight.
        if ".original_module." in name:
            continue
        name = re.sub(r"\.(modules_to_save|ln_tuning_layers|token_adapter)\.", ".", name)
        part = _PART.fullmatch(name)
        if part is None:
            whole[name.replace(".base_layer.", ".")] = actual
        else:
            # Older and newer releases of peft differ by `.weight` at the end of magnitudes.
            key = part[2] + (part[3] or "")
            parts.setdefault(part[1], {})[key] = tensors.read(actual).astype(np.float32)
    parts, names = experts_apart(parts, c, family)
    return Found(config, tensors, parts, whole, names)
