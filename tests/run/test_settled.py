"""What a run chooses at its first start is written down, and holds from there on."""

import json
from dataclasses import replace

import pytest

from research.run.settled import Prediction, settle
from tests.configs import experiment

SMOKE = ("quickstart", "smoke")


def predicting(remat: str, head_tokens: int, fits: bool = True, asked: list | None = None):
    """A prediction that chooses these wherever they are open, as `fit` does."""

    def _predict(e):
        if asked is not None:
            asked.append(e.execution)
        old = e.execution
        execution = replace(
            old,
            remat=remat if old.remat == "auto" else old.remat,
            head_tokens=old.head_tokens or head_tokens,
        )
        return Prediction(replace(e, execution=execution), "needs much", fits)

    return _predict


def written(folder, **execution):
    """A workdir with the config.json of a run whose section had these fields."""
    values = experiment(*SMOKE).to_json()
    values["execution"] = {"unroll": 1, **execution}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_new_run_takes_the_prediction_and_says_what_is_not_plain(tmp_path):
    chosen, lines = settle(experiment(*SMOKE), tmp_path, predicting("dots", 2048))
    assert (chosen.execution.remat, chosen.execution.head_tokens) == ("dots", 2048)
    assert "remat=auto is 'dots'" in lines[0] and "head_tokens=0 is 2,048" in lines[0]
    assert lines[1:] == ["needs much"]
    _, lines = settle(experiment(*SMOKE), tmp_path, predicting("none", 512))
    assert lines == ["needs much"]


def test_without_a_prediction_the_choice_is_plain(tmp_path):
    chosen, lines = settle(experiment(*SMOKE), tmp_path, None)
    assert (chosen.execution.remat, chosen.execution.head_tokens, lines) == ("none", 512, [])
    # A prediction that could not be made leaves things open.
    chosen, _ = settle(experiment(*SMOKE), tmp_path, Prediction)
    assert (chosen.execution.remat, chosen.execution.head_tokens) == ("none", 512)


@pytest.mark.parametrize(
    ("saved", "remat", "head_tokens"),
    [
        ({"remat": "full", "head_tokens": 1024}, "full", 1024),
        ({"remat": "dots"}, "dots", 512),  # older than `head_tokens`
        ({}, "none", 512),  # older than either
    ],
)
@pytest.mark.parametrize("predicted", [True, False])
def test_a_resumed_run_keeps_its_choice(saved, remat, head_tokens, predicted, tmp_path):
    asked: list = []
    predict = predicting("offload", 4096, asked=asked) if predicted else None
    chosen, _ = settle(experiment(*SMOKE), written(tmp_path, **saved), predict)
    assert (chosen.execution.remat, chosen.execution.head_tokens) == (remat, head_tokens)
    # What is predicted is the run that goes on.
    assert [one.remat for one in asked] == [remat] * predicted


def test_a_flag_is_stronger_than_the_runs_choice(tmp_path):
    given = experiment(*SMOKE, **{"execution.remat": "dots"})
    chosen, _ = settle(given, written(tmp_path, remat="full"), predicting("none", 512))
    assert chosen.execution.remat == "dots"


def test_what_does_not_fit_is_told_at_once(tmp_path, capsys):
    _, lines = settle(experiment(*SMOKE), tmp_path, predicting("full", 512, fits=False))
    assert capsys.readouterr().err == "needs much\n" and len(lines) == 1


def test_a_classifier_has_no_tokens_to_choose_for(tmp_path):
    changes = {"objective.name": "classification", "model.kind": "encoder", "model.labels": 2}
    e = experiment(*SMOKE, **changes, **{"model.pooler": True})
    assert settle(e, tmp_path, None)[0].execution.head_tokens == 0
    with pytest.raises(ValueError, match=r"set config\.execution\.head_tokens to 0"):
        experiment(*SMOKE, **changes, **{"model.pooler": True, "execution.head_tokens": 8})
