"""llama.cpp reads our file of Phi-3.5-MoE, and computes what it says it computes: RMS norms, and
experts whose weights add up to 1."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from research import tree
from research.interop.convert import convert
from research.interop.load import load
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES
from tests.interop.memory import random_params
from tests.parity.test_llama_cpp import opened, write_tiny

C = replace(
    FAMILIES["phi3.5_moe"],
    **dict(vocab_size=296, d_model=64, head_size=16, max_length=64, window=0, router_jitter=0.01),
    rope_scaling=RopeScaling(),
)


def same_in_both(c):
    """Parameters by which both definitions agree up to a factor of 2 on experts' outputs: states
    of mean 0, whose layer norm is the RMS norm, equal experts, and a router that is sure."""
    params = tree.paths(random_params(c))

    def centred(x, axis):
        return x - x.mean(axis, keepdims=True)

    params["embed/table"] = centred(params["embed/table"], -1)
    for name in ("attention/out", "attention/out_bias", "mlp/down"):
        params[f"layers/{name}"] = centred(params[f"layers/{name}"], -1)
    for name in ("gate", "up", "down"):
        first = params[f"layers/mlp/{name}"][:, :1]
        params[f"layers/mlp/{name}"] = np.broadcast_to(first, params[f"layers/mlp/{name}"].shape)
    # Beyond the jitter of each other, so that SparseMixer gives both experts the weight 1.
    params["layers/mlp/router"] = params["layers/mlp/router"] * 1e3
    return tree.unflatten(params)


@pytest.mark.slow
def test_the_file_is_the_model_but_for_what_its_note_says(tmp_path, monkeypatch):
    params = same_in_both(C)
    monkeypatch.setattr("tests.parity.test_llama_cpp.random_params", lambda c: params)
    folder = write_tiny(C, tmp_path / "hf")
    ours = load(folder)
    doubled = tree.paths(params) | {"layers/mlp/down": 2 * params["layers"]["mlp"]["down"]}
    monkeypatch.setattr(
        "tests.parity.test_llama_cpp.random_params", lambda c: tree.unflatten(doubled)
    )
    notes = convert(
        write_tiny(C, tmp_path / "doubled"), tmp_path / "gguf", "gguf", certified=False
    )["notes"]
    assert any("SparseMixer" in line for line in notes)
    ids = np.random.default_rng(0).integers(0, 296, 40)
    theirs = opened(tmp_path / "gguf/model.gguf")
    theirs.eval(ids.tolist())
    wanted, got = theirs.scores[: len(ids)], np.asarray(ours.logits(ids[None]))[0]
    apart, spread = np.sqrt(np.mean((got - wanted) ** 2)), np.std(wanted)
    print(f"{apart:.1e} of {spread:.2f}")
    assert apart < 1e-4 * spread  # in another order of sums, which so sure a router makes large
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    for path, leaf in tree.paths(load(tmp_path / "again").params).items():
        np.testing.assert_array_equal(leaf, doubled[path], err_msg=path)
