"""A judge: another model, behind an address that speaks as OpenAI's, grades what a model writes."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.generation import GenerationConfig, Task, read_tasks
from research.infer.sampling import SamplingConfig

# After the single-answer grading of MT-Bench (arXiv:2306.05685, figure 6).
_INSTRUCTION = (
    "You are an impartial judge. Rate the quality of the answer to the question below: whether it "
    "is correct, helpful, relevant and as detailed as asked. Explain your rating in a few "
    'sentences, then give it on a scale of 1 to 10 in exactly this form: "[[rating]]", for '
    'example "[[5]]".'
)
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_TRIES, _SECONDS = 3, 120

Ask = Callable[[str], str]  # the judge's answer to a prompt


@dataclass(frozen=True)
class JudgeConfig:
    """address     of the judge, such as http://127.0.0.1:8000/v1; without one nothing is judged
    model       its name there
    key         the environment variable that has its key; "" sends none
    data        a file of records with a prompt and perhaps a reference, which the judge is shown
    prompt      see `research.evals.asked.Asked`, as `chat` and `system`
    criteria    what the judge is told, "" for MT-Bench's words
    max_tokens  most tokens of a text
    limit       how many records are read, 0 for all
    threads     requests at once
    """

    address: str = ""
    model: str = ""
    key: str = ""
    data: str = ""
    prompt: str = ""
    criteria: str = ""
    max_tokens: int = 256
    limit: int = 0
    threads: int = 4
    chat: bool = False
    system: str = ""

    def __post_init__(self):
        if not self.address.startswith(("http://", "https://")) or not self.model:
            raise ValueError(
                f"address={self.address!r} and model={self.model!r}: give the address of a judge "
                "that speaks as OpenAI's, such as http://127.0.0.1:8000/v1, and its model; what "
                "the model writes is sent there"
            )
        if self.key and self.key not in os.environ:
            raise ValueError(f"key={self.key} is no environment variable; export it")
        if self.threads < 1:
            raise ValueError(f"threads={self.threads} must be positive")
        self.tasks_config()

    def tasks_config(self) -> GenerationConfig:
        """The prompts and how they are asked."""
        return GenerationConfig(
            data=self.data,
            prompt=self.prompt,
            max_tokens=self.max_tokens,
            limit=self.limit,
            chat=self.chat,
            system=self.system,
        )


@dataclass(frozen=True)
class Judge(Evaluation):
    """The ratings of one text for each prompt.

    rating   mean from 1 to 10, over the texts that have one
    rated    share of texts of which the judge's answer has a rating
    length   characters of a text; judges tend to prefer long ones (arXiv:2306.05685, section 3.3)

    A judge errs in ways that no interval here shows.
    """

    tasks: Sequence[Task]
    ask: Ask
    criteria: str = _INSTRUCTION
    asked: Asked = Asked()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    threads: int = 4

    config = JudgeConfig
    main = "rating"

    @classmethod
    def make(cls, config: JudgeConfig, data: RunData) -> "Judge":
        """ValueError for data that cannot be read, and for an encoder, which writes nothing."""
        if data.model_kind == "encoder":
            raise ValueError("the model is an encoder, which writes no text; take a decoder")
        tasks = read_tasks(config.tasks_config(), needed=False)
        return cls(
            tasks,
            ask_at(config.address, config.model, os.environ.get(config.key, "")),
            config.criteria or _INSTRUCTION,
            Asked(config.prompt, config.chat, config.system),
            SamplingConfig(temperature=0.0, max_tokens=config.max_tokens),
            config.threads,
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a prompt. ValueError for a judge that does not answer."""
        prompts = [task.prompt for task in self.tasks]
        texts = [one.text.strip() for one in write(opened, self.asked, prompts, self.sampling)]
        asked = [self._question(task, text) for task, text in zip(self.tasks, texts)]
        with ThreadPoolExecutor(self.threads) as pool:
            answers = list(pool.map(self.ask, asked))
        for task, text, answer in zip(self.tasks, texts, answers):
            rating = rating_of(answer)
            totals: Totals = {} if rating is None else {"rating": (rating, 1.0)}
            totals["rated"] = (float(rating is not None), 1.0)
            totals["length"] = (float(len(text)), 1.0)
            yield Item(task.id, totals, {"prompt": task.prompt, "written": text, "judge": answer})

    def _question(self, task: Task, text: str) -> str:
        parts = [self.criteria, f"[Question]\n{task.prompt}"]
        if task.references:
            parts.append(f"[Reference answer]\n{task.references[0]}")
        return "\n\n".join([*parts, f"[The answer to rate]\n{text}"])


def rating_of(answer: str) -> float | None:
    """The last rating from 1 to 10 that an answer has, None without one."""
    found = [float(one) for one in _RATING.findall(answer)]
    return found[-1] if found and 1 <= found[-1] <= 10 else None


def ask_at(address: str, model: str, key: str) -> Ask:
    """A function that asks the model at an address, at temperature 0."""
    url = f"{address.rstrip('/')}/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"

    def _ask(prompt: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 512,
        }
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        for attempt in range(1, _TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                    return _content(json.load(answer))
            except (OSError, ValueError, LookupError, TypeError) as error:
                # A refusal stays one; a server that is busy, or away, may come back.
                refused = isinstance(error, urllib.error.HTTPError) and error.code in range(
                    400, 429
                )
                if refused or attempt == _TRIES:
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise ValueError(
                        f"the judge at {url} does not answer ({reason}); start it, or leave the "
                        "evaluation out"
                    ) from None
                time.sleep(2.0**attempt)
        raise AssertionError

    return _ask


def _content(answer: Any) -> str:
    content = answer["choices"][0]["message"]["content"]
    return content if isinstance(content, str) else ""
