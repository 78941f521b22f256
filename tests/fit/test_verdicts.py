"""The README's table of verdicts."""

import re

import pytest

from research.fit import verdicts
from research.fit.report import Fit
from research.fit.verdicts import BEGIN, END, RECIPES, ask, replaced, row, table
from tests.configs import ROOT
from tests.fit.fits import fit_json


def test_the_readme_has_a_row_for_each_recipe():
    text = (ROOT / "research" / "fit" / "README.md").read_text()
    part = text.partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    assert len(RECIPES) >= 12 and len(rows) == len(RECIPES)
    for recipe, line in zip(RECIPES, rows):
        assert line.startswith(f"| `{recipe.said}` | `{recipe.target}` |")
        assert re.search(r"\d+\.\d of \d+\.\d GiB", line)


def test_every_recipe_is_a_shipped_config_that_resolves(monkeypatch):
    asked = []
    monkeypatch.setattr(
        verdicts, "answer", lambda experiment, target: asked.append((experiment, target))
    )
    for recipe in RECIPES:
        ask(recipe)
    assert [target for _, target in asked] == [recipe.target for recipe in RECIPES]
    assert (
        dict(zip((recipe.said for recipe in RECIPES), asked))[RECIPES[6].said][0].mesh
        == "expert:8,fsdp:-1"
    )


def test_the_marked_part_alone_is_replaced():
    fit = Fit.from_json(fit_json())
    new = table([(RECIPES[0], fit)])
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(text, new) == f"before\n{BEGIN}\n{new}\n{END}\nafter\n"
    assert replaced(replaced(text, new), new) == replaced(text, new)
    with pytest.raises(ValueError, match="no part between"):
        replaced("nothing", new)
    assert f"{fit.total / 2**30:.1f} of {fit.capacity / 2**30:.1f} GiB" in row(RECIPES[0], fit)
