"""What is printed of a batch: every token once with its side of the loss, for each objective, and
safe to look at."""

import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from research.data.tokenizers import load_tokenizer
from research.objectives.chat import Chat
from research.objectives.picture import describe, shown, streams, stretches
from tests.checkpoints import save_checkpoint
from tests.configs import ROOT
from tests.data.chat_templates import TEMPLATES
from tests.test_finetune import BERT, DECODER, write_rows


def lines(row, **options) -> list[str]:
    return [text.plain for text in describe(0, row, load_tokenizer("bytes"), **options)]


def a_chat_row(length: int = 8):
    """Two conversations, "ab" + "CD" and "e" + "F", the capitals the assistant's, and padding."""
    tokens = np.array([*b"abCDeF", 0, 0, 0][: length + 1], np.int32)
    segments = np.array([1, 1, 1, 1, 2, 2, 0, 0, 0], np.int32)[: length + 1]
    positions = np.array([0, 1, 2, 3, 0, 1, 0, 0, 0], np.int32)[: length + 1]
    assistant = np.array([0, 0, 1, 1, 0, 1, 0, 0, 0], np.int32)[: length + 1]
    window = {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "assistant": assistant,
    }
    return Chat().example(window, np.random.default_rng(0))


def test_a_chat_row_shows_who_speaks_where_and_what_counts():
    assert lines(a_chat_row(), chat=True) == [
        "row 0: 2 segments, 6 tokens of 8, loss on 3",
        "        others       1  0-1        |a|b|",
        "  LOSS  assistant    1  2-3        |C|D|",
        "        others       2  0-0        |e|",
        "  LOSS  assistant    2  1-1        |F|",
        "",
    ]


def labelled_row(**fields):
    ids = np.array([*b"hi Bo", 0], np.int32)
    kept = np.array([1, 1, 1, 1, 1, 0], np.int32)
    return {"inputs": ids, "segments": kept, "positions": np.arange(6), **fields}


def test_labels_of_words_and_ends_of_answers_are_shown_as_what_they_are():
    weights = np.array([1, 0, 0, 1, 0, 0], np.float32)
    words = labelled_row(targets=np.array([1, 0, 0, 0, 0, 0]), weights=weights)
    assert lines(words, labels=("B-PER", "O"))[-2] == "  LOSS  first tokens of words: h=O B=B-PER"
    ends = labelled_row(targets=np.array([3, 4]), weights=np.ones(2))
    assert lines(ends)[-2] == '  LOSS  answer 3-4 "Bo"'
    assert lines({**ends, "targets": np.zeros(2, int)})[-2] == "  LOSS  no answer"


def test_the_last_target_is_shown_where_it_counts():
    assert lines(a_chat_row(5))[-2:] == ["  LOSS    2  1-1        |F|", ""]


def test_every_token_is_in_one_stretch():
    [stream] = streams(a_chat_row())
    parts = list(stretches(stream))
    assert [at for start, stop in parts for at in range(start, stop)] == list(
        range(len(stream.tokens))
    )
    for start, stop in parts:
        assert len({(stream.segments[at], stream.loss[at]) for at in range(start, stop)}) == 1


def test_no_token_can_steer_the_terminal_or_break_its_line():
    tokenizer = load_tokenizer("bytes")
    assert [shown(tokenizer, token) for token in (0x1B, 0x0A, 0x9B, 0x41)] == [
        "\\x1b",
        "\\n",
        "<155>",
        "A",
    ]
    row = a_chat_row()
    row["inputs"][1], row["targets"][0] = ord("["), ord("[")  # rich's markup begins with it
    assert "|a|[|" in lines(row)[1]


