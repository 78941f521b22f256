"""Answers from documents: what is read, cited and refused."""

from dataclasses import replace

import pytest

from research.apply.answer import Answer
from research.apply.documents import Document
from research.data.grounding import NOTHING
from research.retrieval.knowledge import Hit
from research.retrieval.passages import Passage
from tests.apply.echo import FLAGS, echo


class Known:
    """Knowledge that finds the same passages for every question but one."""

    def __init__(self, *similarities: float):
        texts = [f"Passage {n} says {'much ' * 20}so." for n in range(len(similarities))]
        self.hits = [
            Hit(Passage(f"{n}.txt", 0, 9, text), value)
            for n, (text, value) in enumerate(zip(texts, similarities))
        ]

    def find(self, questions, k):
        return [self.hits[-1:] if "far" in one else self.hits[:k] for one in questions]


def ask(job: Answer, writer, *questions: str):
    return job.run([Document(str(n), text) for n, text in enumerate(questions)], writer)


def test_near_passages_are_read_and_a_far_question_is_not_asked():
    seen = []
    writer = echo(lambda prompt: seen.append(prompt) or "It does [1].", context=1200)
    job = Answer(Known(0.8, 0.5, 0.1), passages=3, similarity=0.4)
    near, far = ask(job, writer, "What?", "How far?")
    assert near["output"] == "It does." and [c["source"] for c in near["citations"]] == ["0.txt"]
    assert far["output"] == NOTHING and far["citations"] == []
    assert "similarity of 0.10, below --similarity=0.4" in far["refused"]
    assert len(seen) == 1 and "[2] Passage 1" in seen[0] and "Passage 2" not in seen[0]
    assert job.report([near, far]) == {"refused": 1.0, "cited": 1.0}


def test_of_many_passages_as_many_are_read_as_fit():
    seen = []
    writer = echo(lambda prompt: seen.append(prompt) or "So", context=400)
    job = Answer(Known(0.9, 0.8, 0.7), passages=3)
    ask(job, writer, "What?")
    assert "[1]" in seen[0] and "[3]" not in seen[0]
    with pytest.raises(ValueError, match="a passage are more than .* tokens; raise --window"):
        ask(job, writer, "What? " * 70)


def test_no_knowledge_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give --knowledge=FOLDER"):
        Answer.make(FLAGS, echo(str, context=900))
    with pytest.raises(ValueError, match="--knowledge=.*none does not exist"):
        Answer.make({**FLAGS, "knowledge": str(tmp_path / "none")}, echo(str, context=900))
    two_sided = replace(echo(str), model=echo(str, kind="encoder_decoder").model)
    with pytest.raises(ValueError, match="answers no question"):
        Answer.make({**FLAGS, "knowledge": "x"}, two_sided)
