"""Questions that are answered once by the likeliest tokens and several times by lot: what tells
answers that a model makes up from those it knows."""

from collections.abc import Sequence
from dataclasses import dataclass

from research.evals.asked import Asked, write
from research.evals.evaluation import Opened, RunData
from research.evals.generation import GenerationConfig, Task, read_tasks
from research.evals.text_metrics import score
from research.infer.decode import Generation
from research.infer.sampling import SamplingConfig

# Metrics of overlap count long answers as right, and by them scores look better than they are
# (arXiv:2508.08285).
_TRUTHS = ("exact_match", "contains", "numeric")


@dataclass(frozen=True)
class SampledConfig(GenerationConfig):
    """As `research.evals.generation.GenerationConfig`, and

    samples      answers by lot to each question
    temperature  of those; the answer that is judged is that of the likeliest tokens
    metrics      one of exact_match, contains and numeric, by which that answer is right

    By default 50 of Natural Questions' open ones, drawn by a seed, after five examples.
    """

    data: str = "nq_open"
    prompt: str = "Q: {question}?\nA:"
    metrics: tuple[str, ...] = ("exact_match",)
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 16
    temperature: float = 1.0
    shots: int = 5
    limit: int = 50
    seed: int = 1
    samples: int = 5

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2 or self.temperature == 0:
            raise ValueError(
                f"samples={self.samples} at temperature={self.temperature} must be two or more at "
                "a temperature above 0, as equal answers say nothing"
            )
        if len(self.metrics) != 1 or self.metrics[0] not in _TRUTHS:
            raise ValueError(f"metrics={self.metrics} must be one of {', '.join(_TRUTHS)}")


@dataclass(frozen=True)
class Answered:
    """A question, the answer that is judged, whether it is right, and those by lot."""

    task: Task
    answer: Generation
    right: float
    samples: tuple[Generation, ...]

    @property
    def texts(self) -> dict[str, str]:
        """What a reader sees."""
        return {
            "prompt": self.task.prompt,
            "written": self.answer.text.strip(),
            "answer": " | ".join(self.task.references),
            "samples": " | ".join(one.text.strip() for one in self.samples),
        }


@dataclass(frozen=True)
class Questions:
    """What is asked, and how."""

    tasks: Sequence[Task]
    examples: Sequence[Task] = ()
    asked: Asked = Asked()
    sampling: SamplingConfig = SamplingConfig(max_tokens=16, stop=("\n",))
    samples: int = 5
    metric: str = "exact_match"

    @classmethod
    def make(cls, config: SampledConfig, data: RunData) -> "Questions":
        """ValueError for data that cannot be read, and for an encoder, which writes nothing."""
        if data.model_kind == "encoder":
            raise ValueError("the model is an encoder, which writes no text; take a decoder")
        read = read_tasks(config)
        if len(read) <= config.shots:
            raise ValueError(f"shots={config.shots} leaves no question of {len(read)}; set fewer")
        sampling = SamplingConfig(
            temperature=config.temperature, max_tokens=config.max_tokens, stop=tuple(config.stop)
        )
        asked = Asked(config.prompt, config.chat, config.system)
        examples, tasks = read[: config.shots], read[config.shots :]
        return cls(tasks, examples, asked, sampling, config.samples, config.metrics[0])

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The examples as they stand before a question."""
        return [(task.prompt, f" {task.references[0]}") for task in self.examples]

    def answer(self, opened: Opened) -> list[Answered]:
        """All questions answered, in order."""
        prompts = [task.prompt for task in self.tasks]
        likeliest = SamplingConfig(
            temperature=0.0, max_tokens=self.sampling.max_tokens, stop=self.sampling.stop
        )
        answers = write(opened, self.asked, prompts, likeliest, self.shown)
        repeated = [prompt for prompt in prompts for _ in range(self.samples)]
        samples = write(opened, self.asked, repeated, self.sampling, self.shown)
        found = []
        for at, (task, answer) in enumerate(zip(self.tasks, answers)):
            totals = score((self.metric,), answer.text.strip(), task.references)
            drawn = samples[at * self.samples : (at + 1) * self.samples]
            found.append(Answered(task, answer, totals[self.metric][0], tuple(drawn)))
        return found
