"""Calibration on multiple choice: whether a model that gives its choice 70% is right in 70%."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.evals.auroc import areas, risk_at, risk_coverage_area, tally
from research.evals.choices import Choices, ChoicesConfig, Question
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.reliability import (
    calibration_error,
    count,
    decomposition,
    equal_mass,
    equal_width,
    error_by_chance,
)
from research.evals.truthfulness import shares

# From 1/8 to 32, two to an octave: temperature scaling has one number and a flat optimum.
_TEMPERATURES = tuple(2.0 ** (step / 2) for step in range(-6, 11))


@dataclass(frozen=True)
class CalibrationConfig(ChoicesConfig):
    """The fields of `research.evals.choices.ChoicesConfig`; by default 200 questions of
    CommonsenseQA, drawn by a seed, and `limit=0` for all."""

    data: str = "commonsenseqa"
    prompt: str = ""
    limit: int = 200
    seed: int = 1


@dataclass(frozen=True)
class Calibration(Evaluation):
    """The confidence of a model in its choice, its likelihood's share of that of all choices,
    against how often it is right.

    acc, confidence     means: of what is right, and of the confidence
    ece, ece_mass       expected calibration error in bins of equal width and of equal mass
    ece_chance          what `ece` would be of a perfectly calibrated model, by the number of
                        questions alone
    brier               mean squared distance of the confidence from 1 (right) or 0 (wrong), which
                        is reliability - resolution + uncertainty + within (`reliability.py`)
    nll                 mean nats of the right choice
    auroc_confidence    how well the confidence tells right from wrong
    auroc_length        the same of the length of the chosen text, short ones being held for sure
    aurc, risk_at_80    errors when the least sure are withheld: the mean over coverages
                        (arXiv:1805.08206), and at a coverage of 80%
    temperature         what log-likelihoods are divided by for the least nll on one half
                        of the questions, which their ids choose
    ece_half, nll_half, ece_tempered, nll_tempered  on the other half: as it is, and divided
    """

    choices: Choices

    config = CalibrationConfig
    main = "brier"
    lower_is_better = True

    @classmethod
    def make(cls, config: CalibrationConfig, data: RunData) -> "Calibration":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        return cls(Choices.make(config, data))

    def notes(self) -> Sequence[str]:
        """How small sets mislead."""
        asked = len(self.choices.questions)
        if asked >= 1000:
            return ()
        return (
            f"{asked} questions: calibration errors of fewer than 1,000 are too large; compare "
            "ece with ece_chance, what a perfectly calibrated model would have",
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        for question, found in zip(self.choices.questions, self.choices.likelihoods(opened)):
            yield _item(question, np.array([one.nats for one in found]))

    def values(self, totals: Totals) -> dict[str, float]:
        """Means, and what bins and halves give."""
        values = super().values(totals)
        width, brier = equal_width(totals), values["brier"]
        values["ece"] = calibration_error(width)
        values["ece_mass"] = calibration_error(equal_mass(totals))
        values["ece_chance"] = error_by_chance(width)
        values |= decomposition(width, brier)
        values |= areas(totals)
        values["aurc"] = risk_coverage_area(totals, "confidence")
        values["risk_at_80"] = risk_at(totals, "confidence", 0.8)
        return {**values, **_tempered(totals)}


def _item(question: Question, nats_C: np.ndarray) -> Item:
    shares_C = shares(nats_C)
    chosen = int(np.argmax(shares_C))
    sure, right = float(shares_C[chosen]), float(chosen == question.answer)
    totals: Totals = {
        "acc": (right, 1.0),
        "confidence": (sure, 1.0),
        "brier": ((sure - right) ** 2, 1.0),
        "nll": (_nll(nats_C, question.answer), 1.0),
        **count(sure, right),
        **tally("confidence", sure, right),
        **tally("length", -float(len(question.choices[chosen])), right),
    }
    # By the id, so that a question is in one half whatever else is asked.
    if zlib.crc32(question.id.encode()) % 2:
        for at, temperature in enumerate(_TEMPERATURES):
            totals[f"fit/{at:02d}"] = (_nll(nats_C / temperature, question.answer), 1.0)
    else:
        totals |= count(sure, right, "half/", wide=True)
        totals["half/nll"] = (_nll(nats_C, question.answer), 1.0)
        for at, temperature in enumerate(_TEMPERATURES):
            tempered = nats_C / temperature
            totals[f"tempered/{at:02d}/nll"] = (_nll(tempered, question.answer), 1.0)
            sure_after = float(shares(tempered)[chosen])
            totals |= count(sure_after, right, f"tempered/{at:02d}/", wide=True)
    texts = {
        "prompt": question.prompt,
        "chosen": question.choices[chosen],
        "answer": question.choices[question.answer],
    }
    return Item(question.id, totals, texts, dict(question.slices))


def _nll(nats_C: np.ndarray, answer: int) -> float:
    return float(np.logaddexp.reduce(nats_C) - nats_C[answer])


def _tempered(totals: Totals) -> dict[str, float]:
    """The temperature of the one half, and what it does to the other; {} without both halves."""
    fits = {at: totals.get(f"fit/{at:02d}") for at in range(len(_TEMPERATURES))}
    if None in fits.values() or "half/nll" not in totals:
        return {}
    # Of equal ones the first: the counts are equal, so sums compare.
    best = min(fits, key=lambda at: fits[at][0])  # type: ignore[index]
    tempered = f"tempered/{best:02d}/"
    half, after = totals["half/nll"], totals[f"{tempered}nll"]
    return {
        "temperature": _TEMPERATURES[best],
        "ece_half": calibration_error(equal_width(totals, "half/")),
        "nll_half": half[0] / half[1],
        "ece_tempered": calibration_error(equal_width(totals, tempered)),
        "nll_tempered": after[0] / after[1],
    }
