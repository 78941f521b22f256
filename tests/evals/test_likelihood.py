"""The log-likelihood of continuations."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer, train_tokenizer
from research.evals import likelihood
from research.evals.likelihood import encode_pair, log_likelihoods
from research.models.model import Model, forward
from research.models.spec import initialize
from tests.evals.test_laws import MODEL, opened
from tests.families import FAMILIES

# Of several lengths, some that share what is read: [5, 6] | 7 and [5] | 6, 7 do.
PAIRS = [([5, 6], [7]), ([5, 6], [9]), ([5], [6, 7]), (list(range(25)), [3, 4, 5]), ([1], [2])]


@jax.jit
def log_probabilities(params, ids_1T, length):
    """Of every token after each place of one padded row, [T, V]."""
    places_1T = jnp.arange(ids_1T.shape[1])[None]
    batch = {"inputs": ids_1T, "positions": places_1T, "segments": places_1T < length}
    batch["segments"] = batch["segments"].astype(jnp.int32)
    return jax.nn.log_softmax(forward(MODEL, params, batch)[0])


def by_definition(context, continuation):
    """(nats, whether each token is the likeliest)."""
    ids = [*context, *continuation[:-1]]
    row = np.pad(ids, (0, 32 - len(ids)))[None]
    logp_TV = np.asarray(log_probabilities(opened().params, row, len(ids)))[
        len(context) - 1 : len(ids)
    ]
    nats = sum(float(row[token]) for row, token in zip(logp_TV, continuation))
    return nats, all(int(row.argmax()) == token for row, token in zip(logp_TV, continuation))


def test_each_is_what_the_definition_says_in_any_batch():
    # The likeliest continuation of a context is greedy.
    logp_TV = log_probabilities(opened().params, np.pad([5, 6], (0, 30))[None], 2)
    best = int(np.asarray(logp_TV)[1].argmax())
    pairs = [*PAIRS, ([5, 6], [best])]
    found = log_likelihoods(opened(), pairs)
    assert found[-1].greedy
    for pair, got in zip(pairs, found):
        nats, likeliest = by_definition(*pair)
        # Float32 sums over other widths.
        assert got.nats == pytest.approx(nats, rel=1e-5) and got.greedy == likeliest
        assert got.tokens == len(pair[1])


BRANCHES = [(list(range(9)), [n, 3, 4][: 1 + n % 3]) for n in range(7)]


@pytest.mark.parametrize("name", ["llama2_7b", "gpt2", "gemma2_2b", "mixtral_8x7b"])
def test_answers_to_one_question_share_it_and_are_scored_as_if_alone(name):
    """Rotary and learned positions, windows, and experts, which do not share."""
    config = replace(FAMILIES[name], vocab_size=256, max_length=64)
    model = Model(config)
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    one = replace(opened(), model=model, params=jax.tree.map(lambda w: w * 4, params))
    rows = likelihood._rows(BRANCHES, 64, model, likelihood._branches(one))
    # One token reads nothing more than the question: 3 of 7 pairs share that.
    assert len(rows) == (5 if name == "mixtral_8x7b" else 1)
    together = log_likelihoods(one, BRANCHES)
    for pair, got in zip(BRANCHES, together):
        [alone] = log_likelihoods(one, [pair])
        # Float32 sums over other widths.
        assert got.nats == pytest.approx(alone.nats, rel=1e-4) and got.greedy == alone.greedy


def test_a_long_context_loses_its_beginning_and_says_so(caplog):
    [cut, whole] = log_likelihoods(opened(), [(list(range(40)), [3]), ([38, 39], [3])], window=2)
    assert cut.nats == pytest.approx(whole.nats, rel=1e-6)
    assert "1 of 2 texts are longer than 2 tokens" in caplog.text


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [1, 2, 3])])
def test_what_has_no_likelihood_is_refused(pair):
    with pytest.raises(ValueError, match="wanted one of each at least, and at most 2"):
        log_likelihoods(opened(), [pair], window=2)
    with pytest.raises(ValueError, match="only a decoder gives"):
        log_likelihoods(replace(opened(), model=Model(opened("pairs").model.config)), [pair])


def test_the_ids_of_a_pair_are_those_of_its_text():
    bpe = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    context, continuation = encode_pair(bpe, "to be ", "or not", begins_texts=False)
    assert [*context, *continuation] == bpe.encode("to be or not")
    # The space belongs to the word behind it.
    assert bpe.decode(context) == "to be" and bpe.decode(continuation) == " or not"
    bytes_ = load_tokenizer("bytes")
    first = bytes_.eos_id if bytes_.bos_id is None else bytes_.bos_id
    assert encode_pair(bytes_, "", "ab") == ([first], list(b"ab"))
