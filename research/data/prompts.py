"""Prompts to continue, each with the record that a reward is computed from."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from research.data.census import Census
from research.data.chat import TRAINING_DAY, end_of_turn, render_chat
from research.data.chat_sandbox import ChatRefused
from research.data.conversations import checked, plain
from research.data.documents import Documents, digest
from research.data.places import places
from research.data.tokenizers import Tokenizer
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions

# Columns that rewards read, beside the prompt.
OPTIONAL = ("answer", "pattern", "tests")
_ANSWER = {"role": "assistant", "content": "."}  # what a conversation cannot be without


def read_prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"prompt": a text, or messages as JSON; "record": JSON of all columns by our names}.

    The prompt is a text or a list of messages {"role", "content"}, of which the last is not the
    assistant's. ValueError for any other value, for a message without text, and for a record with
    half a surrogate pair.
    """
    # Columns are those of the first record, and others may have more.
    named = {**{name: name for name in OPTIONAL}, **columns}
    record = {name: plain(row[column]) for name, column in named.items() if column in row}
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        if not prompt or not all(isinstance(m, dict) and "role" in m for m in prompt):
            raise ValueError("its prompt is a list, wanted messages {'role', 'content'}")
        if prompt[-1]["role"] == "assistant":
            raise ValueError("its last message is the assistant's, so nothing is left to write")
        checked([*prompt, _ANSWER])  # refuses what is no message, as of conversations
    elif prompt is None:
        raise ValueError("its prompt is missing or null, wanted text or messages")
    elif not isinstance(prompt, str):
        raise ValueError(f"its prompt is {type(prompt).__name__}, wanted text or messages")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    spelt = json.dumps(record, ensure_ascii=False)
    return {"prompt": text, "record": spelt.encode("utf-8").decode("utf-8")}


class PromptEncoder:
    """Encodes the prompts of records, given as JSON: a text begins with the token that begins
    texts; messages are written by the chat template, with the beginning of an answer. Equal
    `fingerprint`s mean equal ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self._first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        written_by = [tokenizer.chat_template, tokenizer.templates, tokenizer.template_variables]
        self.fingerprint = digest(
            "prompts", tokenizer.fingerprint, json.dumps(written_by, sort_keys=True)
        )

    def encode_batch(self, texts: list[str]) -> list[list[int] | ValueError]:
        """The ids of each prompt, [] for an empty text. ChatRefused, a ValueError, in the place of
        messages that the template rejects."""
        return [self._encode(json.loads(text)["prompt"]) for text in texts]

    def _encode(self, prompt: str | list[dict[str, Any]]) -> list[int] | ValueError:
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt)
            return ids if not ids or ids[:1] == [self._first] else [self._first, *ids]
        try:
            # The day of training, and not today's: a run that goes on tomorrow reads the same.
            return self._tokenizer.encode(render_chat(self._tokenizer, prompt, now=TRAINING_DAY))
        except ChatRefused as error:
            return error


class Prompts:
    """Windows of one prompt each. `[i]` is {"prompt": int32 [n], its token ids; "record": uint8,
    the record as JSON in UTF-8}; the record's "path" names its place in the data.

    `store` has the prompts' tokens (`PromptEncoder`), read from the cache at later starts. Empty
    prompts are left out, and counted.
    """

    def __init__(self, documents: Documents, store: TokenStore, length: int):
        self.stores, self._documents = (store,), documents
        self._rows = np.flatnonzero(np.diff(store.offsets) > 0)
        self._places = places(documents, store)
        empty = np.flatnonzero(np.diff(store.offsets) == 0)
        first = documents[int(self._places[empty[0]])]["path"] if len(empty) else ""
        self.census = Census("prompts", len(documents), length, empty=len(empty), first_empty=first)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row, [store] = self._rows[index], self.stores
        ids = np.asarray(store.ids[store.offsets[row] : store.offsets[row + 1]], np.int32)
        document = self._documents[int(self._places[row])]
        record = json.loads(document["record"]) | {"path": document["path"]}
        return {"prompt": ids, "record": np.frombuffer(json.dumps(record).encode(), np.uint8)}

    def longest(self) -> tuple[int, str]:
        """(most tokens of a prompt, the path of its record)."""
        [store] = self.stores
        row = int(np.argmax(np.diff(store.offsets)))
        path = self._documents[int(self._places[row])]["path"]
        return int(store.offsets[row + 1] - store.offsets[row]), path


def prompt_windows(documents: Documents, options: WindowOptions) -> Prompts:
    """The prompts of the documents, in their order."""
    store = options.tokens(documents, "record", PromptEncoder(options.tokenizer))
    return Prompts(documents, store, options.length)


def record_of(window: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The record of a window of `Prompts`."""
    return json.loads(window["record"].tobytes())


def answer_ends(tokenizer: Tokenizer, records: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """The token with which the chat template ends an answer, if any of the prompts are messages:
    models of some families end texts with another one. () for texts, and without such a token."""
    if tokenizer.chat_template is None or not any(map(has_messages, records)):
        return ()
    end = end_of_turn(tokenizer)
    return () if end is None else (end,)


def has_messages(record: Mapping[str, Any]) -> bool:
    """Whether the prompt of a record is messages, and no text."""
    return not isinstance(record["prompt"], str)
