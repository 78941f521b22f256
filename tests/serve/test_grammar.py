"""Grammars: every text follows its own, and is brought to its end in time."""

import json
import re
from dataclasses import replace
from functools import cache

import jax
import jsonschema
import pytest

from research.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.runner import Draft
from tests.families import FAMILIES
from tests.interop.memory import random_params

pytest.importorskip("llguidance", reason="pip install 'graft-research[serve]'")

from research.serve.grammar import Grammar, Grammars

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1},
        "lives": {"type": "object", "properties": {"in": {"type": "string"}}, "required": ["in"]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3}},
}


@cache
def tokenizer(kind: str = "bpe:300") -> Tokenizer:
    if kind == "bytes":
        return load_tokenizer(kind)
    return train_tokenizer(kind, ["to be or not to be, that is the question " * 20])


@cache
def engine(drafts: int = 0) -> Engine:
    """One with random weights, which write anything; a model that writes much the same guesses its
    drafts."""
    c = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer().vocab_size, max_length=128)
    sizes = {"pages": 64, "page_size": 16, "rows": 8, "chunk": 16}
    params = random_params(c)
    like = Draft(Model(c), jax.tree.map(lambda w: w * 0.8, params)) if drafts else None
    made = Engine(Model(c), params, tokenizer(), drafts=drafts, draft=like, **sizes)
    made.shapes = replace(made.shapes, least=8)  # few programs
    return made


def read(kind: str, spec, of: str = "bpe:300") -> Grammar:
    return Grammars(tokenizer(of), ()).read(kind, spec)


def write(grammar: Grammar, seeds: range, most: int, temperature: float = 1.5) -> list:
    samplings = [SamplingConfig(temperature, seed=seed, max_tokens=most) for seed in seeds]
    return engine().generate([Request("to be", one, grammar=grammar) for one in samplings])


@pytest.mark.parametrize("schema, most", [(PERSON, 48), (TREE, 30)])
def test_random_weights_write_values_of_a_schema(schema, most):
    for done in write(read("json_schema", schema), range(8), most):
        jsonschema.validate(json.loads(done.text.removesuffix("<eos>")), schema)
        assert done.finish in ("stop", "eos") and len(done.token_ids) <= most
        assert len(done.logprobs) == len(done.token_ids)
    assert engine().pages.held == 0


def test_a_schema_that_has_no_room_ends_at_its_length():
    for done in write(read("json_schema", PERSON), range(4), 8):
        assert done.finish == "length" and done.text.startswith("{")


@pytest.mark.parametrize(
    "kind, spec, pattern",
    [
        ("regex", r"[a-c]{3,}z", r"[a-c]{3,}z"),
        ("lark", 'start: "(" start ")" | "x"', r"\(*x\)*"),
    ],
)
def test_expressions_and_grammars(kind, spec, pattern):
    for done in write(read(kind, spec), range(8), 24):
        assert re.fullmatch(pattern, done.text.removesuffix("<eos>")), done.text


def test_neighbours_without_a_grammar_write_what_they_write_alone():
    free = Request("to be", SamplingConfig(seed=3, max_tokens=12))
    bound = Request("to be", SamplingConfig(seed=3, max_tokens=12), grammar=read("regex", "[0-9]+"))
    [alone] = engine().generate([free])
    beside, _ = engine().generate([free, bound])
    assert beside.token_ids == alone.token_ids


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece:320"])
def test_other_tokenizers_have_their_tokens_as_bytes(kind):
    guide, of = read("regex", "t[aé]b", kind).guide(), tokenizer(kind)
    text = of.encode("taéb")
    assert of.decode(text).strip() == "taéb"
    written: list[int] = []
    while not guide.finished:
        bits = guide.mask(64 - len(written))
        allowed = [n for n in range(of.vocab_size) if bits[n // 32] >> n % 32 & 1]
        written.append(next(n for n in allowed if n not in guide.ends))
        assert guide.take(written[-1], 64 - len(written))
    assert of.decode(written).strip() in ("tab", "téb")


@pytest.mark.parametrize(
    "kind, spec, said",
    [
        ("json_schema", {"type": "thing"}, "Invalid type"),
        ("json_schema", {"type": "string", "not": {"const": "a"}}, "not"),
        ("regex", "(a", "unclosed group"),
        ("lark", "start", "Expected"),
    ],
)
def test_what_cannot_be_read_is_refused(kind, spec, said):
    with pytest.raises(ValueError, match=said):
        read(kind, spec)


@pytest.mark.slow
def test_texts_with_guesses_follow_their_grammar_as_those_without():
    grammar, greedy = read("json_schema", PERSON), SamplingConfig(0.0, max_tokens=48)
    starts = ["to be", "or not", "that is", "the question"]
    asked = [Request(start, greedy, grammar=grammar) for start in starts]
    drafted, plain = engine(drafts=3), engine()
    before = plain.counts.steps
    for got, want in zip(drafted.generate(asked), plain.generate(asked)):
        assert (got.token_ids, got.finish) == (want.token_ids, want.finish)
    assert 0 < drafted.counts.kept < drafted.counts.guessed and drafted.pages.held == 0
    assert drafted.counts.steps < plain.counts.steps - before
    warm = [replace(one, sampling=SamplingConfig(1.5, max_tokens=48, seed=2)) for one in asked]
    for done in drafted.generate(warm):
        jsonschema.validate(json.loads(done.text.removesuffix("<eos>")), PERSON)


@pytest.mark.slow
def test_200_of_200_values_of_random_weights_are_of_the_schema():
    for done in write(read("json_schema", PERSON), range(200), 60, 2.0):
        jsonschema.validate(json.loads(done.text.removesuffix("<eos>")), PERSON)
