"""Evaluations with their data and settings: the ones that need no file of a person's own."""

from typing import Any

# By name, what `config.evals.NAME = {}` amounts to. Prompts are those under which the numbers of
# such tasks are published, as far as there is one.
READY: dict[str, dict[str, Any]] = {
    # arXiv:1905.10044: yes or no to a question on a passage.
    "boolq": {
        "kind": "choices",
        "data": "boolq",
        "prompt": "{passage}\nQuestion: {question}?\nAnswer:",
        "choices": ("no", "yes"),
    },
    # arXiv:1911.11641: which of two ways reaches a goal.
    "piqa": {"kind": "choices", "data": "piqa", "prompt": "Question: {question}\nAnswer:"},
    # arXiv:1811.00937 and arXiv:1809.02789.
    "commonsenseqa": {
        "kind": "choices",
        "data": "commonsenseqa",
        "prompt": "Question: {question}\nAnswer:",
    },
    "openbookqa": {"kind": "choices", "data": "openbookqa"},
    # arXiv:1808.08745: a sentence that sums an article up.
    "xsum": {
        "kind": "generation",
        "data": "xsum",
        "prompt": "{document}\n\nThe article in one sentence:",
        "reference": "summary",
        "metrics": ("rouge",),
        "stop": ("\n",),
    },
    "nq_open": {
        "kind": "generation",
        "data": "nq_open",
        "prompt": "Q: {question}?\nA:",
        "stop": ("\n",),
        "max_tokens": 16,
        "shots": 5,
    },
    # arXiv:2107.03374.
    "humaneval": {"kind": "code", "data": "humaneval"},
}
