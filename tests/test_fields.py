"""Every field of a config changes what a run does or is refused; so is one out of range, and one
that is set where a run has no use for it.

`tests/fields.py` has one case a field, `tests/probes.py` what a run does.
"""

from pathlib import Path

import pytest

from tests.fields import CASES, REFUSED, UNUSED, every_field, key, numbers, tiny
from tests.probes import PROBES, program

EVERY_FIELD = sorted(name for name, _ in every_field())
# A case whose value is a file names it by one of these.
FILES = {"OTHER": "other.jsonl", "TEMPLATE": "template.jinja"}
# Of programs those with scans, dropout, codes and custom derivatives, and each other probe once.
SOME_OF_EACH_KIND = ("lora.dropout", "quantize.group", "optimizer.momentum", "axes")
SOME_OF_EACH_KIND += ("data.chat_template", "train.seed", "train.steps", "checkpoint.keep")
SOME_OF_EACH_KIND += ("logging.wandb", "init", "evals", "objective.masked_lm.share")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_every_field_has_a_case():
    assert EVERY_FIELD == sorted(CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two data sets that every objective's layout can be read from, and a chat template."""
    made = tmp_path_factory.mktemp("fields")
    for name, word in (("source", "one"), ("other", "two")):
        messages = (
            f'[{{"role": "user", "content": "{word}"}}, {{"role": "assistant", "content": "b"}}]'
        )
        more = f'"messages": {messages}, "prompt": "{word}", "chosen": "b", "rejected": "c"'
        rows = [f'{{"text": "{word} {i}", "label": {i % 3}, {more}}}' for i in range(40)]
        (made / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (made / "template.jinja").write_text(TEMPLATE)
    return made


def in_folder(value, folder: Path):
    """A case's value with the path of the file that it names."""
    if isinstance(value, dict):
        return {name: in_folder(one, folder) for name, one in value.items()}
    return str(folder / FILES[value]) if isinstance(value, str) and value in FILES else value


KNOWN: dict[str, object] = {}  # what a run does, by probe and changes: bases are shared


def does(probe, changes, folder, monkeypatch):
    """`probe` of the tiny run with these changes, once."""
    name = f"{probe.__name__} {key(changes)}"
    if name not in KNOWN:
        KNOWN[name] = probe(tiny(changes), folder, monkeypatch)
    return KNOWN[name]


@pytest.mark.parametrize("name", SOME_OF_EACH_KIND)
def test_the_same_run_does_the_same(name, folder, monkeypatch):
    # Else the next test would see a change where there is none.
    probe = PROBES.get(name) or PROBES.get(name.partition(".")[0], program)
    base, _ = CASES[name]
    assert probe(tiny(base), folder, monkeypatch) == does(probe, base, folder, monkeypatch)


@pytest.mark.parametrize("name", EVERY_FIELD)
def test_a_field_changes_what_a_run_does_or_is_refused(name, folder, monkeypatch):
    base, other = CASES[name]
    probe = PROBES.get(name) or PROBES.get(name.partition(".")[0], program)
    before = does(probe, base, folder, monkeypatch)
    changes = {**base, name: in_folder(other, folder)}
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            does(probe, changes, folder, monkeypatch)
    else:
        assert does(probe, changes, folder, monkeypatch) != before


@pytest.mark.parametrize(("name", "value"), list(numbers()))
def test_a_number_out_of_range_is_refused_by_name(name, value):
    base, _ = CASES[name]
    tiny(base)
    with pytest.raises(ValueError, match=name.rpartition(".")[2]):
        tiny({**base, name: value})


@pytest.mark.parametrize(
    ("base", "name", "value"), UNUSED, ids=[f"{name}-{i}" for i, (_, name, _) in enumerate(UNUSED)]
)
def test_a_field_that_a_run_has_no_use_for_is_refused(base, name, value):
    tiny(base)
    with pytest.raises(ValueError, match="set|leave"):
        tiny({**base, name: value})
