"""Every supported Hugging Face family, one row each, and the choice of the row for a model."""

from dataclasses import fields, replace
from typing import Any

from research.interop.huggingface.families import (
    bart,
    bert,
    clip,
    deepseek,
    distilbert,
    electra,
    gemma,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    llava,
    marian,
    ministral3,
    modernbert,
    mpnet,
    olmo,
    olmoe,
    opt,
    paligemma,
    phi3,
    phimoe,
    qwen_moe,
    roberta,
    scoring,
    smollm3,
    smolvlm,
    t5,
    whisper,
)
from research.interop.storage.family import Family
from research.models.config import ModelConfig, Shape

# The last row that serves a model writes it, so a family that adds something to another's layers
# stands below it: Phi 3 below LLaMA.
_DECODERS = {
    "gemma": gemma.FAMILY,
    "llama": llama.FAMILY,
    "qwen_moe": qwen_moe.FAMILY,
    "olmoe": olmoe.FAMILY,
    "gpt_oss": gpt_oss.FAMILY,
    "ministral3": ministral3.FAMILY,
    "phi3": phi3.FAMILY,
    "olmo": olmo.FAMILY,
    "smollm3": smollm3.FAMILY,
    "granite": granite.FAMILY,
    "deepseek": deepseek.FAMILY,
    "gpt2": gpt2.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "phimoe": phimoe.FAMILY,
    "opt": opt.FAMILY,
}
FAMILIES = {
    # Each also has its models that score texts.
    **{name: scoring.with_scores(family) for name, family in _DECODERS.items()},
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "mpnet": mpnet.FAMILY,
    "electra": electra.FAMILY,
    "distilbert": distilbert.FAMILY,
    "modernbert": modernbert.FAMILY,
    "t5": t5.FAMILY,
    "marian": marian.FAMILY,
    "bart": bart.FAMILY,
    "whisper": whisper.FAMILY,
    "clip": clip.FAMILY,
    "llava": llava.FAMILY,
    "paligemma": paligemma.FAMILY,
    "smolvlm": smolvlm.FAMILY,
}


def describe(c: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family of a model and its config.json.

    ValueError for a model that no architecture of transformers computes: the config.json is read
    back, and the message lists each field of `Shape` that does not come back as it was.
    """
    family = family_of(c)
    # Whether scales are stored as w or as 1 + w is the family's custom, not a property of the
    # model: `with_norm_offset` rewrites the tensors to suit.
    c = replace(c, norm_offset=family.norm_offset)
    # Reading back what was written is the one check that cannot fall behind: a field that the
    # writer forgets, or that the class has no name for, comes back as something else.
    values = family.write_config(c)
    # Some families tell what heads a model has by its tensors and not by config.json.
    again = family.read_config(values, {rule.name for rule in family.rules(c)})
    differing = [
        f"{field.name}={getattr(c, field.name)!r}"
        for field in fields(Shape)
        if getattr(again, field.name) != getattr(c, field.name)
    ]
    if differing:
        raise ValueError(
            f"{values['architectures'][0]}, the nearest Hugging Face architecture, "
            f"has no {', '.join(differing)}"
        )
    return family, values


def family_of(c: ModelConfig) -> Family:
    """The family that writes a model. ValueError where no family has its kind of layers."""
    rows = reversed(FAMILIES.values())
    family = next((family for family in rows if family.serves(c)), None)
    if family is None:
        raise ValueError(
            f"no Hugging Face architecture has {c.position} positions in a {c.kind} "
            f"with {c.norm} norms"
        )
    return family
