"""Makes lm_eval.json: what lm-evaluation-harness 0.4.13 makes of made-up answers and likelihoods.

    VENV/bin/python tests/evals/bias_goldens/make.py

in an environment with lm_eval; its data sets are not needed. The records are our own, in BBQ's
layout, with one answer each; likelihoods of sentences are two numbers a pair.
"""

import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import lm_eval
import numpy as np

PEOPLE = (
    (["grandfather", "old"], ["grandson", "nonOld"], ["old"]),
    (["Black woman", "F-Black"], ["White man", "M-White"], ["Black", "African American"]),
    (["the girl", "F"], ["the boy", "M"], ["F"]),
    (["lowSES-African", "lowSES-African"], ["highSES-Euro", "highSES-Euro"], ["low SES"]),
)


def tasks(name: str):
    """The module of an lm_eval task, whose import of `datasets` is for types alone."""
    stub = types.ModuleType("datasets")
    stub.Dataset = object
    sys.modules.setdefault("datasets", stub)
    np.NaN = np.nan  # as the module does itself with later NumPy
    path = Path(lm_eval.__file__).parent / "tasks" / name / "utils.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Records(list):
    """A list with the `map` of a data set."""

    def map(self, change):
        return [change(dict(record)) for record in self]


def records() -> list[dict]:
    made = []
    for number in range(64):
        first, second, stereotyped = PEOPLE[number % 4]
        answers = [first, second, ["Not known", "unknown"]]
        order = number // 16
        answers = answers[order % 3 :] + answers[: order % 3]
        unknown = next(i for i, answer in enumerate(answers) if answer[-1] == "unknown")
        known = [i for i in range(3) if i != unknown]
        condition = ("ambig", "disambig")[number // 4 % 2]
        made.append({
            "question_index": str(number), "category": "Age", "context_condition": condition,
            "question_polarity": ("neg", "nonneg")[number // 8 % 2],
            "answer_info": {f"ans{i}": answer for i, answer in enumerate(answers)},
            "additional_metadata": {"stereotyped_groups": stereotyped},
            "context": "c", "question": "q",
            **{f"ans{i}": answer[0] for i, answer in enumerate(answers)},
            "label": unknown if condition == "ambig" else known[number % 2],
        })  # fmt: skip
    return made


def main() -> None:
    bbq, crows = tasks("bbq"), tasks("crows_pairs")
    given, draw = records(), random.Random(1)
    said = [one["label"] if draw.random() < 0.7 else draw.randrange(3) for one in given]
    results: dict[str, list] = {}
    for record, answer in zip(bbq.process_docs(Records(given)), said):
        choices = bbq.doc_to_choice(record)
        text = record[f"ans{answer}"]
        number = choices.index(text)
        for name, value in bbq._process_results(record, number).items():
            results.setdefault(name, []).append(value)
    wanted = {
        "acc_ambig": bbq.agg_accuracy_amb(results["accuracy_amb"]),
        "acc_disambig": bbq.agg_accuracy_disamb(results["accuracy_disamb"]),
        "bias_ambig": bbq.agg_amb_bias_scores(results["amb_bias_score"]),
        "bias_disambig": bbq.agg_disamb_bias_scores(results["disamb_bias_score"]),
    }
    nats = [(draw.uniform(-60, -20), draw.uniform(-60, -20)) for _ in range(40)]
    pairs = [crows.process_results({}, [(more, False), (less, False)]) for more, less in nats]
    means = {name: float(np.mean([one[name] for one in pairs])) for name in pairs[0]}
    golden = {
        "bbq": {"records": given, "said": said, "values": {k: float(v) for k, v in wanted.items()}},
        "crows_pairs": {"nats": nats, "values": means},
    }
    Path(__file__).with_name("lm_eval.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
