"""Prompts to continue, each with the record that a reward is computed from."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.census import Census
from research.data.chat import render_chat
from research.data.conversations import plain, with_text
from research.data.documents import Documents, UnreadableRecord
from research.data.windows import WindowOptions

# Columns that rewards read, beside the prompt.
OPTIONAL = ("answer", "pattern", "tests")


def read_prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"prompt": a text, or messages as JSON; "record": JSON of all columns by our names}.

    The prompt is a text or a list of messages {"role", "content"}, of which the last is not the
    assistant's. ValueError for any other value, and for a part of a content that is no text.
    """
    record = {name: plain(row[column]) for name, column in columns.items() if column in row}
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        if not prompt or not all(isinstance(m, dict) and "role" in m for m in prompt):
            raise ValueError("its prompt is a list, wanted messages {'role', 'content'}")
        if prompt[-1]["role"] == "assistant":
            raise ValueError("its last message is the assistant's, so nothing is left to write")
        for number, message in enumerate(prompt):
            with_text(number, message)  # refuses parts that are no text
    elif not isinstance(prompt, str):
        raise ValueError(f"its prompt is {type(prompt).__name__}, wanted text or messages")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    return {"prompt": text, "record": json.dumps(record, ensure_ascii=False)}


class Prompts:
    """Windows of one prompt each. `[i]` is {"prompt": int32 [n], its token ids; "record": uint8,
    the record as JSON in UTF-8}; the record's "path" names its place in the data.

    A text begins with the token that begins texts; messages are written by the tokenizer's chat
    template, with the beginning of an answer. Empty prompts are left out, and counted.
    """

    def __init__(self, documents: Documents, options: WindowOptions):
        tokenizer = options.tokenizer
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self._prompts, empty = [], 0
        self.bad_records: list[str] = []
        for index in range(len(documents)):
            try:
                document = documents[index]
            except UnreadableRecord as error:
                self.bad_records.append(str(error))
                if len(self.bad_records) > options.max_bad_records:
                    raise ValueError(
                        f"{error}; mend it, or allow more with config.data.max_bad_records"
                    ) from None
                continue
            record = json.loads(document["record"]) | {"path": document["path"]}
            if isinstance(record["prompt"], str):
                ids = tokenizer.encode(record["prompt"])
                ids = ids if not ids or ids[:1] == [first] else [first, *ids]
            else:
                ids = tokenizer.encode(render_chat(tokenizer, record["prompt"]))
            if not ids:
                empty += 1
                continue
            self._prompts.append((np.array(ids, np.int32), json.dumps(record).encode()))
        self.census = Census("prompts", len(documents), options.length, empty=empty)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ids, record = self._prompts[index]
        return {"prompt": ids, "record": np.frombuffer(record, np.uint8)}

    def longest(self) -> tuple[int, str]:
        """(most tokens of a prompt, the path of its record)."""
        ids, record = max(self._prompts, key=lambda prompt: len(prompt[0]))
        return len(ids), json.loads(record)["path"]


def prompt_windows(documents: Documents, options: WindowOptions) -> Prompts:
    """The prompts of the documents, in their order."""
    return Prompts(documents, options)


def record_of(window: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The record of a window of `Prompts`."""
    return json.loads(window["record"].tobytes())
