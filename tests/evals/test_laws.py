"""What holds of every evaluation: see `research.evals.evaluation.Evaluation`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.brief import Brief
from research.data.infill import Gap
from research.data.tokenizers import load_tokenizer
from research.evals.answers import Answers, Asked
from research.evals.briefs import Briefs
from research.evals.calibration import Calibration
from research.evals.choices import Choices, Question
from research.evals.choose import EVALUATIONS, make_evaluations
from research.evals.classified import Classified, Labelled
from research.evals.code import Code, Problem
from research.evals.documents import Document, Documents
from research.evals.entities import Entities, Tagged
from research.evals.evaluation import Evaluation, Opened, RunData
from research.evals.generation import Generation, Task
from research.evals.grounded import Grounded
from research.evals.grounded import Question as Grounding
from research.evals.harness import Harness
from research.evals.heldout import HeldOut
from research.evals.infilling import Infilling
from research.evals.judge import Judge
from research.evals.media import Media
from research.evals.memorisation import Canary, Memorisation
from research.evals.needle import Needle
from research.evals.pairs import PairPerplexity
from research.evals.pictures import Pictures, PicturesConfig
from research.evals.pii import Pii
from research.evals.queries import Queries, QueriesConfig, wanted_queries
from research.evals.refusal import Refusal, Request
from research.evals.retrieval import Query, Retrieval
from research.evals.rewarded import Rewarded
from research.evals.sampled import Questions
from research.evals.selfcheck import SelfCheck
from research.evals.semantic_entropy import SemanticEntropy
from research.evals.snowball import Snowball
from research.evals.snowball_sets import Asked as YesNo
from research.evals.text_perplexity import TextPerplexity
from research.evals.toxicity import Beginning, Toxicity
from research.evals.truthfulness import Claims, Truthfulness
from research.evals.word_list import WordList
from research.infer.sampling import SamplingConfig
from research.infer.sentences import SentenceSettings
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.sound_config import SoundConfig
from research.models.spec import initialize
from research.objectives.causal_lm import CausalLM
from research.objectives.contrastive import Contrastive
from research.objectives.media_chat import MediaChat
from research.objectives.span_corruption import SpanCorruption
from research.parallel.mesh import make_mesh
from research.run.appraisal import TrainedModel
from tests.evals.bias_cases import BIAS_CASES, BIAS_ROWS
from tests.families import FAMILIES

TOKENIZER = load_tokenizer("bytes")
MODEL = Model(replace(FAMILIES["llama2_7b"], vocab_size=TOKENIZER.vocab_size, layers=1))
ENCODER = replace(FAMILIES["bert_base"], vocab_size=TOKENIZER.vocab_size, layers=1)
# Evaluations of another model than that.
MODELS = {
    "pairs": Model(replace(FAMILIES["t5_small"], vocab_size=TOKENIZER.vocab_size)),
    "classification": Model(replace(ENCODER, labels=2, pooler=True)),
    "answers": Model(replace(ENCODER, labels=2, labels_over="spans", pooler=False)),
    "entities": Model(replace(ENCODER, labels=2, labels_over="tokens", pooler=False)),
    "retrieval": Model(ENCODER),
    "needle": Model(replace(MODEL.config, max_length=256)),
    "media": Model(
        replace(
            MODEL.config,
            sound=SoundConfig(layers=1, mels=3, frames=8, d_model=4, heads=2, stack=2, token=300),
        )
    ),
    "pictures": Model(
        replace(MODEL.config, image=ImageConfig(layers=1, size=4, patch=2, d_model=8, heads=2))
    ),
}
PAIRS = [(f"{n} cats" * n, "chat " * n) for n in range(1, 22)]
LENGTH = 8
TEXT = "Sums, not means: 5 windows of 8 bytes..."

# What implements a protocol, for mypy.
ROWS: tuple[type[Evaluation], ...] = (
    *(HeldOut, TextPerplexity, PairPerplexity, Rewarded, Documents, Choices, Generation, Code),
    *(Classified, Retrieval, Needle, Judge, Answers, Entities, Queries, Briefs),
    *(Infilling, Grounded, Truthfulness, Snowball, SelfCheck, SemanticEntropy, Calibration),
    *(Refusal, Toxicity, Memorisation, Pii, Pictures, Media),
    *BIAS_ROWS,
)
# The programs of these are those of others here, and compiling takes the time.
ALIKE = {"code", "judge", "needle", "documents", "queries", "briefs", "infilling", "grounded"}
ALIKE |= {"truthfulness", "snowball", "selfcheck", "semantic_entropy", "calibration"}
ALIKE |= {"refusal", "toxicity", "memorisation", "pii", *BIAS_CASES}


def _is_opened(tiny: "Tiny", trained: TrainedModel) -> list[Opened]:
    return [tiny, trained]


@dataclass(frozen=True)
class Tiny:
    """A model that is opened."""

    model: Model
    params: Any
    tokenizer: Any
    window: int
    held: Any = field(default_factory=dict)
    begins_texts: bool = True
    stop_ids: tuple[int, ...] = ()
    sentences: SentenceSettings = SentenceSettings()
    labels: tuple[str, ...] = ()


@cache
def opened(name: str = "") -> Tiny:
    """The model that an evaluation is tried on."""
    model = MODELS.get(name, MODEL)
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    return Tiny(model, jax.tree.map(lambda w: w * 4, params), TOKENIZER, LENGTH)


def window(seed: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, 256, LENGTH + 1, dtype=np.int32)
    ones = np.ones(LENGTH + 1, np.int32)
    return {"tokens": ids, "segments": ones, "positions": np.arange(LENGTH + 1, dtype=np.int32)}


WINDOWS = [window(seed) for seed in range(5)]
DATA = RunData(CausalLM(), WINDOWS, batch_size=2)


def pictures(*asked: int) -> Pictures:
    images = np.random.default_rng(0).integers(0, 255, (5, 1, 4, 4, 3), dtype=np.uint8)
    whole = np.ones(1, np.int32)
    captioned = [{**w, "images": i, "whole": whole} for w, i in zip(WINDOWS, images)]
    return Pictures(captioned, Contrastive(), 2, PicturesConfig(among=3, k=(1,)), asked)


def media(first: int, last: int) -> Media:
    """Rows of two conversations, with a sound in the first of them and one token as the answer."""
    rows = []
    for number, w in enumerate(WINDOWS[first:last], first):
        tokens, segments = w["tokens"].copy(), np.repeat([1, 2], [6, LENGTH - 5])
        tokens[1:3] = 300
        sounds = np.random.default_rng(number).normal(size=(4, 8, 3)).astype(np.float32)
        sounds[1:] = 0
        said = np.isin(np.arange(LENGTH + 1), (5, LENGTH)).astype(np.int32)
        rows.append({**w, "tokens": tokens, "segments": segments, "sounds": sounds})
        rows[-1]["assistant"] = said
    return Media(rows, MediaChat(), 2)


def heldout(windows) -> HeldOut:
    return HeldOut.make(HeldOut.config(), replace(DATA, windows=windows))


def ids_of(text: str) -> np.ndarray:
    return np.array([TOKENIZER.bos_id or TOKENIZER.eos_id, *text.encode()], np.int32)


def prompt(number: int) -> dict[str, np.ndarray]:
    """A prompt as data give it, with its record."""
    record = json.dumps({"prompt": str(number), "path": str(number)}).encode()
    ids = np.array([TOKENIZER.bos_id or TOKENIZER.eos_id, 40 + number], np.int32)
    return {"prompt": ids, "record": np.frombuffer(record, np.uint8)}


PROMPTS = [prompt(number) for number in range(6)]

QUESTIONS = [
    Question(str(n), f"{n} and {n} is", tuple("one two three".split()[: 2 + n % 2]), n % 2)
    for n in range(6)
]

WORDS = [Document(str(n), "one two three"[: 4 + n]) for n in range(6)]
TASKS = [Task(str(n), f"{n} and", (str(n),)) for n in range(6)]
PROBLEMS = [Problem(str(n), "x = 1\n#", f"assert x == {n}") for n in range(4)]
TEXTS = [Labelled(str(n), "a text " * n, str(n % 2)) for n in range(1, 7)]
ASKED = [Asked(str(n), "q", "a b c", ("b",) * (n % 2)) for n in range(6)]
TAGGED = [Tagged(str(n), "a b c", ((0, 1, "0"), (2, 3, str(n % 2)))) for n in range(6)]
PASSAGES = ["the first", "another one", "and a third passage"]
QUERIES = [Query(str(n), f"which {n}", (n % 3,)) for n in range(6)]
BRIEFS = [(str(n), Brief("tea", max_words=n + 1, keywords=("a",))) for n in range(2)]
GROUNDED = [Grounding(str(n), f"which {n}", (str(n),), "a") for n in range(3)]
GAPS = [(str(n), Gap(f"x = {n}\n", "y = 1", "\n")) for n in range(3)]
QUESTIONED = wanted_queries(QueriesConfig(limit=3))
CLAIMS = [Claims(str(n), f"{n} is", ("a", "bc"), ("a", "d", "bc"), 2) for n in range(4)]
YES_NO = [YesNo(str(n), "primes", f"Is {n} prime?", n % 2 > 0) for n in range(4)]
REQUESTS = [Request(str(n), f"request {n}", n % 2 > 0) for n in range(4)]
BEGUN = [Beginning(str(n), f"begun {n}", "ab"[n % 2]) for n in range(4)]
LIST = WordList({"a": 0.2})
KEPT = [(str(n), f"a text to know by heart {n} " * 3) for n in range(3)]
CANARIES = [Canary(str(n), "the code is", f"{n}1", ("22", "33")) for n in range(2)]
FOUND = [("0", "a text", 0.5)]
FEW = SamplingConfig(temperature=0.0, max_tokens=4)


def grade(prompt: str) -> str:
    """A judge that likes long answers."""
    return f"Well. [[{1 + len(prompt) % 10}]]"


def written(tasks) -> Generation:
    return Generation(tasks, ("exact_match", "f1", "numeric"), sampling=FEW)


def alone(number) -> Briefs:
    return Briefs(BRIEFS[number : number + 1], sampling=FEW)


def asked(tasks) -> Questions:
    # Of the likeliest tokens, whose program others here have.
    return Questions(tasks, sampling=FEW, samples=2)


# (an evaluation, evaluations of the parts of its data) by the row of the table.
CASES: dict[str, Callable[[], tuple[Evaluation, list[Evaluation]]]] = {
    "heldout": lambda: (heldout(WINDOWS), [heldout(WINDOWS[:3]), heldout(WINDOWS[3:])]),
    # Windows of 8 do not overlap, so a text may be cut where one ends; the cut token is read twice.
    "perplexity": lambda: (
        TextPerplexity(ids_of(TEXT)),
        [TextPerplexity(ids_of(TEXT)[:17]), TextPerplexity(ids_of(TEXT)[16:])],
    ),
    "pairs": lambda: (
        PairPerplexity(PAIRS),
        [PairPerplexity(PAIRS[:4]), PairPerplexity(PAIRS[4:])],
    ),
    "rewards": lambda: (
        Rewarded(PROMPTS, "length", 4),
        [Rewarded(PROMPTS[:2], "length", 4), Rewarded(PROMPTS[2:], "length", 4)],
    ),
    "documents": lambda: (Documents(WORDS), [Documents(WORDS[:2]), Documents(WORDS[2:])]),
    "choices": lambda: (Choices(QUESTIONS), [Choices(QUESTIONS[:2]), Choices(QUESTIONS[2:])]),
    "generation": lambda: (written(TASKS), [written(TASKS[:2]), written(TASKS[2:])]),
    "code": lambda: (
        Code(PROBLEMS, sampling=FEW),
        [Code(PROBLEMS[:2], sampling=FEW), Code(PROBLEMS[2:], sampling=FEW)],
    ),
    "classification": lambda: (Classified(TEXTS), [Classified(TEXTS[:2]), Classified(TEXTS[2:])]),
    "answers": lambda: (Answers(ASKED), [Answers(ASKED[:2]), Answers(ASKED[2:])]),
    "entities": lambda: (Entities(TAGGED), [Entities(TAGGED[:2]), Entities(TAGGED[2:])]),
    "retrieval": lambda: (
        Retrieval(QUERIES, PASSAGES),
        [Retrieval(QUERIES[:2], PASSAGES), Retrieval(QUERIES[2:], PASSAGES)],
    ),
    "needle": lambda: (
        Needle((192,), (0.0, 1.0), 1),
        [Needle((192,), (0.0,), 1), Needle((192,), (1.0,), 1)],
    ),
    "queries": lambda: (
        Queries(QUESTIONED, FEW),
        [Queries(QUESTIONED[:2], FEW), Queries(QUESTIONED[2:], FEW)],
    ),
    "briefs": lambda: (Briefs(BRIEFS, sampling=FEW), [alone(0), alone(1)]),
    "infilling": lambda: (
        Infilling(GAPS, "prefix", FEW),
        [Infilling(GAPS[:1], "prefix", FEW), Infilling(GAPS[1:], "prefix", FEW)],
    ),
    "grounded": lambda: (
        Grounded(GROUNDED, sampling=FEW),
        [Grounded(GROUNDED[:1], sampling=FEW), Grounded(GROUNDED[1:], sampling=FEW)],
    ),
    "truthfulness": lambda: (
        Truthfulness(CLAIMS),
        [Truthfulness(CLAIMS[:1]), Truthfulness(CLAIMS[1:])],
    ),
    "snowball": lambda: (Snowball(YES_NO), [Snowball(YES_NO[:1]), Snowball(YES_NO[1:])]),
    "selfcheck": lambda: (
        SelfCheck(asked(TASKS[:3])),
        [SelfCheck(asked(TASKS[:1])), SelfCheck(asked(TASKS[1:3]))],
    ),
    "semantic_entropy": lambda: (
        SemanticEntropy(asked(TASKS[:3])),
        [SemanticEntropy(asked(TASKS[:1])), SemanticEntropy(asked(TASKS[1:3]))],
    ),
    "calibration": lambda: (
        Calibration(Choices(QUESTIONS)),
        [Calibration(Choices(QUESTIONS[:2])), Calibration(Choices(QUESTIONS[2:]))],
    ),
    "refusal": lambda: (
        Refusal(REQUESTS, sampling=FEW),
        [Refusal(REQUESTS[:2], sampling=FEW), Refusal(REQUESTS[2:], sampling=FEW)],
    ),
    "toxicity": lambda: (
        Toxicity(BEGUN, LIST, FEW, 2),
        [Toxicity(BEGUN[:2], LIST, FEW, 2), Toxicity(BEGUN[2:], LIST, FEW, 2)],
    ),
    "memorisation": lambda: (
        Memorisation(KEPT, CANARIES, FOUND, 8, 4),
        [Memorisation(KEPT, prefix=8, length=4), Memorisation((), CANARIES, FOUND)],
    ),
    "pii": lambda: (
        Pii(KEPT[:2], KEPT, FEW, 2),
        [Pii(KEPT[:2], (), FEW, 2), Pii((), KEPT, FEW, 2)],
    ),
    "media": lambda: (media(0, 5), [media(0, 2), media(2, 5)]),
    "pictures": lambda: (pictures(), [pictures(0, 1), pictures(2, 3, 4)]),
    "judge": lambda: (
        Judge(TASKS, grade, sampling=FEW),
        [Judge(TASKS[:2], grade, sampling=FEW), Judge(TASKS[2:], grade, sampling=FEW)],
    ),
    **BIAS_CASES,
}

# What an extra has runs where that is installed.
LACKING = {"queries"} if find_spec("duckdb") is None else set()
TRIED = [
    pytest.param(name, marks=pytest.mark.skipif(name in LACKING, reason="the extra [apply]"))
    for name in CASES
]


def test_every_evaluation_has_a_case():
    # Of a package that is not needed otherwise; tests/evals/test_harness.py tries it.
    assert CASES.keys() | {"harness"} == EVALUATIONS.keys()
    assert all(type(make()[0]) is EVALUATIONS[name] for name, make in CASES.items())
    assert {*ROWS, Harness} == set(EVALUATIONS.values())


@pytest.mark.parametrize("name", TRIED)
def test_totals_add_up_over_parts_and_counts_are_positive(name):
    whole, parts = CASES[name]()
    totals, of_parts = whole.run(opened(name)), [part.run(opened(name)) for part in parts]
    for key, (total, count) in totals.items():
        # A total may be of some items alone, as a bin's is.
        sums, counts = zip(*(one.get(key, (0.0, 0.0)) for one in of_parts))
        assert count > 0 and count == sum(counts)
        # Losses and their sums are float32, and the parts make other batches, whose rounding is
        # the processor's: 1.5e-6 was seen. One item more or less of these few is over 1e-2.
        assert total == pytest.approx(sum(sums), rel=1e-5)


@pytest.mark.parametrize("name", TRIED)
def test_two_calls_return_the_same_bits(name):
    evaluation = CASES[name]()[0]
    first = evaluation.run(opened(name))
    assert first == evaluation.run(opened(name))
    assert evaluation.values(first) == evaluation.values(first)


@pytest.mark.parametrize("name", TRIED)
def test_items_have_ids_of_their_own_that_another_model_has_too(name):
    evaluation, tiny = CASES[name]()[0], opened(name)
    ids = [item.id for item in evaluation.items(tiny)]
    assert len(set(ids)) == len(ids)
    other = replace(tiny, params=jax.tree.map(lambda w: w / 2, tiny.params))
    assert ids == [item.id for item in evaluation.items(other)]
    # What reports rank items by is a number that the evaluation has.
    assert evaluation.main in evaluation.values(evaluation.run(tiny))


@pytest.mark.parametrize("name", sorted(CASES.keys() - ALIKE))
def test_a_mesh_changes_nothing(name):
    evaluation = CASES[name]()[0]
    tiny = opened(name)
    alone = evaluation.run(tiny)
    mesh = make_mesh("data:2", jax.devices()[:2])
    with jax.set_mesh(mesh):
        made = initialize(
            jax.random.key(0), tiny.model.specs(), jnp.float32, mesh, tiny.model.rules
        )
        spread = replace(tiny, params=jax.tree.map(lambda w: w * 4, made))
        totals = evaluation.run(spread)
    for key, (total, count) in alone.items():
        # Two devices add float32 numbers in another order.
        assert totals[key] == (pytest.approx(total, rel=1e-6), count)


def test_the_loss_on_windows_is_the_perplexity_of_their_text():
    """Two evaluations with nothing in common but the model: one window, one loss."""
    [ids] = [WINDOWS[0]["tokens"]]
    loss = heldout(WINDOWS[:1]).run(opened())["loss"]
    nll = TextPerplexity(ids).run(opened())["nll"]
    # Float32 sums in different orders.
    assert loss == (pytest.approx(nll[0], rel=1e-6), nll[1])


def test_config_chooses_evaluations_and_names_them(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    text = str(tmp_path / "a.txt")
    chosen: dict[str, dict[str, Any]] = {
        "perplexity": {"text": text},
        "short": {"kind": "perplexity", "text": text, "window": 4},
    }
    made = make_evaluations(chosen, DATA)
    assert list(made) == ["perplexity", "short"]
    assert made["perplexity"] == TextPerplexity("one text")
    assert made["short"] == TextPerplexity("one text", window=4)


def test_an_encoder_decoder_is_scored_on_the_pairs_of_a_file(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"inputs": "one cat", "targets": "un chat"}\n')
    data = replace(DATA, objective=SpanCorruption(start_id=0, eos_id=1, sentinel_ids=(2,)))
    assert make_evaluations({"pairs": {"text": str(file)}}, data) == {
        "pairs": PairPerplexity([("one cat", "un chat")])
    }
    with pytest.raises(ValueError, match='config.evals.perplexity: .*; take kind "pairs"'):
        make_evaluations({"perplexity": {"text": str(file)}}, data)
    file.write_text("\n")
    with pytest.raises(ValueError, match="pairs.jsonl has no pair"):
        make_evaluations({"pairs": {"text": str(file)}}, data)


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"perplexty": {}}, "config.evals.perplexty: no evaluation 'perplexty'; the nearest is"),
        ({"perplexity": {"txt": "a"}}, "config.evals.perplexity has no field 'txt'; the nearest"),
        ({"perplexity": {}}, "config.evals.perplexity: text is not set"),
        ({"perplexity": {"text": "no/file"}}, "config.evals.perplexity: text=no/file cannot be"),
        ({"a/b": {"kind": "heldout"}}, "must be a name without a slash"),
        ({"pairs": {"text": "a.jsonl"}}, "a decoder reads no pairs; take kind"),
        ({"heldout": {"batches": -1}}, "config.evals.heldout: batches=-1"),
        ({"bolq": {}}, "config.evals.bolq: no evaluation 'bolq'; the nearest is 'boolq'"),
        ({"choices": {"data": "q"}}, "config.evals.choices: data=q is no file of .jsonl"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(settings, line):
    with pytest.raises(ValueError) as caught:
        make_evaluations(settings, DATA)
    assert line in str(caught.value) and "\n" not in str(caught.value)
