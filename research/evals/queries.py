"""Queries that a model writes for questions about tables, run and compared with the right ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import read_records, text_of
from research.infer.sampling import SamplingConfig
from research.tables.engine import Found, Tables, engine, same_rows
from research.tables.prompt import CUE, INSTRUCTION, query_of, question_text
from research.tables.questions import made_questions


@dataclass(frozen=True)
class QueriesConfig:
    """data        "made" for questions of the held-out templates of `research.tables.questions`,
                "learnt" for new ones of the other templates, or a file of records {"question",
                "query", "table": the path of a table}, which may be relative to the file
    limit       how many questions are made, or records read; 0 for 200, or all
    seed        of the made ones
    max_tokens  most tokens of a query
    seconds     for a query
    chat        whether the question is a message of a user, in the model's chat template
    """

    data: str = "made"
    limit: int = 0
    seed: int = 1
    max_tokens: int = 64
    seconds: float = 5.0
    chat: bool = False

    def __post_init__(self):
        if self.limit < 0 or self.seed < 0 or self.seconds <= 0:
            raise ValueError(
                f"limit={self.limit} and seed={self.seed} must not be negative, and "
                f"seconds={self.seconds:g} positive"
            )
        SamplingConfig(temperature=0.0, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Wanted:
    """A question, the query that answers it, and the rows and schema or the file of its table."""

    id: str
    question: str
    query: str
    template: str = ""
    rows: tuple[tuple[str, tuple], ...] = ()
    schema: str = ""
    file: str = ""

    def tables(self, seconds: float) -> Tables:
        """The table of the question, to be closed."""
        return Tables([self.file] if self.file else (), dict(self.rows), seconds)


@dataclass(frozen=True)
class Queries(Evaluation):
    """Execution accuracy (arXiv:1809.08887, section 5): whether a query finds what the right one
    does.

    executed     share of the queries that find the right rows, in any order
    runs         share of the queries that the engine runs
    exact_match  share of the queries that are the right one, but for spaces and letters' case
    """

    wanted: Sequence[Wanted]
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_tokens=64, stop=("\n\n",))
    seconds: float = 5.0
    chat: bool = False

    config = QueriesConfig
    main = "executed"

    @classmethod
    def make(cls, config: QueriesConfig, data: RunData) -> "Queries":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder goes on")
        engine()  # refused where the package is missing, before anything is written
        sampling = SamplingConfig(
            temperature=0.0, max_tokens=config.max_tokens, stop=() if config.chat else ("\n\n",)
        )
        return cls(wanted_queries(config), sampling, config.seconds, config.chat)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        asked = Asked(chat=self.chat)
        texts = [self._text(one) for one in self.wanted]
        written = write(opened, asked, texts, self.sampling)
        for one, text, said in zip(self.wanted, texts, written):
            yield self._item(one, text, query_of(said.text))

    def _text(self, one: Wanted) -> str:
        schema = one.schema
        if not schema:
            tables = one.tables(self.seconds)
            schema = tables.schema
            tables.close()
        text = question_text(schema, one.question)
        return f"{INSTRUCTION}\n\n{text}" if self.chat else f"{text}{CUE}"

    def _item(self, one: Wanted, text: str, query: str) -> Item:
        tables = one.tables(self.seconds)
        (right, wrong), (found, reason) = _asked(tables, one.query), _asked(tables, query)
        tables.close()
        if right is None:
            raise ValueError(f"the query of record {one.id} of the data is refused: {wrong}")
        equal = " ".join(query.lower().split()) == " ".join(one.query.lower().split())
        totals: Totals = {
            "executed": (float(found is not None and same_rows(found, right)), 1.0),
            "runs": (float(found is not None), 1.0),
            "exact_match": (float(equal), 1.0),
        }
        told = {"prompt": text, "written": query, "answer": one.query, "reason": reason}
        return Item(one.id, totals, told, {"template": one.template} if one.template else {})


def _asked(tables: Tables, query: str) -> tuple[Found | None, str]:
    """(what a query found, "") or (None, why it was refused)."""
    try:
        return tables.ask(query), ""
    except ValueError as error:
        return None, str(error)


def wanted_queries(config: QueriesConfig) -> list[Wanted]:
    """The questions of the data. ValueError for a record without a question, query or table."""
    if config.data in ("made", "learnt"):
        made = made_questions(config.limit or 200, config.seed, config.data == "made")
        return [
            Wanted(
                *(str(n), q.question, q.query, q.template),
                *(((q.table.name, q.table.rows),), q.table.schema()),
            )
            for n, q in enumerate(made)
        ]
    beside = Path(config.data).expanduser().parent
    wanted = []
    for id, record in read_records(config.data, config.limit):
        where = f"record {id} of {config.data}"
        question, query, table = (
            text_of(record, names, where) for names in (("question",), ("query", "sql"), ("table",))
        )
        wanted.append(Wanted(id, question, query, file=str(beside / Path(table).expanduser())))
    return wanted
