"""Programs that a model writes, run against tests: pass@k."""

import ast
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import Record, read_records, text_of
from research.infer.sampling import SamplingConfig
from research.posttrain.sandbox import Outcome, run_code

_FENCED = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)
# Where a function that was begun in the prompt has ended (arXiv:2107.03374, section 2.1).
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


@dataclass(frozen=True)
class CodeConfig:
    """data         a file of records, or a row of `research.evals.packaged.PACKAGED`: "prompt" and
                 "tests", or HumanEval's "prompt", "test" and "entry_point"
    samples      texts for a problem
    k            for which k pass@k is computed, each at most `samples`
    temperature  0 takes the likeliest token; several samples want one above
    top_p        see `research.infer.sampling.SamplingConfig`
    max_tokens   most tokens of a text
    stop         strings that end a text; in a chat none do
    seconds      of processor time for a program and its tests
    limit        how many records are read, 0 for all
    """

    data: str = ""
    prompt: str = ""
    samples: int = 1
    k: tuple[int, ...] = (1,)
    temperature: float = 0.0
    top_p: float = 0.95
    max_tokens: int = 384
    stop: tuple[str, ...] = _STOPS
    seconds: int = 5
    limit: int = 0
    chat: bool = False
    system: str = ""

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of prompts and tests")
        if self.samples < 1 or self.seconds < 1 or self.limit < 0:
            raise ValueError(
                f"samples={self.samples} and seconds={self.seconds} must be positive, and "
                f"limit={self.limit} not negative"
            )
        if not self.k or not all(1 <= one <= self.samples for one in self.k):
            raise ValueError(f"k={self.k} must be of 1 to samples={self.samples}")
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"samples={self.samples} at temperature 0 are all the same; set a temperature"
            )
        Asked(self.prompt, self.chat, self.system)
        SamplingConfig(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Problem:
    """The beginning of a program, and tests: Python that follows it and raises for what is
    wrong."""

    id: str
    prompt: str
    tests: str


@dataclass(frozen=True)
class Code(Evaluation):
    """Programs against their tests, in the sandbox of `research.posttrain.sandbox`.

    pass@k  the chance that one of k samples passes, without bias: 1 - C(n - c, k) / C(n, k) of n
            samples of which c pass (arXiv:2107.03374, equation 1)
    parsed  share of the programs that are Python
    """

    problems: Sequence[Problem]
    asked: Asked = Asked()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    samples: int = 1
    k: Sequence[int] = (1,)
    seconds: int = 5

    config = CodeConfig

    @property
    def main(self) -> str:  # type: ignore[override]
        """pass@k of the first k."""
        return f"pass@{self.k[0]}"

    @classmethod
    def make(cls, config: CodeConfig, data: RunData) -> "Code":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder goes on")
        asked = Asked(config.prompt, config.chat, config.system)
        problems = [
            _problem(id, record, asked, f"record {id} of {config.data}")
            for id, record in read_records(config.data, config.limit)
        ]
        sampling = SamplingConfig(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            stop=() if config.chat else tuple(config.stop),
        )
        return cls(problems, asked, sampling, config.samples, config.k, config.seconds)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a problem."""
        prompts = [one.prompt for one in self.problems for _ in range(self.samples)]
        texts = [text.text for text in write(opened, self.asked, prompts, self.sampling)]
        programs = [
            program(self.problems[at // self.samples].prompt, text) for at, text in enumerate(texts)
        ]
        outcomes = self.run_all(programs)
        for at, problem in enumerate(self.problems):
            chosen = slice(at * self.samples, (at + 1) * self.samples)
            yield self._item(problem, texts[chosen], programs[chosen], outcomes[chosen])

    def run_all(self, programs: Sequence[str]) -> list[Outcome]:
        """What became of each program, `samples` for each problem in order, with its tests."""
        sources = [
            f"{one}\n{self.problems[at // self.samples].tests}\n" for at, one in enumerate(programs)
        ]
        # Each waits for a process of its own.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda source: run_code(source, self.seconds), sources))

    def _item(
        self,
        problem: Problem,
        texts: Sequence[str],
        programs: Sequence[str],
        outcomes: Sequence[Outcome],
    ) -> Item:
        right = sum(outcome.passed for outcome in outcomes)
        totals: Totals = {f"pass@{k}": (pass_at(k, self.samples, right), 1.0) for k in self.k}
        totals["parsed"] = (float(sum(map(_parses, programs))), float(self.samples))
        reason = next((one.reason for one in outcomes if not one.passed), "")
        told = {"prompt": problem.prompt, "written": texts[0], "reason": reason}
        return Item(problem.id, totals, told)


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that k of `samples`, of which so many are right, have a right one.

    >>> round(pass_at(5, 10, 3), 5)
    0.91667
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def program(prompt: str, written: str) -> str:
    """The program that a model has written: the last fenced block, or what goes on from the prompt.
    A block that does not repeat the beginning gets it in front."""
    blocks = _FENCED.findall(written)
    if not blocks:
        return prompt + written
    # An answer of a chat defines the function anew; what it imports may stand in the prompt alone.
    begun = f"{prompt}    pass\n\n"
    return begun + blocks[-1] if _parses(begun) else blocks[-1]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _problem(id: str, record: Record, asked: Asked, where: str) -> Problem:
    prompt = asked.question(record, where)
    if "entry_point" not in record:
        return Problem(id, prompt, text_of(record, ("tests", "test"), where))
    # HumanEval's tests define check(candidate).
    return Problem(id, prompt, f"{record['test']}\ncheck({record['entry_point']})")
