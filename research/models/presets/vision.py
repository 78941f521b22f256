"""Decoders that read images: LLaVA, SmolVLM, PaliGemma and Gemma 3."""

from dataclasses import replace

from research.models.config import ModelConfig
from research.models.image_config import ImageConfig
from research.models.presets import gemma, llama


def _encoder(layers: int, d_model: int, heads: int, d_ff: int, **changes) -> ImageConfig:
    return ImageConfig(layers=layers, d_model=d_model, heads=heads, d_ff=d_ff, **changes)


def _so400m(**changes) -> ImageConfig:
    """SigLIP's shape-optimised encoder (arXiv:2305.13035, arXiv:2303.15343), patches of 14."""
    return _encoder(27, 1152, 16, 4304, **changes)


def _base512(**changes) -> ImageConfig:
    """SigLIP's base encoder as SmolVLM has it (arXiv:2504.05299): tiles of 512, patches of 16."""
    return _encoder(12, 768, 12, 3072, size=512, patch=16, **changes)


def _smolvlm(text: str, image: ImageConfig, **changes) -> ModelConfig:
    """SmolVLM: SmolLM2 with the words of its tiles and a head of its own."""
    return replace(llama.PRESETS[text], vocab_size=49280, tied=False, image=image, **changes)


# Vicuna 1.5 has Llama 2's shape and 64 more rows, of which one is the place of a soft token.
_VICUNA = dict(vocab_size=32064)
_CLIP_L = _encoder(
    24, 1024, 16, 4096, form="clip", size=336, projector="mlp", read_before=1, token=32000
)
_PALIGEMMA = dict(projector="linear", attention="prefix", token=257152)
_GEMMA3 = _so400m(size=896, projector="pool", merge=4, attention="block", token=262144)
_SMOL = dict(projector="shuffle", token=49190)

PRESETS: dict[str, ModelConfig] = {
    "llava1.5_7b": replace(llama.PRESETS["llama2_7b"], image=_CLIP_L, **_VICUNA),
    "llava1.5_13b": replace(llama.PRESETS["llama2_13b"], image=_CLIP_L, **_VICUNA),
    # Of nobody's release: LLaVA's decoder and projector behind SigLIP, 729 soft tokens an image.
    "llava_siglip_7b": replace(
        llama.PRESETS["llama2_7b"],
        image=_so400m(size=378, projector="mlp", read_before=1, token=32000), **_VICUNA,
    ),
    "smolvlm_256m": _smolvlm("smollm2_135m", _base512(merge=4, **_SMOL)),
    "smolvlm_500m": _smolvlm("smollm2_360m", _base512(merge=4, **_SMOL)),
    # Gemma 1's 2B decoder (arXiv:2403.08295, table 1), with the words of places and boxes.
    "paligemma_3b": llama.llama(
        257216, 18, 2048, 8, 1, 16384, 8192, norm_eps=1e-6, norm_offset=1.0, head_size=256,
        activation="gelu_tanh", tied=True, embedding_scale=2048**0.5, image=_so400m(**_PALIGEMMA),
    ),
    "gemma3_4b_images": replace(gemma.PRESETS["gemma3_4b"], image=_GEMMA3),
    "gemma3_12b_images": replace(gemma.PRESETS["gemma3_12b"], image=_GEMMA3),
    "gemma3_27b_images": replace(gemma.PRESETS["gemma3_27b"], image=_GEMMA3),
}  # fmt: skip