def test_colours_are_for_terminals():
    for colours, wanted in ((True, True), (False, False)):
        console = Console(
            force_terminal=colours, width=200, color_system="standard" if colours else None
        )
        with console.capture() as captured:
            for line in describe(0, a_chat_row(), load_tokenizer("bytes")):
                console.print(line)
        assert ("\x1b[" in captured.get()) == wanted


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_checkpoint(folder / "decoder", DECODER, template=TEMPLATES["chatml"]["plain"])
    save_checkpoint(folder / "bert", BERT)
    chat = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    long = [{"role": "user", "content": "ask " * 300}, chat[1]]
    write_rows(folder / "chat.jsonl", [{"messages": chat}] * 9 + [{"messages": long}] * 9)
    write_rows(
        folder / "labelled.jsonl",
        [{"text": f"t{i}", "label": ["no", "yes"][i % 2]} for i in range(9)],
    )
    write_rows(folder / "pairs.jsonl", [{"inputs": "abc", "targets": "xyz"}] * 9)
    return folder


def inspect(*arguments: str) -> str:
    command = [sys.executable, "-m", "research.inspect_batch", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr  # notes are a part of the answer, and are there once
    return done.stdout


def test_the_command_prints_conversations(inputs):
    out = inspect(
        f"--config=configs/finetune.py:task=chat,data={inputs}/chat.jsonl,smoke",
        f"--config.init={inputs}/decoder",
        "--rows=3",
    )
    assert len(re.findall(r"^row \d: ", out, re.M)) == 3
    # What is left out and what is repeated is said before the rows.
    before = out.split("row 0: ")[0]
    # Of the last nine no answer is reached, and those of the first nine are cut.
    line = r"^left out \d, cut \d of \d+ conversations at \d+ tokens; the first: left out "
    assert re.search(line + r"chat\.jsonl:(9|1\d), cut chat\.jsonl:[0-8]$", before, re.M)
    assert re.search(r"^\d of \d held-out records are in the training data too", before, re.M)
    assert "|a|n|s|w|e|r|<|" in out.split("assistant")[-1] or "|a|n|s|w|e|r|" in out
    assert all("a|n|s|w|e|r" not in line for line in out.splitlines() if "others" in line)


def test_the_command_prints_classes_by_name(inputs):
    out = inspect(
        f"--config=configs/finetune.py:task=classification,data={inputs}/labelled.jsonl,smoke",
        f"--config.init={inputs}/bert",
    )
    assert re.search(r'LOSS  class (0 "no"|1 "yes")', out) and out.count("row ") == 2


@pytest.mark.parametrize(
    ("config", "sign"),
    [
        ("quickstart.py:smoke", "loss on 64"),
        ("pretrain.py:model=bert_base,smoke", "→"),
        ("pretrain.py:model=t5_small,smoke", "<extra_0>"),
        (
            "pretrain.py:model=transformer_base,smoke --config.objective.name=translation",
            "|x|y|z|<eos>|",
        ),
    ],
)
def test_the_command_prints_every_other_objective(inputs, config, sign):
    changes = config.split()[1:]
    if changes:
        changes += [f"--config.data.source={inputs}/pairs.jsonl", "--config.data.tokenizer=bytes"]
    assert sign in inspect(f"--config=configs/{config.split()[0]}", *changes, "--rows=1")


def test_a_wrong_flag_and_a_wrong_config_end_in_one_line():
    wrong = (
        (["--rows=0"], "rows"),
        (["--config=configs/quickstart.py:smoke", "x"], "unexpected argument"),
        (["--config=configs/finetune.py:task=chat"], "config.init"),
    )
    for arguments, message in wrong:
        command = [sys.executable, "-m", "research.inspect_batch", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (
            done.returncode == 2
            and message in done.stderr
            and len(done.stderr.strip().splitlines()) == 1
        ), done.stderr
        assert done.stdout == ""


def test_the_command_prints_the_prompts_of_a_run_on_its_own_texts():
    out = inspect("--config=configs/posttrain.py:task=grpo,smoke", "--rows=3")
    assert (
        len(re.findall(r"^prompt \d: 7 tokens; 8 texts of at most 5 continue it$", out, re.M)) == 3
    )
    assert re.search(r'record  \{"answer": "\d+", "path": "\d\d\+\d\d"\}', out)
