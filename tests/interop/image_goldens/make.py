"""Tiny random models that read images and what transformers computes with them, one .npz each
beside this file.

    python tests/interop/image_goldens/make.py [NAME ...]

torch 2.13, transformers 5.24; imports none of the project.

What is written, as `Golden` of tests/interop/golden.py reads it:
    config        config.json as save_pretrained wrote it
    tensor/NAME   a saved tensor
    ids           int32 [2, T], each row with two images among words
    images        float32 [2, 2, size, size, 3], normalised already
    logits        float32 [2, T, V], and greedy int32 [2, 6], what `generate` writes behind the rows
Weights are drawn far larger than a trained model's, norms and biases too, so that each matters.
Seeds are tried until no near-tie decides a greedy token.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors import safe_open

VOCAB, SIZE, PATCH, WRITTEN, MARGIN = 96, 16, 4, 6, 1e-2
PLACE = 5
TEXT = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH},
}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
LLAMA = TEXT | {"model_type": "llama"}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
GEMMA3 = TEXT | {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 4}
GEMMA3 |= {"num_hidden_layers": 3, "layer_types": [LOCAL, LOCAL, GLOBAL]}
GEMMA2 = TEXT | {"model_type": "gemma2", "query_pre_attn_scalar": 8, "sliding_window": 4}
GEMMA2 |= {"layer_types": [LOCAL, GLOBAL]}

# By name: (class, config, soft tokens of an image).
CASES = {
    "smolvlm": (
        hf.SmolVLMForConditionalGeneration,
        hf.SmolVLMConfig(
            text_config=LLAMA, vision_config=VISION, scale_factor=2, image_token_id=PLACE
        ),
        4,
    ),
    "idefics3": (
        hf.Idefics3ForConditionalGeneration,
        hf.Idefics3Config(
            text_config=LLAMA,
            vision_config=VISION,
            scale_factor=2,
            image_token_id=PLACE,
            tie_word_embeddings=True,
        ),
        4,
    ),
    "llava": (
        hf.LlavaForConditionalGeneration,
        hf.LlavaConfig(
            text_config=LLAMA,
            vision_config=VISION | {"model_type": "clip_vision_model"},
            image_token_index=PLACE,
        ),
        16,
    ),
    "paligemma": (
        hf.PaliGemmaForConditionalGeneration,
        hf.PaliGemmaConfig(
            text_config=TEXT | {"model_type": "gemma"},
            vision_config=SIGLIP | {"projection_dim": 32},
            image_token_index=VOCAB + 1,
            projection_dim=32,
            hidden_size=32,
        ),
        16,
    ),
    "paligemma2": (
        hf.PaliGemmaForConditionalGeneration,
        hf.PaliGemmaConfig(
            text_config=GEMMA2,
            vision_config=SIGLIP | {"projection_dim": 32},
            image_token_index=VOCAB + 1,
            projection_dim=32,
            hidden_size=32,
        ),
        16,
    ),
    "gemma3": (
        hf.Gemma3ForConditionalGeneration,
        hf.Gemma3Config(
            text_config=GEMMA3,
            vision_config=SIGLIP,
            image_token_index=PLACE,
            mm_tokens_per_image=4,
            boi_token_index=6,
            eoi_token_index=7,
        ),
        4,
    ),
}

WORDS = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
WORDS |= {"num_attention_heads": 2, "max_position_embeddings": 9, "eos_token_id": 3}
# Of these no text is written: by name the class, the config and whether texts may have padding.
PAIRS = {
    "clip": (
        hf.CLIPModel,
        hf.CLIPConfig(text_config=WORDS, vision_config=VISION, projection_dim=12),
        True,
    ),
    "siglip": (hf.SiglipModel, hf.SiglipConfig(text_config=WORDS, vision_config=VISION), False),
}


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draws every parameter anew; matrices keep the variance of what goes through them."""
    with torch.no_grad():
        for name, w in model.named_parameters():
            std = 0.2 if w.ndim < 2 else 1.5 * w[0].numel() ** -0.5
            # A large tied table repeats its words.
            std = 0.3 if "embed" in name and w.ndim == 2 else std
            drawn = torch.from_numpy(rng.normal(0, std, w.shape).astype(np.float32))
            w.copy_(drawn + (1.0 if name.endswith("norm.weight") else 0.0))


