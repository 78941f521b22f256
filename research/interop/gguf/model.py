"""GGUF files of the llama architecture and its relatives as models: hyperparameters, names and
layouts.

The values are llama.cpp's. Under "llama" a rotary pair's halves are neighbours, so that the rows of
queries and keys come in another order than in Hugging Face's folders; "qwen2" and "qwen3" keep the
order of those.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.interop.gguf.file import Gguf, open_gguf
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.foreign import Names, read_parameters, write_tensors
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.ops.rope import RopeScaling, frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# factors of the rotary wavelengths, float32 [H / 2], where there is a scaling
FREQUENCIES = "rope_freqs.weight"
SCALING = (
    "graft.rope.scaling"  # ours: what the factors come from, which llama.cpp does not need to know
)
_NAMES = Names(
    unused=((r"rope_freqs\.weight", "computed from the scaling of the rotary positions"),)
)
_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
# Original lengths and factors of published models with Llama 3's scaling: a GGUF file holds only
# what comes of them.
_SCALINGS = tuple(
    RopeScaling(factor, 1.0, 4.0, length)
    for factor in (8.0, 32.0, 16.0, 4.0, 2.0)
    for length in (8192, 4096, 2048, 16384)
)


def open_gguf_model(file: Path) -> Checkpoint:
    """The checkpoint in a GGUF file. ValueError for an architecture or a setting that is not
    supported."""
    from research.interop.gguf.tokenizer import tokenizer_files

    gguf = open_gguf(file)
    try:
        config = read_config(gguf)
        parameters, unused, original = read_parameters(config, rules(config), gguf, _NAMES)
    except ValueError as error:
        gguf.close()
        raise ValueError(f"{file}: {error}") from None
    special = {
        name: int(gguf.metadata[f"tokenizer.ggml.{key}_token_id"])
        for name, key in _SPECIAL.items()
        if f"tokenizer.ggml.{key}_token_id" in gguf.metadata
    }
    files = tokenizer_files(gguf.metadata) if "tokenizer.ggml.model" in gguf.metadata else {}
    quantized = any(kind not in ("F32", "F16", "BF16") for kind in gguf.types.values())
    return Checkpoint(
        file,
        "gguf",
        config,
        parameters,
        special,
        files,
        unused,
        original,
        quantized,
        close=gguf.close,
    )


def read_config(gguf: Gguf) -> ModelConfig:
    """The model of a file's metadata."""
    values = gguf.metadata
    kind = values.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(f"general.architecture is {kind!r}; there are {', '.join(ARCHITECTURES)}")

    def number(key: str, default: Any = None) -> Any:
        value = values.get(f"{kind}.{key}", default)
        if type(value) not in (int, float) or not 0 <= value < 2**40:
            raise ValueError(f"the metadata has {kind}.{key}={value!r}; wanted a number")
        return value

    if number("rope.scaling.factor", 0.0) or values.get(
        f"{kind}.rope.scaling.type", "none"
    ) not in ("none", ""):
        raise ValueError(
            f"rotary scaling {values.get(f'{kind}.rope.scaling.type')!r} is not supported, only Llama 3's"
        )
    heads, d_model = number("attention.head_count"), number("embedding_length")
    head_size = number("attention.key_length", d_model // max(1, heads))
    if (
        number("attention.value_length", head_size) != head_size
        or number("rope.dimension_count", head_size) != head_size
    ):
        raise ValueError("keys, values and rotary dimensions of different sizes are not supported")
    theta, length = float(number("rope.freq_base", 10000.0)), number("context_length")
    experts = number("expert_count", 0)
    return ModelConfig(
        kind="decoder",
        vocab_size=gguf.names["token_embd.weight"].shape[0]
        if "token_embd.weight" in gguf.names
        else 1,
        layers=number("block_count"),
        d_model=d_model,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_size=head_size,
        d_ff=number("feed_forward_length"),
        max_length=length,
        rope_theta=theta,
        rope_scaling=_read_scaling(gguf, head_size, theta),
        window=number("attention.sliding_window", 0),
        norm_eps=_shortest(number("attention.layer_norm_rms_epsilon")),
        query_norm=kind == "qwen3",
        attention_bias="qkv" if "blk.0.attn_q.bias" in gguf.names else "none",
        tied="output.weight" not in gguf.names,
        experts=experts,
        experts_per_token=number("expert_used_count", 2) or 2,
    )


def write_metadata(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model, its tokenizer's aside. ValueError for a model that the architectures
    here do not compute."""
    if (
        c.kind != "decoder"
        or c.position != "rope"
        or c.norm != "rms"
        or not c.gated
        or c.activation != "silu"
    ):
        raise ValueError("only decoders like LLaMA can be written as GGUF; use --to=hf")
    if (
        c.mlp_bias
        or c.attention_bias == "all"
        or c.embedding_scale != 1.0
        or c.head_scale != 1.0
        or c.head_bias
    ):
        raise ValueError(
            "GGUF's llama architecture has no biases of this kind and no scaled embeddings; use --to=hf"
        )
    kind = "qwen3" if c.query_norm else "qwen2" if c.attention_bias == "qkv" else "llama"
    if (
        (kind != "llama" and c.experts)
        or (c.query_norm and c.attention_bias != "none")
        or (kind != "llama" and c.window)
    ):
        raise ValueError(
            f"GGUF's {kind} architecture has no experts, window, or biases beside query norms; use --to=hf"
        )
    values = {
        "general.architecture": kind,
        f"{kind}.block_count": c.layers,
        f"{kind}.context_length": c.max_length,
        f"{kind}.embedding_length": c.d_model,
        f"{kind}.feed_forward_length": c.d_ff,
        f"{kind}.attention.head_count": c.heads,
        f"{kind}.attention.head_count_kv": c.kv_heads,
        f"{kind}.attention.key_length": c.head_size,
        f"{kind}.attention.value_length": c.head_size,
        f"{kind}.attention.layer_norm_rms_epsilon": float(c.norm_eps),
        f"{kind}.rope.dimension_count": c.head_size,
        f"{kind}.rope.freq_base": float(c.rope_theta),
        f"{kind}.vocab_size": c.vocab_size,
    }
    if c.window:
        values[f"{kind}.attention.sliding_window"] = c.window
    if c.experts:
        values |= {
            f"{kind}.expert_count": c.experts,
            f"{kind}.expert_used_count": c.experts_per_token,
        }
    return values


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors, [out, in] in numpy's order."""
    block, ours = "blk.{layer}", "layers"
    pair = "(p h)" if c.query_norm or c.attention_bias == "qkv" else "(h p)"

    def rotary(heads: str, rest: str) -> str:
        inner = pair.strip("()")
        return f"({heads} {inner}){' D' if rest else ''} -> {'D ' if rest else ''}{heads} (p h)"

    found = [
        Rule("token_embd.weight", "embed/table", "V D -> V D"),
        Rule(f"{block}.attn_norm.weight", f"{ours}/attention_norm/scale", "D -> D"),
        Rule(f"{block}.attn_q.weight", f"{ours}/attention/query", rotary("N", "D")),
        Rule(f"{block}.attn_k.weight", f"{ours}/attention/key", rotary("K", "D")),
        Rule(f"{block}.attn_v.weight", f"{ours}/attention/value", "(K H) D -> D K H"),
        Rule(f"{block}.attn_output.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.ffn_norm.weight", f"{ours}/mlp_norm/scale", "D -> D"),
        Rule("output_norm.weight", "final_norm/scale", "D -> D"),
    ]
    if c.attention_bias == "qkv":
        found += [
            Rule(f"{block}.attn_q.bias", f"{ours}/attention/query_bias", rotary("N", "")),
            Rule(f"{block}.attn_k.bias", f"{ours}/attention/key_bias", rotary("K", "")),
            Rule(f"{block}.attn_v.bias", f"{ours}/attention/value_bias", "(K H) -> K H"),
        ]
    if c.query_norm:
        found += [
            Rule(f"{block}.attn_q_norm.weight", f"{ours}/attention/query_norm", "H -> H"),
            Rule(f"{block}.attn_k_norm.weight", f"{ours}/attention/key_norm", "H -> H"),
        ]
    if c.experts:
        found += [
            Rule(f"{block}.ffn_gate_inp.weight", f"{ours}/mlp/router", "E D -> D E"),
            Rule(f"{block}.ffn_gate_exps.weight", f"{ours}/mlp/gate", "E F D -> E D F"),
            Rule(f"{block}.ffn_up_exps.weight", f"{ours}/mlp/up", "E F D -> E D F"),
            Rule(f"{block}.ffn_down_exps.weight", f"{ours}/mlp/down", "E D F -> E F D"),
        ]
    else:
        found += [
            Rule(f"{block}.ffn_gate.weight", f"{ours}/mlp/gate", "F D -> D F"),
            Rule(f"{block}.ffn_up.weight", f"{ours}/mlp/up", "F D -> D F"),
            Rule(f"{block}.ffn_down.weight", f"{ours}/mlp/down", "D F -> F D"),
        ]
    return (*found, *([] if c.tied else [Rule("output.weight", "head/table", "V D -> V D")]))


def write_gguf_model(checkpoint: Checkpoint, file: Path, kind: str) -> None:
    """Writes a checkpoint as one GGUF file; `kind` is the type of its matrices, such as Q8_0.
    Vectors stay in float32.

    The table of a tied model, and rows that a block does not divide, are kept in a type that suits
    them, as llama.cpp does.
    """
    from research.interop.gguf.tokenizer import tokenizer_metadata
    from research.interop.gguf.write import write_gguf

    c = checkpoint.config
    metadata = write_metadata(c)
    name = checkpoint.source.stem if checkpoint.source.is_file() else checkpoint.source.name
    metadata |= {"general.name": name, "general.file_type": FILE_TYPES[kind]}
    if checkpoint.files:
        contents = {
            n: f if isinstance(f, bytes) else f.read_bytes() for n, f in checkpoint.files.items()
        }
        metadata |= tokenizer_metadata(contents, vocab_size=c.vocab_size)
    for ours, theirs in _SPECIAL.items():
        value = checkpoint.special.get(ours)
        if value is not None:
            metadata[f"tokenizer.ggml.{theirs}_token_id"] = (
                value[0] if isinstance(value, list) else value
            )
    tensors = [
        (name, tensor.shape, _type(name, tensor.shape, kind), make)
        for name, (tensor, make) in write_tensors(c, rules(c), checkpoint.parameters).items()
    ]
    if c.rope_scaling != RopeScaling():
        r = c.rope_scaling
        metadata[SCALING] = np.array(
            [r.factor, r.low_factor, r.high_factor, r.original_length], np.float64
        )
        factors = _factors(c.head_size, c.rope_theta, c.rope_scaling)
        tensors.append((FREQUENCIES, factors.shape, "F32", lambda: factors))
    write_gguf(file, metadata, tensors)


# ggml's numbers for the type of most tensors of a file (llama.h, enum llama_ftype).
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
_BLOCK = 32  # elements of a block of the quantized types


def _type(name: str, shape: Sequence[int], kind: str) -> str:
    """The type of one tensor: norms, biases and the router are not worth quantizing, and llama.cpp
    wants them whole."""
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    if kind.startswith("Q") and shape[-1] % _BLOCK:
        return "F16"
    if name in ("token_embd.weight", "output.weight") and kind.startswith("Q4"):
        return "Q8_0"  # logits suffer most; llama.cpp takes more bits for them too
    return kind


def _read_scaling(gguf: Gguf, head_size: int, theta: float) -> RopeScaling:
    """The scaling whose factors a file has; other programs store them alone, not what they come
    from."""
    if FREQUENCIES not in gguf.names:
        return RopeScaling()
    got = gguf.read(FREQUENCIES).astype(np.float64)
    said = gguf.metadata.get(SCALING)
    own = (
        ()
        if said is None or len(said) != 4
        else (RopeScaling(*map(float, said[:3]), int(said[3])),)
    )
    for scaling in (*own, *_SCALINGS):
        if got.shape == (head_size // 2,) and np.allclose(
            got, _factors(head_size, theta, scaling), rtol=1e-5
        ):
            return scaling
    raise ValueError(
        f"{FREQUENCIES} holds factors up to {got.max():.6g} that are those of no known scaling"
    )


def _factors(head_size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    return (frequencies(head_size, theta) / frequencies(head_size, theta, scaling)).astype(
        np.float32
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5 for 9.99999974e-06."""
    return float(str(np.float32(value)))
