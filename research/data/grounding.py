"""What a model reads to answer from passages, and what it says where none has the answer."""

from collections.abc import Sequence

NOTHING = "I found nothing about this in the documents."
INSTRUCTION = (
    "Answer the question in a few words, with what the passages say and nothing else. Put the "
    "number of the passage that you used behind the answer, as in [1]. If the passages do not "
    f'answer it, write: "{NOTHING}"'
)
CUE = "\nAnswer:"


def grounded_text(question: str, passages: Sequence[str]) -> str:
    """The numbered passages and the question, as the model reads them after `INSTRUCTION`."""
    numbered = [f"[{n}] {' '.join(text.split())}" for n, text in enumerate(passages, 1)]
    return "\n\n".join([*numbered, f"Question: {question.strip()}"])
