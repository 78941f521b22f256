"""Texts that a model writes for prompts, compared with references."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import Record, read_records, slices_of, text_of
from research.evals.text_metrics import check_metrics, corpus_values, score
from research.infer.sampling import SamplingConfig

_REFERENCES = (
    *("answer", "answers", "reference", "references", "target", "targets", "summary"),
    *("highlights", "output", "completion", "ideal"),
)


@dataclass(frozen=True)
class GenerationConfig:
    """data         a file of records, or a row of `research.evals.packaged.PACKAGED`
    prompt       see `research.evals.asked.Asked`, as `chat` and `system`
    reference    the column of the reference, a text or a list of texts, "" for the one there is of
                 "answer", "reference", "target", "summary" and the like
    metrics      rows of `research.evals.text_metrics.METRICS`
    max_tokens   most tokens of a text
    stop         strings that end a text
    temperature  0 takes the likeliest token
    shots        the first so many records are examples with their answers, and are not asked
    limit        how many records are read, 0 for all
    slices       columns of the data whose values are groups of items
    lead         the column of an article, whose first three sentences are scored too
    seed         0 takes the first records, another number draws them
    """

    data: str = ""
    prompt: str = ""
    reference: str = ""
    lead: str = ""
    metrics: tuple[str, ...] = ("exact_match", "f1")
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    shots: int = 0
    limit: int = 0
    chat: bool = False
    system: str = ""
    slices: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of prompts and references")
        for name in ("shots", "limit", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        check_metrics(self.metrics)
        Asked(self.prompt, self.chat, self.system)
        SamplingConfig(
            temperature=self.temperature, max_tokens=self.max_tokens, stop=tuple(self.stop)
        )


@dataclass(frozen=True)
class Task:
    """A prompt and the texts that would be right."""

    id: str
    prompt: str
    references: tuple[str, ...]
    slices: tuple[tuple[str, str], ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class Generation(Evaluation):
    """One text for each prompt, by default of the likeliest tokens, by the metrics' names, and

    length     tokens of a text
    truncated  share of texts that ended at the limit of tokens
    lead3_M    a metric M of the article's first three sentences, a summary that is hard to beat
               (arXiv:1704.04368, section 6.1), and gain_M, by how much the written text has more
    """

    tasks: Sequence[Task]
    metrics: Sequence[str]
    asked: Asked = Asked()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    examples: Sequence[Task] = ()

    config = GenerationConfig

    @property
    def main(self) -> str:  # type: ignore[override]
        """The first number of the first metric."""
        name = self.metrics[0]
        return "rougeL" if name == "rouge" else name

    @classmethod
    def make(cls, config: GenerationConfig, data: RunData) -> "Generation":
        """ValueError for data that cannot be read, and for an encoder, which writes nothing."""
        if data.model_kind == "encoder":
            raise ValueError("the model is an encoder, which writes no text; take a decoder")
        asked = Asked(config.prompt, config.chat, config.system)
        read = read_tasks(config)
        if len(read) <= config.shots:
            raise ValueError(f"shots={config.shots} leaves no prompt of {len(read)}; set fewer")
        sampling = SamplingConfig(
            temperature=config.temperature, max_tokens=config.max_tokens, stop=tuple(config.stop)
        )
        return cls(read[config.shots :], config.metrics, asked, sampling, read[: config.shots])

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a prompt."""
        shown = [(task.prompt, f" {task.references[0]}") for task in self.examples]
        prompts = [task.prompt for task in self.tasks]
        texts = write(opened, self.asked, prompts, self.sampling, shown)
        for task, text in zip(self.tasks, texts):
            written = text.text.strip()
            totals = score(self.metrics, written, task.references)
            if task.lead:
                totals |= _beyond_lead(totals, score(self.metrics, task.lead, task.references))
            totals["length"] = (float(len(text.token_ids)), 1.0)
            totals["truncated"] = (float(text.finish == "length"), 1.0)
            told = {"prompt": task.prompt, "written": written}
            told["answer"] = " | ".join(task.references)
            yield Item(task.id, totals, told, dict(task.slices))

    def values(self, totals: Totals) -> dict[str, float]:
        """Means over texts, and what a metric makes of the whole corpus."""
        return {**super().values(totals), **corpus_values(self.metrics, totals)}


def _beyond_lead(written: Totals, lead: Totals) -> Totals:
    """The totals of the lead, and those of what was written less those."""
    totals: Totals = {}
    for name, (value, count) in lead.items():
        if "/" not in name:
            totals[f"lead3_{name}"] = (value, count)
            totals[f"gain_{name}"] = (written[name][0] - value, count)
    return totals


def read_tasks(config: GenerationConfig, needed: bool = True) -> list[Task]:
    """The prompts of the data, those of the examples first. ValueError for a record without a
    reference where one is `needed`."""
    asked = Asked(config.prompt, config.chat, config.system)
    tasks = []
    limit = config.limit and config.limit + config.shots
    for id, record in read_records(config.data, limit, config.seed or None):
        where = f"record {id} of {config.data}"
        references = _references(record, config.reference, where, needed)
        slices = tuple(slices_of(record, config.slices, where).items())
        lead = _lead(text_of(record, (config.lead,), where)) if config.lead else ""
        tasks.append(Task(id, asked.question(record, where), references, slices, lead))
    return tasks


def _lead(article: str) -> str:
    """The first three sentences of an article, as far as full stops tell."""
    return " ".join(re.split(r"(?<=[.!?])\s+", article.strip())[:3])


def _references(record: Record, column: str, where: str, needed: bool) -> tuple[str, ...]:
    """The references of a record: a text, a number, a list, or SQuAD's {"text": [...]}."""
    names = (column,) if column else _REFERENCES
    value = next((record[name] for name in names if record.get(name) is not None), None)
    if value is None and not needed:
        return ()
    if isinstance(value, dict):
        value = value.get("text")
    found = value if isinstance(value, list) else [value]
    found = [str(one) if isinstance(one, int | float) else one for one in found]
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(
            f"{where} has no reference under {' or '.join(names)}: a text or a list of texts; its "
            f"fields are {', '.join(record)}"
        )
    return tuple(found)
