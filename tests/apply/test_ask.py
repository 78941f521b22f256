"""Questions about tables: what is shown of a query, and what a wrong one costs."""

import pytest

from research.apply.ask import Ask
from research.apply.documents import Document
from tests.apply.echo import FLAGS, echo


@pytest.fixture
def sales(tmp_path):
    pytest.importorskip("duckdb", reason="the extra [apply] has it")
    (tmp_path / "sales.csv").write_text("region,amount\nnorth,5\nsouth,7\n")
    (tmp_path / "empty.csv").touch()
    return {**FLAGS, "table": [str(tmp_path / "sales.csv"), str(tmp_path / "empty.csv")]}


def test_the_query_is_shown_and_a_refused_one_costs_no_other(sales, capsys):
    seen = []
    answers = iter(["SELECT sum(amount) FROM sales;", "DROP TABLE sales"])
    writer = echo(lambda prompt: seen.append(prompt) or next(answers), context=900)
    job = Ask.make(sales, writer)
    assert "empty.csv is empty" in capsys.readouterr().err
    right, wrong = job.run([Document("a", "How much?"), Document("b", "Drop it.")], writer)
    assert right == {
        "output": "12", "query": "SELECT sum(amount) FROM sales", "columns": ["sum(amount)"],
        "rows": [[12]], "more": False,
    }  # fmt: skip
    assert "of type DROP" in str(wrong) and "'DROP TABLE sales' was refused" in str(wrong)
    assert seen[0].startswith("table sales: region text (north, south), amount integer\n")
    assert seen[0].endswith("question: How much?\nsql:")


def test_what_cannot_be_asked_is_refused(sales):
    with pytest.raises(ValueError, match="give --table=FILE"):
        Ask.make(FLAGS, echo(str))
    with pytest.raises(ValueError, match="columns of the tables are .* tokens"):
        Ask.make(sales, echo(str, context=100))
