"""Tiny random models quantized by bitsandbytes and saved by transformers, one .npz each beside this
file.

    python tests/interop/quantized/make.py [NAME ...]

torch 2.13, transformers 5.23, bitsandbytes 0.50.2.

`tests/interop/test_bitsandbytes.py` reads what is written here:
    config              config.json as save_pretrained wrote it
    tensor/NAME         a saved tensor; bfloat16/NAME its bits as uint16 where it is bfloat16
    dense/NAME          first and last row of what bitsandbytes makes of a weight, float32
    ids                 [2, 17]
    logits              float32, of the model as reloaded; for 8 bits of weights times scales
    activations         for 8 bits: logits as transformers runs it, activations in 8 bits too
Widths are multiples of 64: elsewhere bitsandbytes' own CPU code is wrong.
"""

import json
import sys
import tempfile
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import save_file

VOCAB = 96
LLAMA = hf.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2 = hf.GPT2Config(
    vocab_size=VOCAB,
    n_positions=64,
    n_embd=64,
    n_layer=2,
    n_head=4,
    n_inner=128,
    bos_token_id=0,
    eos_token_id=0,
)


def bits4(kind="nf4", double=True, **more):
    return hf.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
        **more,
    )


SKIPPED = ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn"]
CASES = {  # a model, how it is quantized, the type it is saved in, the size of a block
    "nf4": (LLAMA, bits4(), torch.float32, 64),
    "fp4_blocks_of_32": (LLAMA, bits4("fp4", double=False), torch.float32, 32),
    "nf4_bfloat16": (LLAMA, bits4(), torch.bfloat16, 64),
    "nf4_dynamic": (LLAMA, bits4(llm_int8_skip_modules=SKIPPED), torch.float32, 64),
    "nf4_gpt2": (GPT2, bits4(), torch.float32, 64),
    "int8": (LLAMA, hf.BitsAndBytesConfig(load_in_8bit=True), torch.float32, 0),
}


def plain(config: hf.PreTrainedConfig, folder: str, dtype: torch.dtype) -> type:
    """Saves a model with large random weights; its class."""
    kind = {"llama": hf.LlamaForCausalLM, "gpt2": hf.GPT2LMHeadModel}[config.model_type]
    model, generator = kind(config), torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        weight.data.copy_(
            1 + 0.2 * drawn if weight.ndim == 1 and name.endswith("weight") else 0.15 * drawn
        )
    model.to(dtype).save_pretrained(folder)
    return kind


def in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """Without the path of some CPUs that goes through bfloat16 and lays the weights out anew."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def in_blocks(folder: str, size: int) -> None:
    """Quantizes what the folder has again, in blocks of another size."""
    path = f"{folder}/model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    for name in [key for key in tensors if key.endswith(".quant_map")]:
        weight = name.removesuffix(".quant_map")
        state = bnb.functional.QuantState.from_dict(
            {
                key.removeprefix(weight + "."): value
                for key, value in tensors.items()
                if key.startswith(weight + ".")
            },
            device=torch.device("cpu"),
        )
        dense = bnb.functional.dequantize_4bit(tensors[weight], state)
        tensors[weight], state = bnb.functional.quantize_4bit(
            dense, blocksize=size, quant_type=state.quant_type
        )
        tensors |= {f"{weight}.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def dense(module: torch.nn.Module) -> torch.Tensor:
    """A quantized layer's weight as bitsandbytes makes it dense."""
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return module.weight.data.float() * (module.weight.SCB.float() / 127)[:, None]


def golden(name: str) -> dict[str, np.ndarray]:
    """The fields of a case."""
    config, how, dtype, size = CASES[name]
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as folder:
        kind = plain(config, source, dtype)
        kind.from_pretrained(source, quantization_config=how, dtype=dtype).save_pretrained(folder)
        if size not in (0, 64):
            in_blocks(folder, size)
        fields = {"config": np.array(Path(folder, "config.json").read_text())}
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            for key in file.keys():
                tensor = file.get_tensor(key)
                narrow = tensor.dtype == torch.bfloat16
                kind, tensor = (
                    ("bfloat16", tensor.view(torch.uint16)) if narrow else ("tensor", tensor)
                )
                fields[f"{kind}/{key}"] = tensor.numpy()
        model = in_float32(
            kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        )
        ids = torch.from_numpy(np.random.default_rng(0).integers(3, VOCAB, (2, 17)))
        layers = {
            n: m
            for n, m in model.named_modules()
            if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))
        }
        weights = {n: dense(m) for n, m in layers.items()}
        fields |= {
            f"dense/{n}.weight": weight[[0, -1]].float().numpy() for n, weight in weights.items()
        }
        with torch.no_grad():
            found = {"logits": model(ids).logits}
            if size == 0:
                trained = model.train()(
                    ids
                ).logits  # bitsandbytes' CPU code computes with floats then
                model.eval()
                found = {"activations": found["logits"]}
                for n, m in layers.items():
                    same = torch.nn.Linear(m.in_features, m.out_features, bias=False)
                    same.weight.data.copy_(weights[n])
                    model.set_submodule(n, same)
                found["logits"] = model(ids).logits
                print(f"  in training {(trained - found['logits']).abs().max():.1e} from that")
    print(f"  |logits| {found['logits'].abs().max():.1f}; quantized {len(layers)} layers")
    return (
        fields
        | {"ids": ids.numpy().astype(np.int32)}
        | {key: value.float().numpy() for key, value in found.items()}
    )


def main(names: list[str]) -> None:
    hf.utils.logging.disable_progress_bar()
    for name in names or CASES:
        path = Path(__file__).with_name(f"{name}.npz")
        fields = golden(name)
        np.savez_compressed(path, **fields)
        print(
            f"{name}: {path.stat().st_size / 1e3:.0f} kB",
            json.loads(str(fields["config"])).get("dtype"),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
