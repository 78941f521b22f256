"""Decoding with a cache against the model without one, and what a batch of continuations
promises."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.data.tokenizers import load_tokenizer
from research.infer import decode_layout as turned
from research.infer import steps
from research.infer.decode import generate, stream
from research.infer.decode_layout import prepare
from research.infer.sampling import SamplingConfig
from research.models.config import Execution
from research.models.model import Model, forward
from research.models.spec import initialize, shardings
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from tests.families import FAMILIES, VOCAB

CHUNK, LENGTH = 4, 12
TOKENIZER = load_tokenizer("bytes")
PROMPTS = ["def f(x):\n  ", "hi", "a longer prompt now", "x = "]
whole_logits = jax.jit(forward, static_argnums=0)
GREEDY = SamplingConfig(temperature=0, max_tokens=12)


# Grouped key heads and learned positions, which end.
WRITER = replace(
    FAMILIES["llama2_7b"],
    vocab_size=TOKENIZER.vocab_size,
    kv_heads=2,
    position="learned",
    max_length=32,
)
TRANSLATOR = replace(FAMILIES["transformer_base"], vocab_size=TOKENIZER.vocab_size)


@cache
def parameters(config):
    """Random parameters, large enough that continuations are not all one token."""
    params = initialize(jax.random.key(1), Model(config).specs(), jnp.float32)
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
def two_ways(model, params, batch):
    """Logits from one pass, and from a cache that is fed two chunks and then token by token."""
    memory = model.encode(params, batch) if model.config.kind == "encoder_decoder" else None

    def feed(cache, batch):
        hidden_BTD, cache = model.decode(params, batch, cache, memory)
        return cache, model.logits(params, hidden_BTD)

    def feed_in(cache, chunk, part):
        rows = {name: batch[name][:, part] for name in ("inputs", "positions", "segments")}
        chunks = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(3, -1, chunk), 1, 0), rows)
        cache, logits = lax.scan(feed, cache, chunks)
        return cache, jnp.moveaxis(logits, 0, 1).reshape(3, -1, VOCAB)

    cache, first = feed_in(model.make_cache(3, LENGTH, CHUNK), CHUNK, slice(0, 2 * CHUNK))
    _, rest = feed_in(cache, 1, slice(2 * CHUNK, LENGTH))
    return forward(model, params, batch), jnp.concatenate([first, rest], axis=1)


# Scanned and unrolled layers read the cache by a traced and by a constant index.
@pytest.mark.parametrize(
    "name, unroll",
    [
        *(
            (name, 1)
            for name in (
                "gpt2",
                "llama3_405b",
                "mistral_7b",
                "mixtral_8x7b",
                "qwen3_8b",
                "t5_small",
            )
        ),
        *((name, 0) for name in ("mistral_7b", "transformer_base")),
    ],
)
def test_a_cache_changes_nothing(name, unroll):
    batch, model = texts(), Model(FAMILIES[name], execution=Execution(unroll=unroll))
    whole, cached = two_ways(model, parameters(model.config), batch)
    real = batch["segments"] > 0
    # Sums of the same float32 products in another order, which rounds apart at the size of the
    # largest logits.
    got, wanted = np.asarray(cached)[real], np.asarray(whole)[real]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_window_needs_no_more_slots_than_it_and_a_chunk_have():
    window = FAMILIES["mistral_7b"].window
    cache = jax.eval_shape(lambda: Model(FAMILIES["mistral_7b"]).make_cache(2, 10_000, CHUNK))
    assert cache.key_LBKSH.shape[3] == cache.positions_BS.shape[1] == window + CHUNK - 1


def write(prompts=PROMPTS, tokenizer=TOKENIZER, **changes):
    return generate(
        Model(WRITER), parameters(WRITER), tokenizer, prompts, replace(GREEDY, **changes)
    )


def test_greedy_text_is_the_models_likeliest_with_its_own_probabilities():
    generations, width = write(), WRITER.max_length
    rows = [[TOKENIZER.bos_id, *TOKENIZER.encode(g.prompt), *g.token_ids] for g in generations]
    inputs = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    positions = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    segments = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)
    logits = whole_logits(
        Model(WRITER),
        parameters(WRITER),
        {"inputs": inputs, "positions": positions, "segments": segments},
    )
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for row, ids, g in zip(logprobs, rows, generations):
        at = np.arange(len(ids) - len(g.token_ids), len(ids)) - 1
        assert len(set(g.token_ids)) > 1 and g.finish == "length"
        np.testing.assert_array_equal(row[at].argmax(axis=1), g.token_ids)
        np.testing.assert_allclose(
            g.logprobs, row[at, list(g.token_ids)], atol=1e-5
        )  # float32, as above
        assert g.text == TOKENIZER.decode(g.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_others(temperature):
    together = write(temperature=temperature, seed=3)
    turned = write([PROMPTS[2], "something else", PROMPTS[0], "y"], temperature=temperature, seed=3)
    assert (turned[0].token_ids, turned[2].token_ids) == (
        together[2].token_ids,
        together[0].token_ids,
    )


def test_seeds_decide_and_copies_of_a_prompt_differ():
    first = write(["a", "a", "b", "c"], temperature=1.0, seed=5)
    assert first == write(["a", "a", "b", "c"], temperature=1.0, seed=5)
    assert first[0].token_ids != first[1].token_ids
    assert first[0].token_ids != write(["a", "a", "b", "c"], temperature=1.0, seed=6)[0].token_ids


def test_a_second_prompt_compiles_nothing():
    write()
    programs = (
        steps.empty,
        steps._feed,
        steps._first,
        steps.advance,
        steps._layered,
        turned._prepared,
    )
    before = [program._cache_size() for program in programs]
    write(["another prompt of", "and", "two", "more of them"], max_tokens=9, stop=("q",), seed=9)
    assert [program._cache_size() for program in programs] == before


def test_a_stop_string_is_cut_off_with_what_follows():
    whole = write()[0]
    stop = next(
        letter for letter in whole.text[3:] if letter != "\ufffd" and letter not in whole.text[:3]
    )
    got = write(stop=(stop, "never there"))[0]
    assert got.text == whole.text[: whole.text.index(stop)] and got.finish == "stop"
    assert got.token_ids == whole.token_ids[: len(got.token_ids)]
    assert stop in TOKENIZER.decode(got.token_ids) and stop not in TOKENIZER.decode(
        got.token_ids[:-1]
    )
    assert len(got.logprobs) == len(got.token_ids)


def test_an_end_token_ends_the_text_and_is_no_part_of_it():
    whole = write()[0]
    end_id = whole.token_ids[4]
    first = whole.token_ids.index(end_id)
    stopped = write(stop_ids=(end_id,))[0]
    ended = write(tokenizer=replace(TOKENIZER, eos_id=end_id))[0]
    for got, finish in ((stopped, "stop"), (ended, "eos")):
        assert got.token_ids == whole.token_ids[: first + 1] and got.finish == finish
        assert got.text == TOKENIZER.decode(whole.token_ids[:first])


def test_a_stream_gives_the_same_text_in_pieces():
    config = replace(GREEDY, temperature=1.0, stop=("e",), seed=1)
    writing, pieces = (
        stream(Model(WRITER), parameters(WRITER), TOKENIZER, PROMPTS, config),
        [[] for _ in PROMPTS],
    )
    for index, piece in writing:
        pieces[index].append(piece)
    generations = generate(Model(WRITER), parameters(WRITER), TOKENIZER, PROMPTS, config)
    assert ["".join(parts) for parts in pieces] == [g.text for g in generations]
    assert max(map(len, pieces)) > 1


def test_a_mesh_changes_nothing():
    model, params = Model(WRITER), parameters(WRITER)
    mesh = make_mesh("data:2,fsdp:2,tensor:2")
    config = replace(GREEDY, repetition_penalty=1.2)
    alone = generate(model, params, TOKENIZER, PROMPTS, config)
    split = jax.device_put(params, shardings(model.specs(), mesh, RULES))
    with jax.set_mesh(mesh):
        spread = generate(model, split, TOKENIZER, PROMPTS, config)
    for a, b in zip(alone, spread):
        assert a.token_ids == b.token_ids
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)  # float32 sums over devices


def test_an_encoder_decoder_continues_from_its_start():
    model, params = Model(TRANSLATOR), parameters(TRANSLATOR)
    [g] = generate(model, params, TOKENIZER, ["translate me"], GREEDY)
    source = np.array(
        [[TOKENIZER.bos_id, *TOKENIZER.encode("translate me"), TOKENIZER.eos_id]], np.int32
    )
    inputs = np.array([[TOKENIZER.pad_id, *g.token_ids[:-1]]], np.int32)
    batch = {}
    for side, ids in (("", inputs), ("encoder_", source)):
        batch |= {f"{side}inputs": ids, f"{side}segments": np.ones_like(ids)}
        batch |= {f"{side}positions": np.arange(ids.shape[1], dtype=np.int32)[None]}
    logprobs = np.asarray(jax.nn.log_softmax(whole_logits(model, params, batch)))[0]
    np.testing.assert_array_equal(logprobs.argmax(axis=1), g.token_ids)
    wanted = logprobs[np.arange(len(g.token_ids)), list(g.token_ids)]
    # Float32, and the weights of four times the usual size make hidden states and logits of the
    # order of 10.
    np.testing.assert_allclose(g.logprobs, wanted, atol=5e-5)


def test_learned_positions_end_a_text_and_refuse_a_prompt_beyond_them():
    prompt = [1] * (WRITER.max_length - 3)
    for g in write([prompt] * 4):
        assert len(g.token_ids) == 3 and g.finish == "length"
    with pytest.raises(ValueError, match="prompt 0 has 33 tokens, the model 32 positions"):
        write(["x" * WRITER.max_length])


def test_prompts_that_cannot_be_continued_are_refused():
    with pytest.raises(ValueError, match="prompt 1 must be one or more ids in"):
        write(["a", [TOKENIZER.vocab_size]])
    with pytest.raises(ValueError, match="prompt 0 must be one or more ids in"):
        write([[]])
    with pytest.raises(ValueError, match="encoder"):
        generate(Model(FAMILIES["bert_base"]), {}, TOKENIZER, ["a"], GREEDY)
    assert write([]) == []


def test_the_cache_is_written_in_place():
    model, stop_ids = Model(WRITER), np.full(8, -1, np.int32)
    start = steps.Start(prompts=[[1]], sources=None, max_tokens=[50_000], streams=[(0, 0)], seed=0)
    for params, copied in ((parameters(WRITER), 1), (prepare(model, parameters(WRITER)), 0.5)):
        state, _, _ = steps.begin(
            model, parameters(WRITER), params, start, GREEDY.distribution, stop_ids
        )
        inputs = params, state, np.ones(1, bool), np.int32(1), stop_ids
        memory = (
            steps.advance.lower(*inputs, model=model, sampling=GREEDY.distribution)
            .compile()
            .memory_analysis()
        )
        held = sum(
            leaf.nbytes
            for leaf in jax.tree.leaves([x for x in jax.tree.leaves(state.cache) if x.ndim > 2])
        )
        assert memory.alias_size_in_bytes > held  # the caller's buffers come back
        # Of stacked layers, two here, one's keys and values are copied out at a time, of layers
        # of their own none; scores are as long as the cache.
        assert memory.temp_size_in_bytes < copied * held
