"""A contender's process: python -m research.bench.lora_contender graft|peft:lora|qlora:DTYPE.
Weights are random."""

import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from research.bench.contender import step_of
from research.bench.lora import BATCH, LENGTH, OURS, PRESET, RANK
from research.bench.turns import serve
from research.models.presets import PRESETS


def main() -> None:
    """Prepares the step that the argument names and takes it when asked."""
    name, method, dtype = sys.argv[1].split(":")
    serve((graft_step if name == OURS else peft_step)(method, dtype))


def tokens() -> np.ndarray:
    """One fixed random batch, int32 [4, 257]."""
    return (
        np.random.default_rng(0)
        .integers(0, PRESETS[PRESET].vocab_size, (BATCH, LENGTH + 1))
        .astype(np.int32)
    )


def graft_step(method: str, dtype: str) -> Callable[[], float]:
    """The step of `research.train`, with peft's AdamW instead of the 8-bit one, and without
    rematerialisation."""
    from research.precision import Precision
    from research.training.optimizer import OptimizerConfig
    from research.tuning.lora_specs import LoraConfig
    from research.tuning.method import QuantizeConfig, TuneConfig

    return step_of(
        PRESETS[PRESET],
        tokens(),
        tune=TuneConfig("lora"),
        lora=LoraConfig(RANK),
        quantize=QuantizeConfig("nf4" if method == "qlora" else ""),
        precision=Precision(compute=dtype),
        optimizer=OptimizerConfig(clip_norm=None, weight_decay=0.0),
    )


def peft_step(method: str, dtype: str) -> Callable[[], None]:
    """The step of the Hugging Face model under peft with torch's AdamW on the adapters; the base is
    in `dtype`, or in bitsandbytes' NF4 with products in `dtype`."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        _base(method, getattr(torch, dtype)),
        # alpha = 32 at rank 16, the default of our own section.
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    # AdamW over frozen parameters would skip them one by one in every step.
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, fused=True)
    # Its model shifts the labels by itself, so inputs and labels are the same ids.
    ids = torch.from_numpy(tokens()[:, :-1].astype(np.int64))

    def _run() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    _run()
    return _run


def _base(method: str, dtype: Any) -> Any:
    """The Hugging Face model in a torch type, or in NF4 with products in that type."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    c = PRESETS[PRESET]
    # Random weights are as slow as trained ones, and need no download.
    torch.manual_seed(0)
    # The shape of our preset, so that both sides do the same products.
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.max_length,
        rope_theta=c.rope_theta,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if method != "qlora":
        return model
    # bitsandbytes quantizes what it loads, so the random weights go through a folder.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=four, dtype=dtype, device_map="cpu"
        )
    return model


if __name__ == "__main__":
    main()
