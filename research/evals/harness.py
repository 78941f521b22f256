"""A task of EleutherAI's lm-evaluation-harness as an evaluation (extra `harness`)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.harness_model import as_lm, check_installed

# Metrics of lm-eval that an item gives as (log-likelihood, size): their exponential, or bits.
_WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class HarnessConfig:
    """task    its name, such as "gsm8k"
    folder  of task files (.yaml) to find it in, "" for those of lm-eval, whose data it downloads
    shots   examples before each question, -1 for as many as the task says
    limit   how many questions are asked, 0 for all
    chat    whether prompts are messages of a chat
    """

    task: str = ""
    folder: str = ""
    shots: int = -1
    limit: int = 0
    chat: bool = False

    def __post_init__(self):
        if not self.task:
            raise ValueError("task is not set; set it to a task of lm-eval, such as 'gsm8k'")
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise ValueError(f"folder={self.folder} is no folder of task files")
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must not be negative")


@dataclass(frozen=True)
class Harness(Evaluation):
    """The metrics of a task that are numbers, under lm-eval's names; of a log-likelihood, the
    perplexities and bits of all items together."""

    settings: HarnessConfig

    config = HarnessConfig

    @classmethod
    def make(cls, config: HarnessConfig, data: RunData) -> "Harness":
        """ValueError without lm-eval, and for a model that is no decoder."""
        check_installed()
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}, and lm-eval asks a decoder")
        return cls(config)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a document. ValueError for a task that there is not, or that is a group."""
        by_document: dict[int, list[dict[str, Any]]] = {}
        for sample in self._samples(opened):
            by_document.setdefault(sample["doc_id"], []).append(sample)
        for number, samples in sorted(by_document.items()):
            totals: Totals = {}
            # A task may read an answer in several ways, its filters.
            for sample in samples:
                filter = "" if sample["filter"] == "none" else f",{sample['filter']}"
                for name in sample["metrics"]:
                    totals |= _total(name, filter, sample[name])
            doc = {name: str(value)[:500] for name, value in samples[0]["doc"].items()}
            doc |= {"target": str(samples[0]["target"]), "written": _written(samples[0])}
            yield Item(str(number), totals, doc)

    def _samples(self, opened: Opened) -> list[dict[str, Any]]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        c = self.settings
        folder = str(Path(c.folder).expanduser()) if c.folder else None
        # Without those of lm-eval, which take ten seconds to list.
        tasks = TaskManager(include_path=folder, include_defaults=folder is None)
        if c.task not in tasks.all_tasks:
            raise ValueError(
                f"lm-eval has no task {c.task!r}" + (f" in {folder}" if folder else "")
            )
        found = lm_eval.simple_evaluate(
            model=as_lm(opened),
            tasks=[c.task],
            task_manager=tasks,
            num_fewshot=None if c.shots < 0 else c.shots,
            limit=c.limit or None,
            apply_chat_template=c.chat,
            # Intervals are computed here, over the same items.
            bootstrap_iters=0,
        )
        if c.task not in found["samples"]:
            names = ", ".join(found["samples"])
            raise ValueError(f"{c.task} is a group of tasks; take one of {names}")
        return found["samples"][c.task]

    def values(self, totals: Totals) -> dict[str, float]:
        """The numbers by name, as the class describes them."""
        values = super().values(totals)
        for name in _WEIGHTED:
            if name in values:
                bits = name == "bits_per_byte"
                values[name] = values[name] / math.log(2) if bits else math.exp(values[name])
        return values


def _total(name: str, filter: str, value: Any) -> Totals:
    """The total of a metric of one document, {} for what is no number."""
    if isinstance(value, bool | int | float):
        return {f"{name}{filter}": (float(value), 1.0)}
    if name in _WEIGHTED and len(value) == 2:
        return {name: (-float(value[0]), float(value[1]))}
    return {}


def _written(sample: Mapping[str, Any]) -> str:
    """What the model has answered, as text."""
    return str(sample.get("filtered_resps", ""))[:500]
