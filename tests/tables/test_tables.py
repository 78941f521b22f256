"""Tables that can be asked and not changed, and the questions that are made about them."""

import pytest

from research.tables.engine import Found, Tables, same_rows
from research.tables.prompt import query_of
from research.tables.questions import FILTERS, HELD_OUT, LEARNT, SELECTS, made_questions

engine = pytest.importorskip("duckdb", reason="the extra [apply] has it")

STAFF = [{"name": "Ann", "age": 30}, {"name": "Ben", "age": 41}, {"name": "Ann", "age": 52}]


@pytest.fixture(scope="module")
def staff():
    tables = Tables(rows={"staff": STAFF}, seconds=0.5)
    yield tables
    tables.close()


def test_a_question_is_answered_and_its_rows_are_bounded(staff):
    assert staff.schema == "table staff: name text (Ann, Ben), age integer"
    found = staff.ask("WITH a AS (SELECT * FROM staff) SELECT max(age) FROM a;")
    assert found == Found(("max(age)",), ((52,),)) and found.text() == "52"
    few = staff.ask("SELECT name, age / 2 FROM staff ORDER BY age", rows=2)
    assert few.more and few.text() == "Ann, 15.0\nBen, 20.5\n..."


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("DROP TABLE staff", "of type DROP"),
        ("INSERT INTO staff VALUES ('Eve', 1)", "of type INSERT"),
        ("UPDATE staff SET age = 1", "of type UPDATE"),
        ("DELETE FROM staff", "of type DELETE"),
        ("CREATE TEMP TABLE x AS SELECT 1", "of type CREATE"),
        ("SELECT 1; DROP TABLE staff", "2 statements, wanted one query"),
        ("", "0 statements"),
        ("COPY staff TO '{file}'", "of type COPY"),
        ("SELECT * FROM read_csv('{file}')", "file system operations are disabled"),
        ("SELECT * FROM read_text('{file}')", "file system operations are disabled"),
        ("SET memory_limit = '9GB'", "of type SET"),
        ("ATTACH '{file}'", "of type ATTACH"),
        ("SELECT salary FROM staff", "salary"),
        ("the oldest one, please", "yntax"),
        (
            "SELECT count(*) FROM range(1000000000) a, range(1000) b WHERE a.range % 7 = b.range",
            "it took more than 0.5 s",
        ),
    ],
)
def test_what_is_no_query_is_refused_by_the_engine(staff, tmp_path, query, reason):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=reason) as caught:
        staff.ask(query.replace("{file}", str(tmp_path / "secret.csv")))
    assert "\n" not in str(caught.value)
    assert staff.ask("SELECT count(*) FROM staff").rows == ((3,),)


@pytest.mark.parametrize(
    "query", ["DROP TABLE staff", "CREATE TABLE x AS SELECT 1", "INSERT INTO staff VALUES ('E', 1)"]
)
def test_the_database_itself_is_read_only(staff, query, monkeypatch):
    monkeypatch.setattr(Tables, "_check", lambda self, query: None)
    with pytest.raises(ValueError, match="read-only"):
        staff.ask(query)


def test_files_that_are_no_tables_get_a_line_each(tmp_path):
    for name, content in {
        "2024 Sales.csv": b"region,amount\nnorth,5\nsouth,x\nnorth,7\n",
        "people.jsonl": b'{"name": "Ann", "born": "2001-02-03"}\n',
        "empty.csv": b"",
        "header.csv": b"a,b\n",
        "binary.csv": b"\0\1\2",
        "broken.parquet": b"PAR1?",
        "notes.txt": b"hello",
    }.items():
        (tmp_path / name).write_bytes(content)
    tables = Tables([*sorted(tmp_path.iterdir()), tmp_path / "none.csv"])
    told = "\n".join(tables.told)
    assert "1 of 3 values of amount are no numbers, so all are read as text" in told
    assert "empty.csv is empty" in told and "header.csv is empty" in told
    assert "binary.csv is binary and no table" in told and "notes.txt is no table" in told
    assert "broken.parquet is no table" in told and "none.csv does not exist" in told
    assert len(tables.told) == 7 and tables.schema.splitlines() == [
        "table people: name text (Ann), born date",
        "table t_2024_sales: region text (north, south), amount text (5, 7, x)",
    ]
    assert tables.ask("SELECT sum(TRY_CAST(amount AS INT)) FROM t_2024_sales").text() == "12"
    tables.close()
    assert not tables.folder.exists()
    with pytest.raises(ValueError, match="empty.csv is empty"):
        Tables([tmp_path / "empty.csv"])


def test_every_template_makes_a_query_that_runs_and_is_on_one_side():
    assert len(LEARNT) + len(HELD_OUT) == len(SELECTS) * len(FILTERS)
    for heldout, templates in ((False, LEARNT), (True, sorted(HELD_OUT))):
        made = list(made_questions(len(templates), 3, heldout))
        assert [one.template for one in made] == [" ".join(one) for one in templates]
        assert made == list(made_questions(len(templates), 3, heldout))
        for one in made[:: 2 if heldout else 14]:
            tables = Tables(rows={one.table.name: one.table.rows})
            assert tables.schema == one.table.schema()
            assert tables.ask(one.query).columns
            tables.close()
    # Both halves of what is held out are learnt.
    assert {s for s, _ in HELD_OUT} <= {s for s, _ in LEARNT}
    assert {f for _, f in HELD_OUT} <= {f for _, f in LEARNT}


def test_rows_are_compared_without_order_and_with_six_digits():
    one = Found(("a",), ((1, "x"), (2.00000001, "y")))
    assert same_rows(one, Found(("b",), ((2, "y"), (1.0, "x"))))
    assert not same_rows(one, Found(("a",), ((1, "x"),)))
    assert not same_rows(one, Found(("a",), ((1, "x"), (2.1, "y"))))
    assert not same_rows(one, Found(one.columns, one.rows, more=True))


@pytest.mark.parametrize(
    "written", ["SELECT 1;", " SELECT 1\n\nThat is it.", "Sure:\n```sql\nSELECT 1;\n```\nDone."]
)
def test_the_query_is_found_in_what_was_written(written):
    assert query_of(written) == "SELECT 1"
