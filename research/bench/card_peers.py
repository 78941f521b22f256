"""The peers of `research.bench card` on torch: their own code at the settings that their users
take."""

from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], Any]
RANK = 16


def transformers_train(work: Any, config: Any, new: int) -> Run:
    """A step of the Hugging Face model with gradient checkpointing, under torch.compile, bfloat16
    by autocast, with torch's fused AdamW."""
    import torch

    model = _model(config).train()
    # As ours recomputes its layers; without it the texts of a row would not fit.
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    return _step(torch.compile(model), model, optimizer, work, config)


def peft_train(work: Any, config: Any, new: int) -> Run:
    """A step of adapters on all linear layers over bitsandbytes' NF4, with gradient
    checkpointing."""
    import tempfile

    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=work.format,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # bitsandbytes quantizes what is read from files.
    with tempfile.TemporaryDirectory() as folder:
        _model(config).to(torch.bfloat16).save_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=four, dtype=torch.bfloat16, device_map=_place()
        )
    # peft's own guide calls it: norms in float32, and layers recomputed.
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True)
    adapters = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, adapters)
    return _step(model, model, _adamw(model), work, config)


def unsloth_train(work: Any, config: Any, new: int) -> Run:
    """The same step by Unsloth, whose kernels replace those of the model. It asks for a tokenizer
    beside the weights."""
    import tempfile

    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from unsloth import FastLanguageModel  # before torch, which it patches

    with tempfile.TemporaryDirectory() as folder:
        _model(config).to(torch.bfloat16).save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
        named = dict(unk_token="<unk>", eos_token="</s>", pad_token="<unk>")
        PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
        base, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=work.tokens, dtype=torch.bfloat16, load_in_4bit=True
        )
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        base, r=RANK, target_modules=linear, use_gradient_checkpointing="unsloth"
    )
    return _step(model, model, _adamw(model), work, config)


def transformers_decode(work: Any, config: Any, new: int) -> Run:
    """Greedy generation in bfloat16 with a static cache, which transformers compiles on a card."""
    import torch

    model = _model(config).to(torch.bfloat16).eval()
    ids = _ids(work, config, work.tokens - new)

    def _run() -> None:
        with torch.inference_mode():
            model.generate(
                ids,
                # Without a mask it would warn, and look for padding in every call.
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                cache_implementation="static" if torch.cuda.is_available() else None,
            )
        _wait()

    return _run


def transformers_prefill(work: Any, config: Any, new: int) -> Run:
    """Texts are read into a new cache and the logits of the last tokens computed, in bfloat16."""
    import torch

    model = _model(config).to(torch.bfloat16).eval()
    ids = _ids(work, config, work.tokens)

    def _run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
        _wait()

    return _run


def _adamw(model: Any) -> Any:
    import torch

    # A fused AdamW over frozen parameters would walk through all of them.
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=3e-4, fused=True)


def _model(c: Any) -> Any:
    """The Hugging Face model of a shape of ours, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.max_length,
        tie_word_embeddings=False,
    )
    # Made where it is used: in float32 on the host it would take 32 GB first.
    with torch.device(_place()):
        return LlamaForCausalLM(config)


def _step(forward: Any, model: Any, optimizer: Any, work: Any, config: Any) -> Run:
    import torch

    ids = _ids(work, config, work.tokens)

    def _run() -> None:
        # Gradients are set to None, which saves a pass over them.
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(_place(), torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        _wait()

    return _run


def _ids(work: Any, config: Any, length: int) -> Any:
    import torch

    ids = np.random.default_rng(0).integers(0, config.vocab_size, (work.rows, length))
    return torch.from_numpy(ids).to(_place())


def _place() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    import torch

    # torch returns before the card is done, so the clock must wait for it.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
