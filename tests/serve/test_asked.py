"""Any JSON in any field: a request is understood or refused, and nothing else is raised."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.data.tokenizers import load_tokenizer
from research.serve import asked
from research.serve.asked import Asked, Served
from research.serve.formats import grammar_of
from research.serve.refusal import Refused
from research.serve.tools import tools_of, with_calls

TOKENIZER = replace(load_tokenizer("bytes"), chat_template="{{ tools }}<tool_call>")
SERVED = Served("tiny", TOKENIZER, 64, adapters=("poet",))
# What is usual somewhere, and what is not.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text("a0{\n\0", max_size=4),
    st.sampled_from(["tiny", "poet", "auto", "required", "function", "json_schema", "user"]),
)  # fmt: skip
NAMES = st.sampled_from(["type", "function", "name", "schema", "json_schema", "role", "content",
                         "tool_calls", "arguments", "parameters", "include_usage"])  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(asked._COMPLETION | asked._CHAT | set(asked._UNSERVED) | {"misspelt"})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), st.booleans())
def test_a_request_is_understood_or_refused(body, whole):
    body = {**body, **({"prompt": "a"} if whole else {})}
    try:
        assert isinstance(asked.completion(body, SERVED), Asked)
    except Refused as error:
        assert 400 <= error.status < 500 and "\n" not in str(error)
    for understand in (
        lambda: tools_of(body, TOKENIZER),
        lambda: with_calls(body.get("messages")),
        lambda: grammar_of(body, None),
    ):
        try:
            understand()
        except Refused as error:
            assert error.status == 400


@pytest.mark.parametrize("name, adapter", [("tiny", ""), ("poet", "poet")])
def test_an_adapter_is_a_model_of_its_own(name, adapter):
    made = asked.completion({"prompt": ["a", "b"], "n": 2, "model": name}, SERVED)
    assert made.model == name and {one.adapter for one in made.requests} == {adapter}
    assert [(one.prompt, one.copy) for one in made.requests] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]
    with pytest.raises(Refused, match="'tiny', 'poet'"):
        asked.completion({"prompt": "a", "model": "prose"}, SERVED)
