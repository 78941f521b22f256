"""The tokens that a run has beyond those of its base, in a folder of peft's: the grown tables, as
peft's `save_embedding_layers` writes them, and the tokenizer."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from research.interop.huggingface.folder import companions
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.grow import fit_rows
from research.models.config import ModelConfig


def grown_tables(base: Checkpoint, c: ModelConfig) -> dict[str, np.ndarray]:
    """The base's tables by path with the rows of the model of config `c`, {} where both have as
    many tokens. ValueError for learned positions that the base lacks: nobody could give it them."""
    if c.position == "learned" and c.max_length != base.config.max_length:
        raise ValueError(
            f"the run has {c.max_length} learned positions where its base {base.source} has "
            f"{base.config.max_length}, and a model that peft adapts cannot grow these; use "
            "--to=hf, which merges the adapters"
        )
    grown = fit_rows(base, replace(base.config, vocab_size=c.vocab_size))
    return {
        path: parameter.read(())
        for path, parameter in grown.parameters.items()
        if parameter is not base.parameters[path]
    }


def write_tokens(folder: Path, tokenizer: Path, before: int, after: int) -> list[str]:
    """Copies the files of a run's tokenizer into the folder of its adapters; the line that says
    what the base needs before it takes them."""
    for name, file in companions(tokenizer).items():
        shutil.copyfile(file, folder / name)
    return [
        f"the base has {before:,} tokens and the run {after:,}: before PeftModel.from_pretrained, "
        f"call resize_token_embeddings({after}) of the base; peft's AutoPeftModel classes do so "
        "where the tokenizer in the folder has as many"
    ]
