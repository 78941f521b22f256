"""Adapters as peft writes them on the tiny models of ../goldens, and what peft computes with them,
one .npz each.

    python tests/interop/adapters/make.py [NAME ...]    # torch 2.13, transformers 5.23, peft 0.21.2

`tests/interop/adapter_golden.py` reads what is written here:
    base                the golden of the model that the adapter is for
    config              adapter_config.json
    tensor/NAME         a tensor of adapter_model.safetensors
    logits              float32, for the base golden's ids; `classes` of a classifier
Every factor is drawn so that it matters, as no fresh adapter's does. Where the base is not tied by
its config, the copies of whole embedding tables that peft saves beside their adapters are left out.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf
from other_kinds import KINDS
from safetensors import safe_open
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent.parent / "goldens"
INPUTS = {
    "ids": "input_ids",
    "mask": "attention_mask",
    "token_types": "token_type_ids",
    "decoder_ids": "decoder_input_ids",
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**fields):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **fields})


CASES = {
    "lora": (
        "llama_gqa",
        lora(
            target_modules=LINEAR,
            rank_pattern={
                "q_proj": 2,
                "layers.1.mlp.up_proj": 3,
                "^model.layers.0.mlp.down_proj": 1,
            },
            alpha_pattern={"v_proj": 16},
            lora_dropout=0.1,
        ),
    ),
    "lora_some_layers": (
        "llama_mha",
        lora(target_modules=["q_proj", "down_proj"], layers_to_transform=[1]),
    ),
    "lora_table": ("llama_gqa", lora(target_modules=["q_proj", "embed_tokens"])),
    "lora_head": ("llama_gqa", lora(target_modules=["q_proj", "lm_head"])),
    "lora_table_and_head": ("llama_mqa", lora(target_modules=["embed_tokens", "lm_head"])),
    "lora_whole": (
        "llama_gqa",
        lora(target_modules=["v_proj"], modules_to_save=["lm_head", "input_layernorm"]),
    ),
    "lora_resized": (
        "llama_gqa",
        lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "rslora_dora": ("llama_gqa", lora(target_modules=LINEAR, use_dora=True, use_rslora=True)),
    "gpt2_lora": (
        "gpt2",
        lora(target_modules=["c_attn", "c_proj", "c_fc", "wpe"], fan_in_fan_out=True),
    ),
    "gpt2_dora": (
        "gpt2",
        lora(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, use_dora=True),
    ),
    "bert_lora": (
        "bert_mlm",
        lora(target_modules=["query", "value", "dense", "token_type_embeddings"]),
    ),
    "bert_classifier": (
        "bert_classifier",
        lora(target_modules=["query", "value"], task_type="SEQ_CLS"),
    ),
    "t5_lora": ("t5", lora(target_modules=["q", "v", "o", "wi", "wo"])),
    "mixtral_lora": ("mixtral", lora(target_modules=["q_proj", "gate"])),
    "mixtral_experts": (
        "mixtral",
        lora(
            target_modules=["v_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ),
    "ia3": (
        "llama_gqa",
        peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "gpt2_ia3": (
        "gpt2",
        peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
        ),
    ),
    "prompt": ("llama_gqa", peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")),
    "prefix": ("llama_gqa", peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")),
    "gpt2_prompt": ("gpt2", peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "gpt2_prefix": ("gpt2", peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
    **KINDS,
}


# Tokens that the user added before training, by case.
ADDED = {"lora_resized": 6}


def base(name: str, folder: str, added: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model of a golden and its inputs."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        fields = dict(file)
    (Path(folder) / "config.json").write_text(str(fields["config"]))
    tensors = {key[7:]: value for key, value in fields.items() if key.startswith("tensor/")}
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    kind = getattr(hf, json.loads(str(fields["config"]))["architectures"][0])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added)
    return model, {
        INPUTS[key]: torch.from_numpy(fields[key].astype(np.int64))
        for key in INPUTS
        if key in fields
    }


def draw(name: str, x: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    """Values that change a logit by some tenths."""
    if "magnitude" in name or name.endswith("ia3_l"):
        return x.numpy() * rng.uniform(0.7, 1.3, x.shape)
    if re.search(r"lora_|prompt", name):
        return rng.normal(0, 0.15 if "lora" in name else 0.5, x.shape)
    return x.numpy() + rng.normal(0, 0.1, x.shape)


def golden(name: str) -> dict[str, np.ndarray]:
    """The fields of a case."""
    source, config = CASES[name]
    rng = np.random.default_rng(len(name))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as adapter:
        model, given = base(source, folder, ADDED.get(name, 0))
        with torch.no_grad():
            before = model(**given).logits.numpy()
        wrapped = peft.get_peft_model(model, config)
        wrapped.save_pretrained(adapter)
        with safe_open(f"{adapter}/adapter_model.safetensors", "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}
        tensors = {
            key: value.numpy()
            if re.search(r"base_layer\.weight|original_module", key)
            else draw(key, value, rng).astype(np.float32)
            for key, value in found.items()
        }
        for key in [key for key in tensors if ".modules_to_save." in key]:
            tensors[key] = tensors[key.replace(".modules_to_save.", ".")]
        # One tensor that is saved for both of its uses.
        if config.peft_type == "TRAINABLE_TOKENS" or getattr(config, "ensure_weight_tying", False):
            for key in [key for key in tensors if ".lm_head." in key]:
                tensors[key] = tensors[key.replace(".lm_head.", ".model.embed_tokens.")]
        save_file(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()},
            f"{adapter}/adapter_model.safetensors",
        )
        text = json.loads(Path(adapter, "adapter_config.json").read_text())
        model, _ = base(source, folder, ADDED.get(name, 0))
        loaded = peft.PeftModel.from_pretrained(model, adapter).eval()
        with torch.no_grad():
            logits = loaded(**given).logits.numpy()
    logits = (
        logits[:, -before.shape[1] :] if before.ndim == 3 else logits
    )  # without those of virtual tokens
    print(
        f"  |logits| {np.abs(logits).max():.1f}, from the base's by "
        f"{np.abs(logits - before).max():.2f}"
    )
    text["base_model_name_or_path"] = source
    fields = {"base": np.array(source), "config": np.array(json.dumps(text, indent=2))}
    fields |= {f"tensor/{key}": value for key, value in tensors.items()}
    return fields | {"classes" if source == "bert_classifier" else "logits": logits}


def main(names: list[str]) -> None:
    hf.utils.logging.disable_progress_bar()
    for name in names or CASES:
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **golden(name))
        print(f"{name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
