"""Rollouts: what an engine is asked for, whoever it is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer.decode import Generation
from research.infer.sampling import SamplingConfig
from research.posttrain.rewards import make_rewards
from research.posttrain.rollouts import roll_out
from tests.data.chat_templates import TEMPLATES, save_tokenizer

TEXT, MESSAGES = "2+2=", [{"role": "user", "content": "2+2?"}]


@pytest.mark.parametrize(("prompt", "end"), [(TEXT, []), (MESSAGES, ["<|im_end|>"])])
def test_an_answer_to_messages_ends_with_its_turn(prompt, end, tmp_path):
    save_tokenizer(tmp_path, TEMPLATES["chatml"]["plain"])
    tokenizer, asked = load_tokenizer(str(tmp_path)), []

    def engine(model, params, tokenizer, prompts, config):
        asked.append(config)
        return [Generation(ids, "4", (1, 2), (-1.0, -2.0), "stop") for ids in prompts]

    record = json.dumps({"prompt": prompt, "answer": "4", "path": "tasks/0"}).encode()
    windows = [{"prompt": np.arange(3), "record": np.frombuffer(record, np.uint8)}]
    exact, plain = make_rewards("exact_match"), SamplingConfig()
    written = roll_out(
        *(engine, None, None, tokenizer, windows, exact),
        **{"samples": 2, "advantage": "group", "length": 8, "config": plain},
    )
    assert asked == [replace(plain, stop_ids=tuple(tokenizer.encode(one)[0] for one in end))]
    assert written.values["reward"] == 1
