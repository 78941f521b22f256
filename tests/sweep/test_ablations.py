"""The shipped ablations: what each compares can be run, and says what it expects."""

import ast

import pytest

from research.run.resolve import from_config
from research.sweep.cells import Resolver
from research.sweep.running import load_sweep
from tests.configs import ROOT, load_config

ABLATIONS = sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py"))


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_combination_of_the_smoke_form_can_be_run(name, monkeypatch):
    monkeypatch.setattr(Resolver, "_prints", lambda *_: {"data": "", "tokenizer": ""})
    sweep = load_sweep(f"{ROOT}/configs/ablations/{name}.py:smoke")
    config = load_config(f"ablations/{name}", "smoke")
    assert not config.init  # no network
    resolver = Resolver(config, sweep, "code")
    cells = [resolver.cell(point, seed) for seed in sweep.seeds for point in sweep.points]
    assert not [cell.refused for cell in cells if cell.refused]
    # No two levels are the same run.
    assert len({cell.key for cell in cells}) == len(sweep.points) * len(sweep.seeds)


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_whole_form_has_seeds_for_a_verdict_and_says_what_to_expect(name):
    file = ROOT / "configs" / "ablations" / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    for words in ("Expected", "python -m research.sweep", "smoke", f"ablations/{name}.py"):
        assert words in docstring
    sweep, config = load_sweep(str(file)), load_config(f"ablations/{name}")
    # The ladder of the scaling law is no comparison.
    assert len(sweep.seeds) >= 6 or name == "scaling"
    if not config.init:
        for point in sweep.points:
            changed = config.copy_and_resolve_references()
            sweep.change(changed, point)
            from_config(changed)
