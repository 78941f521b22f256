"""From what the engine has written to the JSON of OpenAI's API: whole answers and pieces of one."""

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from research.data.tokenizers import Tokenizer
from research.serve.asked import Asked
from research.serve.request import Alternatives, Completion
from research.serve.worker import Piece

_CONTEXT = 8  # tokens decoded before one, whose space or letter can depend on them
_REASON = {"eos": "stop", "stop": "stop", "length": "length"}


class Answers:
    """The answers to one request; `kind` is "completion" or "chat"."""

    def __init__(self, kind: str, asked: Asked, name: str, tokenizer: Tokenizer):
        self._kind, self._asked, self._tokenizer = kind, asked, tokenizer
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self._offsets: dict[int, int] = {}  # where each text's next token begins in it
        # Where calls are looked for: each text, and how many characters and calls of it are told.
        self._read = [["", 0, 0] for _ in asked.requests]
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
        }

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The answer that is sent at once."""
        kind = "chat.completion" if self._kind == "chat" else "text_completion"
        copies, kept = self._asked.copies, self._asked.kept
        firsts = range(0, len(completions), copies)
        given = [one for at in firsts for one in _likeliest(completions[at : at + copies], kept)]
        choices = [self._choice(index, one) for index, one in enumerate(given)]
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(completions)}

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with: the role that speaks, or the prompts that are to be echoed."""
        if self._kind == "chat":
            delta = {"role": "assistant", "content": ""}
            blank = {"delta": delta, "logprobs": None, "finish_reason": None}
            count = len(self._asked.requests)
            return [self._event({"index": index, **blank}) for index in range(count)]
        return []

    def piece(self, piece: Piece) -> dict[str, Any]:
        """What a stream sends of a text's next piece."""
        done = piece.completion
        delta, called = self._delta(piece)
        shared = {
            "logprobs": self._logprobs(piece.index, done, piece.since),
            "finish_reason": self._reason(done, called),
        }
        if self._kind == "chat":
            return self._event({"index": piece.index, "delta": delta, **shared})
        # The first piece is the one before which nothing was told.
        prompt = self._prompt(piece.index) if self._asked.echo and not piece.since else ""
        return self._event({"index": piece.index, "text": prompt + piece.text, **shared})

    def closing(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """What a stream ends with, where its usage was asked for."""
        if not self._asked.usage:
            return []
        return [{**self._event(), "usage": self.usage(completions)}]

    def usage(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Tokens of the prompts, each once, and of all that was written."""
        firsts = completions[:: self._asked.copies]
        prompt = sum(len(one.prompt_ids) for one in firsts)
        written = sum(len(one.token_ids) for one in completions)
        found = sum(one.cached_tokens for one in firsts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": found},
        }

    def _event(self, *choices: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._kind == "chat" else "text_completion"
        return {**self._head, "object": kind, "choices": list(choices)}

    def _delta(self, piece: Piece) -> tuple[dict[str, Any], bool]:
        """(what a stream of an answer gets new, whether the answer has calls of tools)."""
        if self._asked.tools is None:
            return {"content": piece.text} if piece.text else {}, False
        read = self._read[piece.index]
        read[0] += piece.text
        content, calls = self._calls(read[0], piece.completion.finish != "")
        new, read[1] = content[read[1] :], max(read[1], len(content))
        fresh, read[2] = calls[read[2] :], len(calls)
        delta: dict[str, Any] = {"content": new} if new else {}
        if fresh:
            first = len(calls) - len(fresh)
            delta["tool_calls"] = [{"index": first + n, **one} for n, one in enumerate(fresh)]
        return delta, bool(calls)

    def _calls(self, text: str, ended: bool = True) -> tuple[str, list[dict[str, Any]]]:
        """(what is no call, the calls of tools) of an answer so far."""
        tools = self._asked.tools
        if tools is None:
            return text, []
        content, calls = tools.form.split(text, ended)
        return content, [
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in (calls if tools.several else calls[:1])
        ]

    def _reason(self, done: Completion, called: bool) -> str | None:
        reason = _REASON.get(done.finish, done.finish) or None
        return "tool_calls" if called and reason == "stop" else reason

    def _choice(self, index: int, done: Completion) -> dict[str, Any]:
        content, calls = self._calls(done.text)
        shared = {
            "index": index,
            "logprobs": self._logprobs(index, done),
            "finish_reason": self._reason(done, bool(calls)),
        }
        if self._kind == "chat":
            message = {"role": "assistant", "content": content or None if calls else content}
            return {"message": message | ({"tool_calls": calls} if calls else {}), **shared}
        prompt = self._prompt(index) if self._asked.echo else ""
        return {"text": prompt + done.text, **shared}

    def _prompt(self, index: int) -> str:
        """The text of a prompt that is echoed."""
        prompt = self._asked.requests[index // self._asked.kept * self._asked.copies].prompt
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(list(prompt))

    def _logprobs(self, index: int, done: Completion, since: int = 0) -> dict[str, Any] | None:
        """Log-probabilities of a text's tokens from number `since` on, in the form of the
        endpoint."""
        if self._asked.logprobs is None:
            return None
        ids, logprobs = list(done.token_ids[since:]), list(done.logprobs[since:])
        tops: list[Alternatives | None] = list(done.alternatives[since:]) or [()] * len(ids)
        before = [*done.prompt_ids, *done.token_ids[:since]]
        if self._kind == "chat":
            told = [self._token(*one) for one in zip(self._texts(before, ids), logprobs)]
            for one, top in zip(told, tops):
                one["top_logprobs"] = [self._token(self._text(i), p) for i, p in top or ()]
            return {"content": told, "refusal": None}
        if self._asked.echo and not since:
            # The first token has nothing before it by which it could be likely.
            ids, before = before + ids, []
            logprobs = [None, *done.prompt_logprobs, *logprobs]
            of_prompt = done.prompt_alternatives or ((),) * (len(done.prompt_ids) - 1)
            tops = [None, *of_prompt, *tops]
        texts = self._texts(before, ids)
        offset, offsets = self._offsets.get(index, 0) if since else 0, []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        ranked = [None if top is None else self._ranked(top) for top in tops]
        return {
            "tokens": texts,
            "token_logprobs": list(map(_finite, logprobs)),
            "top_logprobs": ranked,
            "text_offset": offsets,
        }

    def _ranked(self, top: Alternatives) -> dict[str, float]:
        """The likeliest tokens by their texts; of two with one text, as halves of letters have, the
        likelier."""
        ranked: dict[str, float] = {}
        for token_id, logprob in top:
            ranked.setdefault(self._text(token_id), _finite(logprob))
        return ranked

    def _texts(self, before: list[int], ids: list[int]) -> list[str]:
        """The text of each token, which joined are that of all but for halves of letters."""
        every, texts = before + ids, []
        for place in range(len(before), len(every)):
            context = every[max(0, place - _CONTEXT) : place]
            start = len(self._tokenizer.decode(context)) if context else 0
            texts.append(self._tokenizer.decode([*context, every[place]])[start:])
        return texts

    def _text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id])

    def _token(self, text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _likeliest(texts: Sequence[Completion], count: int) -> list[Completion]:
    """The texts with the highest log-probability a token, the likeliest first; all of them as they
    are where so many are wanted."""
    if len(texts) == count:
        return list(texts)
    mean = lambda one: sum(map(_finite, one.logprobs)) / max(1, len(one.logprobs))
    return sorted(texts, key=mean, reverse=True)[:count]


def _finite(logprob: float | None) -> float | None:
    """A log-probability as JSON can hold it: broken weights give none that is a number."""
    return logprob if logprob is None or math.isfinite(logprob) else -9999.0
