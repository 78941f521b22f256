"""Evaluations of bias with parts of their data, on which the laws of test_laws.py are tried."""

from collections.abc import Callable

from research.evals.bbq import BBQ, Asked, Template
from research.evals.bold import Bold
from research.evals.coreference import Mention, Schema
from research.evals.counterfactual import Counterfactual
from research.evals.crows_pairs import CrowsPairs
from research.evals.evaluation import Evaluation
from research.evals.honest import Honest
from research.evals.honest import Template as Completed
from research.evals.sentence_pairs import PairSet, SentencePair
from research.evals.stereoset import Contrast, StereoSet, Target
from research.evals.toxicity import Beginning
from research.evals.winobias import WinoBias
from research.evals.winogender import Winogender
from research.evals.word_list import WordList
from research.infer.sampling import SamplingConfig

SETS = [
    PairSet(str(n), tuple(SentencePair(f"he {n}{k}", f"she {n}{k}") for k in range(1 + n % 2)))
    for n in range(3)
]
TARGETS = [Target(str(n), "race", (Contrast("So." * (n % 2), ("a", "bc", "d")),)) for n in range(3)]
TEMPLATES = [
    Template(
        str(n),
        "Age",
        tuple(
            Asked(f"context {n}", "who?", ("he", "she", "unknown"), right, 2, (0,), condition)
            for condition, right in (("ambig", 2), ("disambig", n % 2))
        ),
    )
    for n in range(3)
]
SCHEMAS = [
    Schema(
        str(n),
        (
            Mention(f"The cook {n} met the nurse.", "he", "cook", "nurse", "pro"),
            Mention(f"The cook {n} met the nurse.", "she", "cook", "nurse", "anti"),
        ),
    )
    for n in range(3)
]
BEGUN = [Beginning(str(n), f"begun {n}", "ab"[n % 2]) for n in range(3)]
COMPLETED = [
    Completed(str(n), "verb", (("male", f"he {n}"), ("female", f"she {n}"))) for n in range(3)
]
LIST = WordList({"a": 0.7})
FEW = SamplingConfig(temperature=0.0, max_tokens=4)

BIAS_ROWS: tuple[type[Evaluation], ...] = (
    *(CrowsPairs, Counterfactual, StereoSet, BBQ, WinoBias, Winogender, Bold, Honest),
)
BIAS_CASES: dict[str, Callable[[], tuple[Evaluation, list[Evaluation]]]] = {
    "crows_pairs": lambda: (CrowsPairs(SETS), [CrowsPairs(SETS[:1]), CrowsPairs(SETS[1:])]),
    "counterfactual": lambda: (
        Counterfactual(SETS),
        [Counterfactual(SETS[:1]), Counterfactual(SETS[1:])],
    ),
    "stereoset": lambda: (StereoSet(TARGETS), [StereoSet(TARGETS[:1]), StereoSet(TARGETS[1:])]),
    "bbq": lambda: (BBQ(TEMPLATES), [BBQ(TEMPLATES[:1]), BBQ(TEMPLATES[1:])]),
    "winobias": lambda: (WinoBias(SCHEMAS), [WinoBias(SCHEMAS[:1]), WinoBias(SCHEMAS[1:])]),
    "winogender": lambda: (
        Winogender(SCHEMAS),
        [Winogender(SCHEMAS[:1]), Winogender(SCHEMAS[1:])],
    ),
    "bold": lambda: (
        Bold(BEGUN, LIST, FEW),
        [Bold(BEGUN[:1], LIST, FEW), Bold(BEGUN[1:], LIST, FEW)],
    ),
    "honest": lambda: (
        Honest(COMPLETED, LIST, FEW, 1),
        [Honest(COMPLETED[:1], LIST, FEW, 1), Honest(COMPLETED[1:], LIST, FEW, 1)],
    ),
}
