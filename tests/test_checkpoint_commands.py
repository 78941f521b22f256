"""The commands that start from a checkpoint, run on a small one with a tokenizer and a chat
template of its own."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer, train_tokenizer
from research.files import building
from research.infer.conversation import drop_oldest
from research.infer.dialogue import converse, say
from research.interop import native
from research.interop.load import load
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

pytestmark = pytest.mark.usefixtures("quick_commands")
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)


def run(module, *arguments, lines=""):
    """A command's result."""
    command = [sys.executable, "-m", f"research.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=lines)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A native checkpoint folder with a tokenizer that speaks of chat."""
    folder = tmp_path_factory.mktemp("decoder") / "model"
    tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    c = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=128)
    with building(folder) as made:
        native.write_native(in_memory(c, random_params(c), special={"eos_token_id": [5, 7]}), made)
        replace(tokenizer, chat_template=TEMPLATE).save(made)
    return folder


def test_a_checkpoint_continues_prompts_and_answers_through_its_template(decoder):
    asked = run(
        "generate",
        f"--checkpoint={decoder}",
        "--chat=to be",
        "--temperature=0",
        "--max_tokens=8",
        "--json",
    )
    assert asked.returncode == 0, asked.stderr
    [answer] = json.loads(asked.stdout)["samples"]
    prompt = run(
        "generate",
        f"--checkpoint={decoder}",
        "--prompt=<bos>user: to be<eos><bos>assistant: ",
        "--temperature=0",
        "--max_tokens=8",
        "--json",
    )
    [continued] = json.loads(prompt.stdout)["samples"]
    assert answer["token_ids"] == continued["token_ids"] and answer["prompt"] == "to be"
    assert len(answer["token_ids"]) == len(answer["logprobs"]) <= 8


def test_the_tokens_that_end_a_text_are_all_of_those_of_the_checkpoint(decoder):
    loaded = load(decoder)
    assert loaded.stop_ids == (5, 7) and loaded.tokenizer.chat_template == TEMPLATE


def test_ids_are_scored_without_a_tokenizer(decoder, tmp_path):
    ids = np.random.default_rng(0).integers(0, 300, 70)
    np.save(tmp_path / "ids.npy", ids)
    scored = run(
        "evaluate",
        f"--checkpoint={decoder}",
        f"--token_ids={tmp_path / 'ids.npy'}",
        "--window=32",
        "--json",
    )
    values = json.loads(scored.stdout)
    loaded, nats = load(decoder), 0.0
    for start in range(0, 69, 32):
        logits = np.asarray(loaded.logits(ids[None, start : start + 32]), np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets = ids[start + 1 : start + 33]
        nats -= log_probs[np.arange(len(targets)), targets].sum()
    assert values["tokens"] == 69
    assert values["nll_per_token"] == pytest.approx(nats / 69, rel=1e-5)  # float32 logits


def test_a_conversation_keeps_what_was_said_until_it_is_reset():
    heard = []

    def answer(messages):
        heard.append([dict(m) for m in messages])
        yield from ("an", "swer")

    lines = iter(["one", "", "two", "/reset", "three", None])
    converse(lambda: next(lines), answer, "be brief", lambda kind, file: file)
    system, said = (
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "answer"},
    )
    user = {word: {"role": "user", "content": word} for word in ("one", "two", "three")}
    assert heard == [
        [system, user["one"]],
        [system, user["one"], said, user["two"]],
        [system, user["three"]],
    ]


def test_what_no_longer_fits_is_forgotten_from_the_front_but_for_the_system_message():
    messages = [
        {"role": role, "content": str(n)}
        for n, role in enumerate(["system", "user", "assistant", "user"])
    ]
    assert drop_oldest(messages) and [m["content"] for m in messages] == ["0", "3"]
    assert not drop_oldest(messages)


def test_an_answer_that_is_interrupted_is_kept_as_far_as_it_came(capsys):
    def pieces():
        yield "half"
        raise KeyboardInterrupt

    assert say(pieces()) == "half"
    assert capsys.readouterr().out == "half\n"


def test_the_chat_command_talks_over_a_pipe(decoder):
    talked = run(
        "chat",
        f"--checkpoint={decoder}",
        "--temperature=0",
        "--max_tokens=4",
        lines="to be\nor not\n/quit\n",
    )
    assert talked.returncode == 0, talked.stderr
    assert talked.stdout.count("\n") >= 2


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("generate", ["--prompt=x"], "--workdir=FOLDER"),
        ("generate", ["--checkpoint=nowhere", "--prompt=x"], "nowhere is no checkpoint"),
        ("generate", ["--checkpoint={decoder}", "--prompt=x", "--chat=y"], "give --prompt"),
        ("evaluate", ["--checkpoint={decoder}", "--text=missing.txt"], "missing.txt"),
        (
            "embed",
            ["--checkpoint={decoder}", "--text=x"],
            "sentence embeddings come from an encoder",
        ),
        ("embed", ["--checkpoint={decoder}"], "give --text"),
        ("chat", [], "give --workdir=FOLDER"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(decoder, module, arguments, says):
    refused = run(module, *[argument.format(decoder=decoder) for argument in arguments])
    assert refused.returncode == 2, refused.stderr
    assert says in refused.stderr and refused.stderr.count("\n") == 1


def test_embeddings_are_means_over_a_texts_own_tokens(tmp_path):
    tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    c = replace(FAMILIES["bert_base"], vocab_size=tokenizer.vocab_size, mlm_head=False)
    with building(tmp_path / "model") as made:
        native.write_native(in_memory(c, random_params(c)), made)
        tokenizer.save(made)
    texts = ["to be", "or not to be, that is the question", "to be"]
    made = run(
        "embed",
        f"--checkpoint={tmp_path / 'model'}",
        *[f"--text={text}" for text in texts],
        "--json",
    )
    vectors = np.array(json.loads(made.stdout)["embeddings"])
    loaded, tokenizer = load(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    for text, vector in zip(texts, vectors):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        mean = np.asarray(loaded.hidden(np.array([ids])))[0].mean(0)
        np.testing.assert_allclose(
            vector, mean / np.linalg.norm(mean), atol=1e-5
        )  # another batch, another order of sums
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
