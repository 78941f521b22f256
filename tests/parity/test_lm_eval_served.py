"""lm-eval's own client asks the server, and finds what it finds of the model in process."""

from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="pip install 'graft-research[harness]'")
pytest.importorskip("tenacity", reason="lm-eval's client needs it; pip install 'lm-eval[api]'")
pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from research.evals.harness_model import as_lm
from tests.serve.test_server import LENGTH, Client

pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval's own
# Sums of the same float32 products in another order, over up to ten tokens of some nats each.
TOLERANCE = 1e-4
PAIRS = [
    ("to be or not", " to be"),
    ("to be or not ", "to be"),
    ("that is", " the question"),
    ("the question", " is"),
    ("to", " b"),
    ("not to be, that is the", " xyz"),
]


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def both():
    """(lm-eval's client of a server, the server's model as lm-eval asks it in process)."""
    client = Client()
    url = f"http://127.0.0.1:{client.port}/v1/completions"
    # Its tokenizer is the server's: it asks for it.
    theirs = LocalCompletionsAPI(base_url=url, model="tiny", batch_size=4, max_length=LENGTH)
    opened = SimpleNamespace(
        model=client.model, params=client.params, tokenizer=client.tokenizer, begins_texts=False,
        stop_ids=(299,), window=LENGTH - 2,  # as their client has: a token follows
    )  # fmt: skip
    yield theirs, as_lm(opened)
    client.server.should_exit = True
    client.thread.join(20)


def test_likelihoods_of_continuations(both):
    theirs, ours = (lm.loglikelihood(asked("loglikelihood", *PAIRS)) for lm in both)
    assert [nats for nats, _ in theirs] == pytest.approx([n for n, _ in ours], abs=TOLERANCE)
    assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
    # A continuation that the model itself would write is known as such.
    [text] = both[1].generate_until(asked("generate_until", ("to be", {"max_gen_toks": 1})))
    for lm in both:
        [(_, greedy)] = lm.loglikelihood(asked("loglikelihood", ("to be", text)))
        assert greedy


def test_likelihoods_of_whole_texts(both):
    texts = asked("loglikelihood_rolling", ("to be or not to be",), ("that is " * 60,))
    theirs, ours = (lm.loglikelihood_rolling(texts) for lm in both)
    # Of some hundred tokens.
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_texts(both):
    settings = {"until": ["e"], "max_gen_toks": 12}
    texts = asked("generate_until", ("to be", settings), ("that is", settings))
    assert both[0].generate_until(texts) == both[1].generate_until(texts)