def row(rng: np.random.Generator, place: int, count: int) -> list[int]:
    """Two words, an image, three words, an image, two words."""
    words = rng.integers(8, VOCAB, 7).tolist()
    return [*words[:2], *[place] * count, *words[2:5], *[place] * count, *words[5:]]


def saved(model: torch.nn.Module, folder: str) -> dict[str, np.ndarray]:
    """config.json and the tensors, saved in a folder."""
    model.save_pretrained(folder)
    found = {"config": np.array((Path(folder) / "config.json").read_text())}
    with safe_open(Path(folder) / "model.safetensors", "np") as file:
        return found | {f"tensor/{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def golden(name: str, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """(the fields of a golden, the least lead of a greedy token)."""
    kind, config, count = CASES[name]
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = kind(config).eval().float()
    randomise(model, rng)
    place = getattr(config, "image_token_id", None) or config.image_token_index
    ids = np.array([row(rng, place, count) for _ in range(2)], np.int32)
    images = rng.normal(0, 0.5, (2, 2, SIZE, SIZE, 3)).astype(np.float32)
    pixels = torch.from_numpy(images).permute(0, 1, 4, 2, 3)
    fields = {"input_ids": torch.from_numpy(ids).long()}
    fields["pixel_values"] = pixels if "idefics" in name or "smol" in name else pixels.flatten(0, 1)
    if "gemma" in name:
        kinds = fields["input_ids"] == place
        fields["token_type_ids"] = (
            kinds.long() if name == "gemma3" else torch.zeros_like(kinds).long()
        )
    found = {"ids": ids, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        found |= saved(model, folder)
        model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        found["logits"] = model(**fields).logits.numpy()
        mask = torch.ones_like(fields["input_ids"])
        written = model.generate(
            **fields,
            attention_mask=mask,
            max_new_tokens=WRITTEN,
            min_new_tokens=WRITTEN,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    found["greedy"] = written.sequences[:, -WRITTEN:].numpy().astype(np.int32)
    best = torch.stack(written.logits).topk(2, dim=-1).values
    return found, float((best[..., 0] - best[..., 1]).min())


def pair(name: str) -> dict[str, np.ndarray]:
    """The fields of a golden of pairs: ids [3, 9], mask, images [2, size, size, 3], and "pairs"
    float32 [2, 3], how well each image fits each text."""
    kind, config, padded = PAIRS[name]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = kind(config).eval().float()
    randomise(model, rng)
    ids, mask = rng.integers(8, VOCAB, (3, 9)), np.ones((3, 9), np.int32)
    ids[:, -1] = 3
    if padded:
        ids[1, 5], mask[1, 6:] = 3, 0
    images = rng.normal(0, 0.5, (2, SIZE, SIZE, 3)).astype(np.float32)
    found = {"ids": ids.astype(np.int32), "mask": mask, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        found |= saved(model, folder)
        model = kind.from_pretrained(folder).eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        out = model(
            torch.from_numpy(ids), pixel_values=pixels, attention_mask=torch.from_numpy(mask)
        )
    return found | {"pairs": out.logits_per_image.numpy()}


def main(names: list[str]) -> None:
    """Writes the goldens of these names, of all without any."""
    for name in names or [*CASES, *PAIRS]:
        if name in PAIRS:
            found = pair(name)
            np.savez_compressed(Path(__file__).parent / f"{name}.npz", **found)
            print(f"{name}: scores {found['pairs'].round(2).tolist()}")
            continue
        for seed in range(100):
            found, margin = golden(name, seed)
            if margin > MARGIN and 2 not in found["greedy"]:
                break
        else:
            raise SystemExit(f"{name}: no seed without near-ties")
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **found)
        print(f"{name}: seed {seed}, lead {margin:.3f}, logits to {abs(found['logits']).max():.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
