"""Scores of bias against lm-evaluation-harness 0.4.13's: bias_goldens/make.py says how its numbers
were made."""

import json
from pathlib import Path

import numpy as np
import pytest

from research.evals.bbq import BBQ, Template, _asked, _item
from research.evals.evaluation import add_up
from research.evals.sentence_pairs import pair_totals

GOLDEN = json.loads((Path(__file__).parent / "bias_goldens" / "lm_eval.json").read_text("utf-8"))


def test_bbq_has_the_harness_s_scores():
    totals = []
    for record, said in zip(GOLDEN["bbq"]["records"], GOLDEN["bbq"]["said"]):
        asked = _asked(record, "a record")
        template = Template(record["question_index"], "Age", (asked,))
        # One order of the options, in which the answer has all the likelihood.
        totals.append(_item(template, [(asked, np.eye(3)[[said]])], "").totals)
    values = BBQ(()).values(add_up(totals))
    wanted = GOLDEN["bbq"]["values"]
    assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert 0 < abs(wanted["bias_ambig"]) < 1 and 0 < abs(wanted["bias_disambig"]) < 1


def test_crows_pairs_have_the_harness_s_scores():
    totals = pair_totals(GOLDEN["crows_pairs"]["nats"])
    wanted = GOLDEN["crows_pairs"]["values"]
    for name, value in wanted.items():
        total, count = totals[name]
        assert total / count == pytest.approx(value, abs=1e-6)
