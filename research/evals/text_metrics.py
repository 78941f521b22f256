"""Metrics of a written text against references: exact match, F1, ROUGE, BLEU, chrF, and others.

A metric gives the totals of one text, and of added totals the reported numbers.
"""

import functools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from research.evals.evaluation import Totals
from research.experiment.fields import nearest

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def plain_words(text: str) -> list[str]:
    """The words of a text in lower case without punctuation and articles, as SQuAD compares
    answers (arXiv:1606.05250, section 6.1)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(written: str, references: Sequence[str]) -> Totals:
    """1 if the words are those of a reference, see `plain_words`."""
    same = any(plain_words(written) == plain_words(one) for one in references)
    return {"exact_match": (float(same), 1.0)}


def f1(written: str, references: Sequence[str]) -> Totals:
    """The F1 of the words, see `plain_words`, of the reference with the highest."""
    return {"f1": (max(_f1(plain_words(written), plain_words(one)) for one in references), 1.0)}


def _f1(words: list[str], wanted: list[str]) -> float:
    # Nothing for nothing is right: a question may have no answer.
    if not words or not wanted:
        return float(words == wanted)
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted))


def contains(written: str, references: Sequence[str]) -> Totals:
    """1 if the words of a reference stand in the text one after the other."""
    text = f" {' '.join(plain_words(written))} "
    found = any(f" {' '.join(plain_words(one))} " in text for one in references)
    return {"contains": (float(found), 1.0)}


def numeric(written: str, references: Sequence[str]) -> Totals:
    """1 if the last number of the text is that of a reference, to six digits; commas group
    digits. As GSM8K's flexible extraction, whose references end in "#### 42"."""
    got, wanted = _last_number(written), [_last_number(one) for one in references]
    right = got is not None and any(
        one is not None and math.isclose(got, one, rel_tol=1e-6, abs_tol=1e-9) for one in wanted
    )
    return {"numeric": (float(right), 1.0)}


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def rouge(written: str, references: Sequence[str]) -> Totals:
    """ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, whose sentences are lines: F-measures of the
    package rouge-score without stemming, each of the reference with the highest (Lin 2004)."""
    scores = _rouge().score_multi(list(references), written)
    return {name: (float(score.fmeasure), 1.0) for name, score in scores.items()}


@functools.cache
def _rouge() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise _missing("rouge", "rouge-score") from None
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])


@functools.cache
def _sacrebleu(name: str) -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise _missing(name, "sacrebleu") from None
    return metrics.BLEU() if name == "bleu" else metrics.CHRF()


def _missing(metric: str, package: str) -> ValueError:
    return ValueError(f"metric {metric} needs {package}; pip install '{package}' or '.[eval]'")


def _of_corpus(name: str, written: str, references: Sequence[str]) -> Totals:
    """The counts of matches of one text, which sacrebleu adds up over a corpus."""
    made = _sacrebleu(name)
    # One text, whose references are those of as many streams.
    [counts] = made._extract_corpus_statistics([written], [[one] for one in references])
    return {f"{name}/{at}": (float(count), 1.0) for at, count in enumerate(counts)}


def _corpus_value(name: str, totals: Totals) -> dict[str, float]:
    size = sum(key.startswith(f"{name}/") for key in totals)
    counts = [round(totals[f"{name}/{at}"][0]) for at in range(size)]
    return {name: float(_sacrebleu(name)._aggregate_and_compute([counts]).score)}


def bleu(written: str, references: Sequence[str]) -> Totals:
    """Counts for sacrebleu's BLEU of the corpus, in percent: case:mixed|eff:no|tok:13a|smooth:exp
    (arXiv:1804.08771)."""
    return _of_corpus("bleu", written, references)


def chrf(written: str, references: Sequence[str]) -> Totals:
    """Counts for sacrebleu's chrF2 of the corpus, in percent: case:mixed|eff:yes|nc:6|nw:0|space:no
    (Popovic 2015); and, to rank texts by, chrF2 of the text alone."""
    counts = _of_corpus("chrf", written, references)
    return {"chrf": (_corpus_value("chrf", counts)["chrf"], 1.0), **counts}


@dataclass(frozen=True)
class Metric:
    """`of_text` gives the totals of a text and its references. `of_corpus`, where the number is no
    mean over texts, makes it of the added totals."""

    of_text: Callable[[str, Sequence[str]], Totals]
    of_corpus: Callable[[Totals], dict[str, float]] | None = None


# A metric is one row; its function names the totals.
METRICS: dict[str, Metric] = {
    "exact_match": Metric(exact_match),
    "f1": Metric(f1),
    "contains": Metric(contains),
    "numeric": Metric(numeric),
    "rouge": Metric(rouge),
    "bleu": Metric(bleu, functools.partial(_corpus_value, "bleu")),
    "chrf": Metric(chrf, functools.partial(_corpus_value, "chrf")),
}


def check_metrics(names: Sequence[str]) -> None:
    """ValueError for a metric that is unknown or whose package is missing, and for none."""
    if not names:
        raise ValueError(f"metrics is empty; choose some of {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics has {name!r}; {nearest(name, METRICS)}")
        METRICS[name].of_text("", [""])


def score(names: Sequence[str], written: str, references: Sequence[str]) -> Totals:
    """The totals of all named metrics for one text."""
    totals: Totals = {}
    for name in names:
        totals |= METRICS[name].of_text(written, references)
    return totals


def corpus_values(names: Sequence[str], totals: Totals) -> dict[str, float]:
    """The numbers of those named metrics that are no means over texts."""
    values: dict[str, float] = {}
    for name in names:
        if (of_corpus := METRICS[name].of_corpus) is not None:
            values |= of_corpus(totals)
    return values
