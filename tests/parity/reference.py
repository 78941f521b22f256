"""The real models as transformers computes them, made without a line of the project: weights by the
`gguf` package, ids by llama.cpp's tokenizer or by `tokenizers`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

CHATS = [
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "How do I boil an egg?",
    "Name three colours.",
    "What does a compiler do?",
]
TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, there was a small village",
    "Water boils at a temperature of",
    "1, 2, 3, 4, 5,",
]
SENTENCES = [
    "A cat sits on the mat.",
    "A small cat is resting on a rug.",
    "The stock market fell sharply on Monday, as investors weighed the prospect of higher interest "
    "rates.",
    "Shares dropped.",
    "How do I boil an egg?",
    "Naïve café: 東京 and Москва, 3.14!",
]


def smollm2(path: Path) -> transformers.LlamaForCausalLM:
    """SmolLM2 from its GGUF file, float32.

    transformers' own GGUF loader is not used: it drops the tokenizer's `pre` rule. Rows of queries
    and keys lie there for rotation of neighbours and are put back in halves.
    """
    import gguf

    file = gguf.GGUFReader(path)
    meta = {key: field.contents() for key, field in file.fields.items()}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = transformers.LlamaConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
    )
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in file.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{names[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[
                parts[0]
            ]
        if parts[-2] in ("attn_q", "attn_k"):
            count = heads if parts[-2] == "attn_q" else kv_heads
            weight = (
                weight.reshape(count, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
            )
        state[name] = torch.from_numpy(weight.copy())
    model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def prompt_ids(path: Path) -> list[list[int]]:
    """Ids of CHATS, each in the model's template, and of TEXTS, by llama.cpp's tokenizer."""
    import jinja2
    from llama_cpp import Llama

    vocabulary = Llama(str(path), vocab_only=True, verbose=False)
    template = jinja2.Template(vocabulary.metadata["tokenizer.chat_template"])
    said = [[{"role": "user", "content": text}] for text in CHATS]
    texts = [
        template.render(messages=messages, add_generation_prompt=True) for messages in said
    ] + TEXTS
    return [vocabulary.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def greedy(
    model: transformers.LlamaForCausalLM, ids: Sequence[int], count: int
) -> tuple[list[int], float]:
    """The likeliest continuation, up to and with the end token, and the least lead of a token over
    the next."""
    with torch.no_grad():
        found = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=count,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.config.eos_token_id,
        )
    best, second = torch.topk(torch.stack(found.logits)[:, 0], 2).values.T
    return found.sequences[0, len(ids) :].tolist(), float((best - second).min())


def nll(model: transformers.LlamaForCausalLM, ids: np.ndarray, window: int) -> float:
    """Mean nats of every id but the first, each given those before it in its window."""
    total = 0.0
    for start in range(0, len(ids) - 1, window):
        part = torch.from_numpy(ids[start : start + window + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(part[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
    return total / (len(ids) - 1)


def embeddings(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """MiniLM's vectors of texts: the mean of the last states over what is no padding, of length
    1."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text())
    model = transformers.BertModel(transformers.BertConfig(**config)).eval()
    state = load_file(folder / "model.safetensors")
    state.pop("embeddings.position_ids", None)
    model.load_state_dict(state)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(list(texts))
    ids, mask = (
        torch.tensor([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask")
    )
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask[:, :, None].float()
    return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=-1).numpy()
