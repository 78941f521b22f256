"""Published transformers by name. Each file holds a group of families: builders with what a family
shares, and entries with the sizes of its papers."""

from research.models.config import ModelConfig
from research.models.presets import (
    bert,
    deepseek,
    gemma,
    gpt,
    gpt_oss,
    granite,
    llama,
    neox,
    olmo,
    phi,
    qwen,
    seq2seq,
    vision,
)

PRESETS: dict[str, ModelConfig] = {
    **gpt.PRESETS,
    **llama.PRESETS,
    **qwen.PRESETS,
    **gemma.PRESETS,
    **phi.PRESETS,
    **olmo.PRESETS,
    **gpt_oss.PRESETS,
    **granite.PRESETS,
    **deepseek.PRESETS,
    **neox.PRESETS,
    **bert.PRESETS,
    **seq2seq.PRESETS,
    **vision.PRESETS,
}
