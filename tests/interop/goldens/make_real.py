"""What transformers computes with the real models: smollm2.json and minilm.json beside this file.

    python -m tests.interop.goldens.make_real SMOLLM2.gguf MINILM_FOLDER

Wants torch, transformers, gguf, llama-cpp-python; imports none of the project.
"""

import json
import sys
from pathlib import Path

from tests.parity import reference

WRITTEN = 32


def smollm2(path: Path) -> list[dict]:
    """A chat and a text in turn, with their ids and greedy continuations."""
    model, ids = reference.smollm2(path), reference.prompt_ids(path)
    half, rows = len(reference.CHATS), []
    for n in (0, 1, half, half + 1, half + 2):
        text = [*reference.CHATS, *reference.TEXTS][n]
        written, margin = reference.greedy(model, ids[n], WRITTEN)
        print(f"{text!r}: {len(written)} tokens, margin {margin:.1e}")
        rows.append({"text": text, "chat": n < half, "ids": ids[n], "greedy": written})
    return rows


def main(gguf: str, folder: str) -> None:
    vectors = reference.embeddings(Path(folder), reference.SENTENCES)
    cosines = (vectors @ vectors.T).tolist()
    found = {
        "smollm2": smollm2(Path(gguf)),
        "minilm": {"texts": reference.SENTENCES, "cosines": cosines},
    }
    for name, content in found.items():
        Path(__file__).with_name(f"{name}.json").write_text(
            json.dumps(content, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
