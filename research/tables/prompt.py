"""What a model reads of tables and a question, and the query in what it writes."""

import re

INSTRUCTION = (
    "Write one SQL query for DuckDB that answers the question about the tables. Answer with the "
    "query alone."
)
CUE = "\nsql:"
_FENCED = re.compile(r"```(?:sql)?\s*\n?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def question_text(schema: str, question: str) -> str:
    """The tables and the question; the query follows `CUE`."""
    return f"{schema}\nquestion: {' '.join(question.split())}"


def query_of(written: str) -> str:
    """The query: the first fenced block, or all that was written up to a blank line, without the
    semicolon at its end.

    >>> query_of("Here it is:\\n```sql\\nSELECT 1;\\n```")
    'SELECT 1'
    """
    blocks = _FENCED.findall(written)
    query = blocks[0] if blocks else re.split(r"\n\s*\n", written.strip())[0]
    return query.strip().rstrip(";").strip()
