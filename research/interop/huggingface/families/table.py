"""The families there are, one row each, and which of them a model belongs to."""

from dataclasses import fields, replace
from typing import Any

from research.interop.huggingface.families import bert, gemma, gpt2, llama, marian, t5
from research.interop.storage.family import Family
from research.models.config import ModelConfig, Shape

# The last row that serves a model has it, so one that adds to another's layers stands below it.
FAMILIES = {
    "gemma": gemma.FAMILY,
    "llama": llama.FAMILY,
    "gpt2": gpt2.FAMILY,
    "bert": bert.FAMILY,
    "t5": t5.FAMILY,
    "marian": marian.FAMILY,
}


def describe(c: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family of a model and its config.json.

    ValueError, which lists the fields, for a model that no architecture of transformers computes:
    the config.json is read back and has to give the same `Shape`.
    """
    family = family_of(c)
    c = replace(c, norm_offset=family.norm_offset)
    values = family.write_config(c)
    heads = {"pooler.dense.weight"} if c.pooler else set()
    heads |= {"cls.predictions.transform.dense.weight"} if c.mlm_head else set()
    heads |= {"classifier.weight"} if c.labels else set()
    heads |= set() if c.tied else {"lm_head.weight"}
    again = family.read_config(values, heads)
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
    """The family whose names a model has. ValueError where there is none."""
    rows = reversed(FAMILIES.values())
    family = next((family for family in rows if family.serves(c)), None)
    if family is None:
        raise ValueError(
            f"no Hugging Face architecture has {c.position} positions in a {c.kind} "
            f"with {c.norm} norms"
        )
    return family
