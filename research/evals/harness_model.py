"""A model as EleutherAI's lm-evaluation-harness asks one: its three kinds of requests, and chats.

lm_eval.simple_evaluate(model=as_lm(opened), tasks=["boolq"])
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from research.data.chat import render_chat
from research.evals.evaluation import Opened
from research.evals.likelihood import encode_pair, log_likelihoods
from research.infer.conversation import answer_ends
from research.infer.sampling import SamplingConfig
from research.serve.batch import write

# What generation requests may say beside their stop strings; the rest of their keywords is of
# transformers and changes no result.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_TOKENS = 256  # of an answer, where a task sets no limit; lm-eval's own default


def check_installed() -> None:
    """ValueError without the package lm-eval."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("tasks of lm-eval need it; pip install '.[harness]'")


def as_lm(opened: Opened) -> Any:
    """A model as an `lm_eval.api.model.LM`. ValueError without lm-eval, for a model that is no
    decoder, and without a tokenizer."""
    check_installed()
    from lm_eval.api.model import LM

    return type("GraftLM", (Requests, LM), {})(opened)


class Requests:
    """The requests of `lm_eval.api.model.LM`, whose methods these are."""

    def __init__(self, opened: Opened):
        super().__init__()
        tokenizer, kind = opened.tokenizer, opened.model.config.kind
        if kind != "decoder" or tokenizer is None:
            without = " without one" if tokenizer is None else ""
            raise ValueError(
                f"lm-eval asks a decoder with a tokenizer, and the model is of kind {kind}{without}"
            )
        self._opened, self._tokenizer = opened, tokenizer
        self._chat = False

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(nats, whether all tokens are the likeliest) of each (context, continuation)."""
        pairs = [
            encode_pair(self._tokenizer, *one.args, self._opened.begins_texts) for one in requests
        ]
        return [(one.nats, one.greedy) for one in log_likelihoods(self._opened, pairs)]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The nats of each text, every token once, in windows of the harness's own."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        tokenizer = self._tokenizer
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        window, pairs, counts = self._opened.window, [], []
        for request in requests:
            ids = tokenizer.encode(request.args[0])
            parts = map(make_disjoint_window, get_rolling_token_windows(ids, first, window, 1))
            before = len(pairs)
            pairs += list(parts)
            counts.append(len(pairs) - before)
        found = iter(log_likelihoods(self._opened, pairs, window))
        return [sum(next(found).nats for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string of the request."""
        texts: dict[int, str] = {}
        groups: dict[SamplingConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(number)
        for config, numbers in groups.items():
            prompts = [self._prompt(requests[number].args[0]) for number in numbers]
            opened = self._opened
            written = write(opened.model, opened.params, self._tokenizer, prompts, config)
            texts |= {number: one.text for number, one in zip(numbers, written)}
        return [texts[number] for number in range(len(requests))]

    def _prompt(self, context: str) -> list[int]:
        """The ids of a context. A chat's template may have written the beginning of the text."""
        ids, begin = self._tokenizer.encode(context), self._tokenizer.bos_id
        if begin is None or not self._opened.begins_texts or ids[:1] == [begin]:
            return ids
        return [begin, *ids]

    def _sampling(self, keywords: Mapping[str, Any]) -> SamplingConfig:
        until = keywords.get("until") or []
        until = [until] if isinstance(until, str) else until
        fields = {name: keywords[name] for name in _SAMPLING if name in keywords}
        if not keywords.get("do_sample", bool(fields.get("temperature"))):
            fields["temperature"] = 0.0
        tokens = keywords.get("max_gen_toks") or keywords.get("max_new_tokens") or _TOKENS
        ends = self._opened.stop_ids
        if self._chat:
            ends = answer_ends(self._tokenizer, ends)
        return SamplingConfig(
            **fields,
            max_tokens=int(tokens),
            stop=tuple(one for one in until if one),
            stop_ids=ends,
            bos=False,
        )

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as the model's chat template writes them."""
        self._chat = True
        return render_chat(
            self._tokenizer, chat_history, add_generation_prompt=add_generation_prompt
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The source of the template, which names cached requests."""
        return str(self._tokenizer.chat_template or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """The fingerprint of the tokenizer, for the same purpose."""
        return self._tokenizer.fingerprint
