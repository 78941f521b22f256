"""Rewards by packages for checking answers, and the tasks that one of them makes."""

import json
import sys

import pytest

from research.data.sources import open_source
from research.posttrain.rewards import REWARDS, make_rewards


@pytest.mark.parametrize(
    ("answer", "completion", "wanted"),
    [
        ("1/2", "it is 0.5", 1.0),
        ("x^2+2x+1", "$(x+1)^2$", 1.0),
        ("$\\{1,2\\}$", "$\\{2,1\\}$", 1.0),
        ("501", "the answer is 502.", 0.0),
    ],
)
def test_answers_are_compared_as_mathematics(answer, completion, wanted):
    pytest.importorskip("math_verify", reason="needs the extra [rl]")
    assert REWARDS["math_verify"]("", completion, {"answer": answer}) == wanted


def test_a_task_scores_its_own_answer(tmp_path):
    pytest.importorskip("reasoning_gym", reason="needs the extra [rl]")
    source = open_source("gym:chain_sum?size=200&max_terms=3", tmp_path, "prompts")
    assert len(source.train) + len(source.heldout) == 200 and len(source.heldout) > 2
    record = json.loads(source.train[3]["record"])
    for text, wanted in ((record["answer"], 1.0), (f"so <a>{record['answer']}</a>", 1.0)):
        assert REWARDS["reasoning_gym"](record["prompt"], text, record) == wanted
    assert REWARDS["reasoning_gym"](record["prompt"], "none", record) < 0.1
    other = open_source("gym:chain_sum?size=200&max_terms=3&seed=1", tmp_path, "prompts")
    assert other.fingerprint != source.fingerprint
    with pytest.raises(ValueError, match="gym:chain_sam"):
        open_source("gym:chain_sam", tmp_path, "prompts")


def test_without_the_packages_a_line_says_what_to_install(tmp_path, monkeypatch):
    for module in ("math_verify", "reasoning_gym"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"math-verify; pip install 'graft-research\[rl\]'"):
        make_rewards("math_verify")([("", "1", {"answer": "1"})])
    with pytest.raises(ValueError, match=r"reasoning-gym; pip install 'graft-research\[rl\]'"):
        open_source("gym:chain_sum", tmp_path, "prompts")
    with pytest.raises(ValueError, match="are prompts, and the objective reads texts"):
        open_source("gym:chain_sum", tmp_path, "texts")
