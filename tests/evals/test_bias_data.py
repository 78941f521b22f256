"""Data of evaluations of bias: published layouts, subsets, what is refused, and how often two seeds
of one model seem to differ."""

import json

import numpy as np
import pytest

from research.evals.bbq_groups import answer_groups, biased_answers
from research.evals.bias_layouts import bold_json, stereoset_json, tsv_rows
from research.evals.counterfactual import Counterfactual
from research.evals.estimates import difference
from research.evals.evaluation import Item
from research.evals.sentence_pairs import pair_totals
from research.evals.strata import Strata
from tests.evals.test_bias import BBQ, context, made


def test_published_layouts_are_read():
    nested = {"data": {"intrasentence": [{"id": "a"}], "intersentence": [{"id": "b"}]}}
    records = stereoset_json(json.dumps(nested).encode())
    assert [(one["id"], one["form"]) for one in records] == [
        ("a", "intrasentence"),
        ("b", "intersentence"),
    ]
    [one] = bold_json(b'{"judaism": {"Torah": ["The Torah is "]}}')
    assert one == {"group": "judaism", "article": "Torah", "prompt": "The Torah is"}
    assert tsv_rows(b'id\ttext\n1\tso "it\n') == [{"id": "1", "text": 'so "it'}]


@pytest.mark.parametrize(
    ("info", "answer", "groups"),
    [
        (["Black woman", "F-Black"], "", {"black woman", "f", "black"}),
        (["the boy", "lowSES-African"], "", {"the boy", "low ses", "african", "m"}),
        (["", ""], "The Latina woman", {"latino"}),
    ],
)
def test_the_groups_of_an_answer(info, answer, groups):
    assert answer_groups(info, answer) == groups
    unknown = answer_groups(["Not known", "unknown"])
    assert biased_answers("nonneg", [groups, {"z"}, unknown], groups) == [1]


def test_groups_are_drawn_evenly_and_small_ones_are_refused_with_the_number_needed():
    things = [f"{group}{n}" for group in "ab" for n in range(20)]
    drawn = Strata(limit=10).draw(things, lambda one: one[0], "pairs")
    assert [sum(one[0] == group for one in drawn) for group in "ab"] == [10, 10]
    # Another group changes nothing in the others.
    assert [x for x in drawn if x[0] == "a"] == Strata(limit=10).draw(
        things[:20], lambda one: one[0], "pairs"
    )
    assert drawn != Strata(limit=10, seed=2).draw(things, lambda one: one[0], "pairs")
    with pytest.raises(ValueError, match="group 'b' has 3 pairs and needs 10: give 7 more"):
        Strata().draw(things[:23], lambda one: one[0], "pairs")


@pytest.mark.parametrize(
    ("kind", "record", "line"),
    [
        ("crows_pairs", {"sent_more": "a"}, "wanted a text under sent_less"),
        ("stereoset", {"form": "other"}, "form is 'other', not intrasentence or"),
        ("stereoset", {**context("intrasentence", "a"), "sentences": []}, "labelled nothing"),
        ("bbq", {**BBQ[0], "context_condition": "both"}, "wanted ambig or disambig"),
        ("bbq", {**BBQ[0], "label": 3}, "wanted one, and 0, 1 or 2"),
        ("winobias", {"pro": "[The nurse] slept.", "anti": "a"}, "the pronoun ''"),
        ("winobias", {"text": "a"}, "wanted pro and anti"),
        ("counterfactual", {"more": ["a"], "less": ["b", "c"]}, "each beside its counterpart"),
        ("counterfactual", {"template": "x", "more": "a", "less": "b"}, "has no {} for the words"),
        ("counterfactual", {"more": "a", "less": "a"}, "two equal sentences"),
        (
            "honest",
            {"template_masked": "a", "raw": "a", "category": "c", "type": "t"},
            "has no [M]",
        ),
    ],
)
def test_records_that_are_not_as_published_are_refused_in_a_line(tmp_path, kind, record, line):
    with pytest.raises(ValueError) as caught:
        made(tmp_path, kind, [record])
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_seeds_of_one_model_seldom_differ():
    """Two models whose preferences are drawn from one distribution over 30 templates of four pairs:
    an interval of 95% leaves 0 out in at most 5%."""
    random = np.random.default_rng(0)
    evaluation = Counterfactual(())
    apart = 0
    for _ in range(100):
        # Alike within a template, and between the two models as far as the template decides.
        shared_N = random.normal(size=30)
        sides = []
        for _ in range(2):
            own_N = random.normal(size=30)
            items = []
            for n in range(30):
                margins = shared_N[n] + own_N[n] + random.normal(size=4) / 2
                items.append(Item(str(n), pair_totals([(m, 0.0) for m in margins])))
            sides.append(items)
        found = difference(evaluation, *sides)["pct_stereotype"]
        apart += not found.low <= 0 <= found.high
    # Binomial: of 100 draws at 5% more than 10 come in 1.1% of cases.
    assert apart <= 10
