"""Decoding with a cache against the model without one, and what a batch of continuations promises."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.data.tokenizers import load_tokenizer
from research.infer import steps
from research.infer.decode import generate, stream
from research.infer.sampling import SamplingConfig
from research.mesh import make_mesh
from research.models.config import Execution
from research.models.model import Model, forward
from research.models.spec import initialize, shardings
from tests.families import DECODERS, FAMILIES, VOCAB

CHUNK, LENGTH = 4, 12
TOKENIZER = load_tokenizer("bytes")
PROMPTS = ["def f(x):\n    return x", "hi", "a longer prompt than these", "x = "]
GREEDY = SamplingConfig(temperature=0, max_tokens=12)


@cache
def parameters(name, vocab_size=VOCAB):
    """Random parameters, large enough that continuations are not all one token."""
    params = initialize(jax.random.key(1), Model(replace(FAMILIES[name], vocab_size=vocab_size)).specs(), jnp.float32)
    return jax.tree.map(lambda w: w * 4 if w.ndim > 2 else w, params)


def texts():
    """Tokens [B, T] in rows of different lengths, padded on the right, for decoder and encoder."""
    rng, lengths_B1 = np.random.default_rng(0), np.array([[LENGTH], [9], [2]])
    fields = {}
    for side in ("", "encoder_"):
        positions = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
        fields |= {
            f"{side}inputs": rng.integers(0, VOCAB, (3, LENGTH), dtype=np.int32),
            f"{side}positions": positions,
            f"{side}segments": (positions < lengths_B1).astype(np.int32),
        }
    return fields


@partial(jax.jit, static_argnums=0)
def three_ways(model, params, batch):
    """Logits from one pass, from a cache fed in chunks, and from one fed two chunks and then token by token."""
    memory = model.encode(params, batch) if model.config.kind == "encoder_decoder" else None
    own = {name: batch[name] for name in ("inputs", "positions", "segments")}

    def feed(cache, batch):
        hidden_BTD, cache = model.decode(params, batch, cache, memory)
        return cache, model.logits(params, hidden_BTD)

    def feed_in(cache, chunk, batch):
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(3, -1, chunk), 1, 0), batch)
        cache, logits = lax.scan(feed, cache, parts)
        return cache, jnp.moveaxis(logits, 0, 1).reshape(3, -1, VOCAB)

    empty, head = model.make_cache(3, LENGTH, CHUNK), 2 * CHUNK
    _, chunked = feed_in(empty, CHUNK, own)
    cache, first = feed_in(empty, CHUNK, jax.tree.map(lambda x: x[:, :head], own))
    _, rest = feed_in(cache, 1, jax.tree.map(lambda x: x[:, head:], own))
    return forward(model, params, batch), chunked, jnp.concatenate([first, rest], axis=1)


# Scanned and unrolled layers read the cache by traced and by constant index.
@pytest.mark.parametrize(
    "name, unroll",
    [*((name, 1) for name in [*DECODERS, "transformer_base", "t5_small"]), ("mistral_7b", 0), ("t5_small", 0)],
)
def test_a_cache_changes_nothing(name, unroll):
    batch, model = texts(), Model(FAMILIES[name], execution=Execution(unroll=unroll))
    whole, chunked, stepped = three_ways(model, parameters(name), batch)
    real = batch["segments"] > 0
    # Sums of the same float32 products in another order; logits are of the order of 1.
    np.testing.assert_allclose(np.asarray(chunked)[real], np.asarray(whole)[real], atol=1e-5)
    np.testing.assert_allclose(np.asarray(stepped)[real], np.asarray(whole)[real], atol=1e-5)


def test_a_window_needs_no_more_slots_than_it_and_a_chunk_have():
    window = FAMILIES["mistral_7b"].window
    cache = jax.eval_shape(lambda: Model(FAMILIES["mistral_7b"]).make_cache(2, 10_000, CHUNK))
    assert cache.key_LBSKH.shape[2] == cache.slots == window + CHUNK - 1


@cache
def model_and_params():
    model = Model(replace(FAMILIES["llama3_405b"], vocab_size=TOKENIZER.vocab_size))
    return model, parameters("llama3_405b", TOKENIZER.vocab_size)


def write(prompts=PROMPTS, **changes):
    return generate(*model_and_params(), TOKENIZER, prompts, replace(GREEDY, **changes))


def test_greedy_text_is_the_models_likeliest_with_its_own_probabilities():
    model, params = model_and_params()
    generations = write()
    width = 64
    rows = [[TOKENIZER.bos_id, *TOKENIZER.encode(g.prompt), *g.token_ids] for g in generations]
    inputs = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    positions = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    segments = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)
    logits = forward(model, params, {"inputs": inputs, "positions": positions, "segments": segments})
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for row, ids, g in zip(logprobs, rows, generations):
        at = np.arange(len(ids) - len(g.token_ids), len(ids)) - 1
        assert len(set(g.token_ids)) > 1 and g.finish == "length"
        np.testing.assert_array_equal(row[at].argmax(axis=1), g.token_ids)
        np.testing.assert_allclose(g.logprobs, row[at, list(g.token_ids)], atol=1e-5)  # float32, as above
        assert g.text == TOKENIZER.decode(g.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_others(temperature):
    together = write(temperature=temperature, seed=3)
    turned = write([PROMPTS[2], "something else", PROMPTS[0], "y"], temperature=temperature, seed=3)
    assert (turned[0].token_ids, turned[2].token_ids) == (together[2].token_ids, together[0].token_ids)


def test_seeds_decide_and_copies_of_a_prompt_differ():
    first = write(["a", "a", "b", "c"], temperature=1.0, seed=5)
    assert first == write(["a", "a", "b", "c"], temperature=1.0, seed=5)
    assert first[0].token_ids != first[1].token_ids
    assert first[0].token_ids != write(["a", "a", "b", "c"], temperature=1.0, seed=6)[0].token_ids


def test_a_second_prompt_compiles_nothing():
    write()
    programs = (steps._empty, steps._feed, steps._first, steps.advance)
    before = [program._cache_size() for program in programs]
    write(["another prompt", "and", "two", "more of them"], max_tokens=9, stop=("q",), seed=9)
    assert [program._cache_size() for program in programs] == before


def test_a_stop_string_is_cut_off_with_what_follows():
    whole = write()[0]
    stop = whole.text[5:7]
    got = write(stop=(stop, "never there"))[0]
    assert got.text == whole.text[: whole.text.index(stop)] and got.finish == "stop"
    assert got.token_ids == whole.token_ids[: len(got.token_ids)]
    assert stop in TOKENIZER.decode(got.token_ids) and stop not in TOKENIZER.decode(got.token_ids[:-1])
    assert len(got.logprobs) == len(got.token_ids)


def test_an_end_token_ends_the_text_and_is_no_part_of_it():
    whole = write()[0]
    end_id = whole.token_ids[4]
    first = whole.token_ids.index(end_id)
    stopped = write(stop_ids=(end_id,))[0]
    ended = generate(*model_and_params(), replace(TOKENIZER, eos_id=end_id), PROMPTS, GREEDY)[0]
    for got, finish in ((stopped, "stop"), (ended, "eos")):
        assert got.token_ids == whole.token_ids[: first + 1] and got.finish == finish
        assert got.text == TOKENIZER.decode(whole.token_ids[:first])


def test_a_stream_gives_the_same_text_in_pieces():
    config = replace(GREEDY, temperature=1.0, stop=("e",), seed=1)
    writing, pieces = stream(*model_and_params(), TOKENIZER, PROMPTS, config), [[] for _ in PROMPTS]
    while True:
        try:
            index, piece = next(writing)
        except StopIteration as ended:
            break
        pieces[index].append(piece)
    assert ended.value == generate(*model_and_params(), TOKENIZER, PROMPTS, config)
    assert ["".join(parts) for parts in pieces] == [g.text for g in ended.value]
    assert max(map(len, pieces)) > 1


def test_a_mesh_changes_nothing():
    model, params = model_and_params()
    mesh = make_mesh("data:2,fsdp:2,tensor:2")
    config = replace(GREEDY, repetition_penalty=1.2)
    alone = generate(model, params, TOKENIZER, PROMPTS, config)
    split = jax.device_put(params, shardings(model.specs(), mesh))
    with jax.set_mesh(mesh):
        spread = generate(model, split, TOKENIZER, PROMPTS, config)
    for a, b in zip(alone, spread):
        assert a.token_ids == b.token_ids
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)  # float32 sums over devices


def test_an_encoder_decoder_continues_from_its_start():
    model = Model(replace(FAMILIES["transformer_base"], vocab_size=TOKENIZER.vocab_size))
    params = parameters("transformer_base", TOKENIZER.vocab_size)
    [g] = generate(model, params, TOKENIZER, ["translate me"], GREEDY)
    source = np.array([[TOKENIZER.bos_id, *TOKENIZER.encode("translate me"), TOKENIZER.eos_id]], np.int32)
    inputs = np.array([[TOKENIZER.pad_id, *g.token_ids[:-1]]], np.int32)
    batch = {}
    for side, ids in (("", inputs), ("encoder_", source)):
        batch |= {f"{side}inputs": ids, f"{side}segments": np.ones_like(ids)}
        batch |= {f"{side}positions": np.arange(ids.shape[1], dtype=np.int32)[None]}
    logprobs = np.asarray(jax.nn.log_softmax(forward(model, params, batch)))[0]
    np.testing.assert_array_equal(logprobs.argmax(axis=1), g.token_ids)
    np.testing.assert_allclose(g.logprobs, logprobs[np.arange(len(g.token_ids)), list(g.token_ids)], atol=1e-5)


def test_learned_positions_end_a_text_and_refuse_a_prompt_beyond_them():
    name = "gpt2"
    model = Model(replace(FAMILIES[name], vocab_size=TOKENIZER.vocab_size, layers=1))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    length = model.config.max_length
    [g] = generate(model, params, TOKENIZER, [[1] * (length - 3)], GREEDY)
    assert len(g.token_ids) == 3 and g.finish == "length"
    with pytest.raises(ValueError, match=f"prompt 0 has {length + 1} tokens, the model {length} positions"):
        generate(model, params, TOKENIZER, ["x" * length], GREEDY)


def test_prompts_that_cannot_be_continued_are_refused():
    model, params = model_and_params()
    with pytest.raises(ValueError, match="prompt 1 must be one or more ids in"):
        generate(model, params, TOKENIZER, ["a", [TOKENIZER.vocab_size]], GREEDY)
    with pytest.raises(ValueError, match="prompt 0 must be one or more ids in"):
        generate(model, params, TOKENIZER, [[]], GREEDY)
    with pytest.raises(ValueError, match="encoder"):
        generate(Model(FAMILIES["bert_base"]), {}, TOKENIZER, ["a"], GREEDY)
    assert generate(model, params, TOKENIZER, [], GREEDY) == []
