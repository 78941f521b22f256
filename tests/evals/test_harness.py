"""lm-evaluation-harness asks our models in process, and finds what our own evaluations find."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from research.evals.choices import Choices, ChoicesConfig
from research.evals.code import Code, CodeConfig
from research.evals.documents import Document, Documents
from research.evals.evaluation import RunData
from research.evals.harness import Harness, HarnessConfig
from research.evals.records import read_records
from research.models.model import Model
from tests.evals.test_laws import ENCODER, MODEL, TOKENIZER, opened

DECODER = RunData(kind="decoder")
BOOLQ = """
task: boolq_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{passage}}}}\\nQuestion: {{{{question}}}}?\\nAnswer:"
doc_to_choice: ["no", "yes"]
doc_to_target: "{{{{['no', 'yes'].index(answer)}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PIQA = """
task: piqa_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
CODE = """
task: humaneval_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: entry_point
generation_kwargs: {{until: ["\\nclass", "\\ndef"], max_gen_toks: 8}}
process_results: !function passes.passes
metric_list: [{{metric: passed, aggregation: mean, higher_is_better: true}}]
"""
PASSES = """
from research.posttrain.sandbox import run_code


def passes(doc, results):
    tests = f"{doc['test']}\\ncheck({doc['entry_point']})"
    return {"passed": float(run_code(f"{doc['prompt']}{results[0]}\\n{tests}\\n").passed)}
"""
TEXTS = """
task: texts_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""


def records(name: str, limit: int) -> list[dict]:
    """Some of a package's records, short enough for a tiny model."""
    try:
        found = [record for _, record in read_records(name)]
    except ValueError as error:
        pytest.skip(str(error))
    return sorted(found, key=lambda one: len(json.dumps(one)))[:limit]


def task(tmp_path, text: str, found: list[dict]) -> str:
    """The file of a task's data, beside the task."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in found))
    (tmp_path / "task.yaml").write_text(text.format(data=data))
    (tmp_path / "passes.py").write_text(PASSES)
    return str(data)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval: pip install '.[harness]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def long_enough():
    """The tiny model with room for passages, which differs from prompt to prompt."""
    return replace(opened(), model=Model(replace(MODEL.config, max_length=2048)), window=32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "text", "ours"),
    [
        (
            "boolq",
            BOOLQ,
            {"prompt": "{passage}\nQuestion: {question}?\nAnswer:", "choices": ("no", "yes")},
        ),
        ("piqa", PIQA, {"prompt": "Question: {question}\nAnswer:"}),
    ],
)
def test_choices_are_those_of_our_own_evaluation(name, text, ours, tmp_path):
    data = task(tmp_path, text, records(name, 40))
    theirs = Harness.make(HarnessConfig(f"{name}_here", str(tmp_path)), DECODER)
    mine = Choices.make(ChoicesConfig(data, **ours), DECODER)
    tiny = long_enough()
    for one, other in zip(theirs.items(tiny), mine.items(tiny), strict=True):
        assert one.id == other.id
        assert one.totals == {name: other.totals[name] for name in ("acc", "acc_norm")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_programs_are_those_of_our_own_evaluation(tmp_path):
    found = records("humaneval", 4)
    # A problem that any text solves, since no tiny model writes a program.
    found += [{**found[0], "prompt": "def f():\n    return 1 #", "entry_point": "f"}]
    found[-1] |= {"task_id": "easy", "test": "def check(f):\n    assert f() == 1"}
    data = task(tmp_path, CODE, found)
    theirs = Harness.make(HarnessConfig("humaneval_here", str(tmp_path)), DECODER)
    mine = Code.make(CodeConfig(data, max_tokens=8, stop=("\nclass", "\ndef")), DECODER)
    tiny = long_enough()
    both = list(zip(theirs.items(tiny), mine.items(tiny), strict=True))
    assert [one.totals["passed"] for one, _ in both] == [mine.totals["pass@1"] for _, mine in both]
    assert both[-1][0].totals["passed"] == (1.0, 1.0) and both[0][0].totals["passed"][0] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_uniform_model_over_bytes_takes_eight_bits(tmp_path):
    """In lm-eval and in our own evaluation, of texts longer than a window."""
    texts = ["caf\u00e9 \U0001f600\n" * 9, "one two three"]
    task(tmp_path, TEXTS, [{"text": text} for text in texts])
    model = Model(replace(MODEL.config, head_bias=True))
    params = jax.tree.map(
        lambda s: jnp.zeros(s.shape), model.specs(), is_leaf=lambda s: hasattr(s, "axes")
    )
    # Tokens that are no bytes have no probability.
    bias_V = jnp.where(jnp.arange(TOKENIZER.vocab_size) < 256, 0.0, -1e9)
    params = {**params, "head": {**params["head"], "output_bias": bias_V}}
    tiny = replace(opened(), model=model, params=params)
    theirs = Harness.make(HarnessConfig("texts_here", str(tmp_path)), DECODER)
    mine = Documents([Document(str(n), text) for n, text in enumerate(texts)])
    values, own = (one.values(one.run(tiny)) for one in (theirs, mine))
    # Float32 logarithms of 256.
    assert values["bits_per_byte"] == pytest.approx(8, rel=1e-6)
    assert values["byte_perplexity"] == pytest.approx(256, rel=1e-5)
    assert own["bits_per_byte"] == pytest.approx(8, rel=1e-6)
    assert own["perplexity"] == pytest.approx(256, rel=1e-5)
    words = sum(len(text.split()) for text in texts)
    nats = sum(len(text.encode()) for text in texts) * math.log(256)
    # lm-eval counts what single spaces and line ends separate, so its words are its own.
    assert own["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)


@pytest.mark.slow
def test_what_lm_eval_cannot_ask_is_refused(tmp_path):
    from research.evals.harness_model import as_lm

    with pytest.raises(ValueError, match="no folder of task files"):
        HarnessConfig("boolq", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="lm-eval has no task 'boolq'"):
        list(Harness(HarnessConfig("boolq", str(tmp_path))).items(opened()))
    with pytest.raises(ValueError, match="asks a decoder with a tokenizer"):
        as_lm(replace(opened(), model=Model(ENCODER)))


@pytest.mark.slow
def test_chats_are_written_by_the_template():
    from research.evals.harness_model import as_lm

    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    lm = as_lm(replace(opened(), tokenizer=replace(TOKENIZER, chat_template=template)))
    assert lm.apply_chat_template([{"role": "user", "content": "a"}]) == "<user>a"
    assert lm.chat_template(True) == template and lm.tokenizer_name
