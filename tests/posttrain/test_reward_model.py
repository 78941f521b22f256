"""A reward model as a reward: the score that evaluation gives, whatever is entered around it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from research.data.chat import encode_chat
from research.evals.side_scores import rewards as rewards_of
from research.parallel.mesh import make_mesh
from research.posttrain.reward_model import ModelReward
from research.posttrain.rewards import make_rewards
from research.run.opened import open_model
from tests.checkpoints import save_checkpoint
from tests.data.chat_templates import TEMPLATES
from tests.families import FAMILIES

TEMPLATE = TEMPLATES["chatml"]["plain"]
TINY = replace(FAMILIES["llama2_7b"], vocab_size=300, layers=1, max_length=128)
TEXTS = [("2+2=", "4", {}), ("2+2=", "5" * 9, {}), ("a", "x" * 200, {})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    save_checkpoint(made / "reward", replace(TINY, labels=1), template=TEMPLATE)
    save_checkpoint(made / "writer", TINY, template=TEMPLATE)
    return made


@pytest.mark.parametrize("mesh", ["", "fsdp:2"])
def test_its_reward_is_the_score_of_evaluation(mesh, folder):
    opened = open_model(checkpoint=folder / "reward")
    rewards = make_rewards(f"model:{folder}/reward:0.5,length:0")
    with jax.set_mesh(make_mesh(mesh, jax.devices()[: 2 if mesh else 1])):  # that of a run
        given = rewards(TEXTS)
    turns = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c, _ in TEXTS
    ]
    ids = [encode_chat(opened.tokenizer, turn)[0] for turn in turns]
    wanted = rewards_of(opened, ids[:2])
    np.testing.assert_array_equal([parts["model"] for _, parts in given[:2]], wanted)
    np.testing.assert_allclose([total for total, _ in given[:2]], wanted / 2)
    assert wanted[0] != wanted[1]
    # Longer than what it was trained on: it cannot say.
    assert len(ids[2]) > opened.window and np.isnan(given[2][0])


def test_a_source_may_have_a_colon_of_its_own():
    [(_, function, weight)] = make_rewards("model:pypi:some-model==0.1:-2").parts
    assert function == ModelReward("pypi:some-model==0.1") and weight == -2


def test_a_model_without_a_score_is_refused_before_the_first_text(folder):
    with pytest.raises(ValueError, match="writer is no reward model, which has model.labels=1"):
        make_rewards(f"model:{folder}/writer").open()
