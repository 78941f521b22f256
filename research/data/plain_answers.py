"""Prompts with their answers for a tokenizer without a chat template, such as a base model's: the
answer follows the prompt as it is written, and ends the text."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.data.chat import ChatEncoder, masked
from research.data.chat_sandbox import ChatRefused
from research.data.documents import digest
from research.data.tokenizers import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class PlainAnswers:
    """Encodes a prompt and an answer, each a text: the token that begins texts, the prompt, the
    answer, the token that ends texts. No space is put between the two. The answer and the end are
    the assistant's. Equal `fingerprint`s mean equal ids and masks."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.fingerprint = digest("plain answers", tokenizer.fingerprint)

    def encode_batch(
        self, conversations: Sequence[Messages], tools: Sequence[Sequence[Any]] = ()
    ) -> list[tuple[list[int], list[bool]] | ChatRefused]:
        """(ids, for each whether it is the answer's) of each conversation, as `ChatEncoder` gives
        them; the error for one that is more than a question and an answer."""
        tools = tools or [()] * len(conversations)
        plain = [_is_plain(one, its) for one, its in zip(conversations, tools)]
        texts = [[m["content"] for m in one] for one, fits in zip(conversations, plain) if fits]
        aligned = iter(self._tokenizer.align_batch(["".join(both) for both in texts]))
        spans = iter([(len(prompt), len(prompt) + len(answer)) for prompt, answer in texts])
        return [self._framed(*next(aligned), next(spans)) if fits else _refused() for fits in plain]

    def _framed(
        self, ids: list[int], places: list[tuple[int, int]], span: tuple[int, int]
    ) -> tuple[list[int], list[bool]]:
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        # As texts of pretraining begin: with the end of the one before, where there is no bos.
        first = eos if bos is None else bos
        ids, said = masked(ids, places, [span])
        return [first, *ids, eos], [False, *said, True]


def answer_encoder(tokenizer: Tokenizer) -> ChatEncoder | PlainAnswers:
    """The encoder of prompts and answers: by the chat template, or plain texts without one."""
    return PlainAnswers(tokenizer) if tokenizer.chat_template is None else ChatEncoder(tokenizer)


def _is_plain(messages: Messages, tools: Sequence[Any]) -> bool:
    roles = [message["role"] for message in messages]
    return roles == ["user", "assistant"] and not tools and not messages[1].get("tool_calls")


def _refused() -> ChatRefused:
    return ChatRefused(
        "the tokenizer has no chat template, and without one a record is a prompt and an answer, "
        "each a text; give the file of a template with config.data.chat_template"
    )
