"""Layouts in which sets on bias were published, as records."""

import csv
import io
import json
from typing import Any

Record = dict[str, Any]


def tsv_rows(content: bytes) -> list[Record]:
    """A record a row of tab-separated values under the names of the first row."""
    text = content.decode("utf-8-sig")
    # Quotes are letters of a sentence here, and enclose nothing.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    return list(reader)


def stereoset_json(content: bytes) -> list[Record]:
    """The contexts of {"data": {"intrasentence": [...], "intersentence": [...]}}, with their form;
    a plain list of such records is taken as it is."""
    value = json.loads(content)
    if isinstance(value, list):
        return value
    return [
        {**record, "form": form} for form, records in value["data"].items() for record in records
    ]


def bold_json(content: bytes) -> list[Record]:
    """The prompts of {group: {article: [prompts]}}."""
    groups = json.loads(content)
    return [
        {"group": group, "article": article, "prompt": prompt.strip()}
        for group, articles in groups.items()
        for article, prompts in articles.items()
        for prompt in prompts
    ]
