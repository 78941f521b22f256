"""A card, a JAX or an installation without a kernel: "auto" says in a line what it takes instead
and what that costs, and a name that cannot serve is refused with the reason and the remedy."""

import logging

import pytest

from research.ops.kernels import attention, cudnn, mosaic
from research.ops.kernels.notes import CannotServe, tell_once, warn_once
from tests.ops.test_attention_choice import AMPERE, BLACKWELL, HOPPER, at, chosen

ADA, TURING = "NVIDIA GeForce RTX 4090", "Tesla T4"
DEVICES = {kind: at("gpu", kind=kind) for kind in (HOPPER, AMPERE, BLACKWELL, ADA, TURING)}
DEVICES |= {"an unknown card": at("gpu"), "tpu": at("tpu"), "cpu": at("cpu")}
# What is missing, as a change of a module, and the name of a kernel that it takes away.
LACKS = {
    "nothing": (mosaic, "_missing", lambda: None),
    "tokamax": (mosaic, "_missing", lambda: "tokamax is not installed; pip install '.[kernels]'"),
    "a JAX that is new enough": (mosaic, "JAX", (99, 0)),
}
# Cases and the words of the line that "auto" says for them; None for the silence of the fastest.
SAID = [
    (HOPPER, "tokamax", dict(), "flash (not mosaic: tokamax is not installed"),
    (HOPPER, "tokamax", dict(), "it takes about three times as long as mosaic"),
    (HOPPER, "a JAX that is new enough", dict(), "it wants JAX 99.0 or newer"),
    (HOPPER, "tokamax", dict(window=64), "takes XLA's form, slower than a kernel: not mosaic"),
    (HOPPER, "nothing", dict(documents=4), "mosaic (not cudnn: its packed rows want JAX 99"),
    (AMPERE, "nothing", dict(window=64), "XLA's form, slower than a kernel: not flash: it has no"),
    (TURING, "nothing", dict(), f"Triton makes no kernels for {TURING}"),
    ("tpu", "nothing", dict(T=200, S=200), "set config.data.sequence_length"),
    ("cpu", "nothing", dict(), None),
]


@pytest.fixture
def lacking(monkeypatch):
    """Takes away what a case lacks; without an answer of cache, so that each line is said."""

    def _lack(what):
        mosaic._missing.cache_clear()
        tell_once.cache_clear()
        warn_once.cache_clear()
        monkeypatch.setattr(cudnn, "_absent", lambda: None)
        monkeypatch.setattr(cudnn, "PACKED", (99, 0, 0))
        monkeypatch.setattr(*LACKS[what])

    yield _lack
    monkeypatch.undo()
    mosaic._missing.cache_clear()


@pytest.mark.parametrize(("kind", "lacks", "case", "words"), SAID)
def test_auto_says_what_it_takes_instead(lacking, caplog, capsys, kind, lacks, case, words):
    lacking(lacks)
    with caplog.at_level(logging.WARNING):
        chosen(DEVICES[kind], **case)
    said = [*caplog.messages, *capsys.readouterr().err.splitlines()]
    assert len(said) == (words is not None), said
    assert words is None or words in said[0]


@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("kind", DEVICES)
def test_each_name_serves_or_is_refused_in_a_line(lacking, kind, lacks):
    lacking(lacks)
    serves = set()
    for name, kernel in attention.KERNELS.items():
        for case in (dict(), dict(single=True), dict(packed=False, causal=False), dict(H=36)):
            try:
                assert chosen(DEVICES[kind], name, **case) is kernel.attend
                serves.add(name)
            except CannotServe as refused:
                reason = str(refused)
                assert reason.startswith(f"attention {name!r} cannot serve this case: ")
                assert reason.endswith("set config.execution.attention to 'auto' or 'xla'")
                assert "\n" not in reason and "None" not in reason
    modern = kind in (HOPPER, BLACKWELL) and lacks == "nothing"
    wanted = {"splash"} if kind == "tpu" else set()
    wanted |= {"mosaic"} if modern else set()
    wanted |= {"cudnn"} if kind in (HOPPER, BLACKWELL, AMPERE, ADA) else set()
    wanted |= {"flash"} if kind not in ("tpu", "cpu", TURING) else set()
    assert serves == wanted
