"""Writes goldens/class_defaults.json: what classes of transformers take for absent fields.

Run it from the root with transformers: python tests/interop/make_golden_defaults.py
"""

import dataclasses
import json
from pathlib import Path

from transformers import CONFIG_MAPPING, PreTrainedConfig

KINDS = (
    "llama mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text gpt2 "
    "qwen2_moe qwen3_moe olmoe ministral ministral3 phi3 olmo2 olmo3 smollm3 granite gpt_neox opt "
    "gpt_oss phimoe deepseek_v2 deepseek_v3 "
    "bert roberta mpnet xlm-roberta distilbert electra modernbert t5 mt5 marian bart mbart pegasus "
    "whisper"
).split()


def defaults(kind):
    cls = CONFIG_MAPPING[kind]
    general = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    fields = {f.name: f.default for f in dataclasses.fields(cls) if f.name not in general}

    # Rotary bases are fields of older config.json files and class attributes now.
    theta = getattr(cls, "default_theta", None)
    if isinstance(theta, dict):
        fields |= {"rope_theta": theta["global"], "rope_local_base_freq": theta["local"]}
    elif theta is not None and "rope_parameters" in fields:
        fields["rope_theta"] = theta
    plain = (int, float, str, bool, type(None))
    return {name: value for name, value in sorted(fields.items()) if isinstance(value, plain)}


if __name__ == "__main__":
    table = {kind: defaults(kind) for kind in KINDS}
    file = Path(__file__).parent / "goldens" / "class_defaults.json"
    file.write_text(json.dumps(table, indent=1) + "\n")
