"""Checkpoints merged on disk: every format in and out, with a certificate, or a reason."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from research import tree
from research.data.tokenizers import train_tokenizer
from research.files import read_json, write_json
from research.interop import certify
from research.interop.convert import convert, verify
from research.interop.load import load
from research.merging.merge import merge
from research.merging.verify import verify as verify_merge
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES

TEXTS = ["to be or not to be, that is the question " * 20]
TOKENIZER = train_tokenizer("bpe:300", TEXTS)
CONFIG = replace(FAMILIES["llama2_7b"], vocab_size=TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models of one shape: ours, ours, and the third in Hugging Face's format."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        save_checkpoint(root / name, CONFIG, seed=seed)
        TOKENIZER.save(root / name)
    convert(root / "c", root / "c_hf", "hf", certified=False)
    return root


def params(folder):
    return {path: np.asarray(x) for path, x in tree.paths(load(folder).params).items()}


@pytest.mark.parametrize("to", ["native", "hf"])
def test_formats_meet_and_the_mean_is_written(folders, tmp_path, to):
    names = [str(folders / name) for name in ("a", "c_hf")]
    certificate = merge("linear", names, tmp_path / "out", to=to)
    a, c, out = params(folders / "a"), params(folders / "c"), params(tmp_path / "out")
    for path, x in out.items():
        np.testing.assert_allclose(x, (a[path] + c[path]) / 2, atol=1e-7, err_msg=path)
    trip = certificate["round_trip"]
    assert trip["bit_equal"] == trip["tensors"] > 10
    assert certificate["source"]["method"] == "linear"
    assert certificate["source"]["models"][names[1]]["model.safetensors"]
    assert verify(tmp_path / "out")["rechecked"] == ["target hashes"]


def test_dare_of_a_seed_has_the_same_bits_again(folders, tmp_path):
    models, base = [str(folders / "b"), str(folders / "c")], str(folders / "a")
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        merge("dare", models, tmp_path / name, base, seed=seed, density=0.5)
    one, two, three = (params(tmp_path / name) for name in ("one", "two", "three"))
    for path, x in one.items():
        np.testing.assert_array_equal(x, two[path], err_msg=path)
    assert (one["layers/mlp/up"] != three["layers/mlp/up"]).any()
    # Layers of one parameter are drawn apart.
    kept = one["layers/mlp/up"] != params(base)["layers/mlp/up"]
    assert (kept[0] != kept[1]).any()


def test_slerp_counts_its_base_as_one_end(folders, tmp_path):
    a, b = str(folders / "a"), str(folders / "b")
    merge("slerp", [b], tmp_path / "one", base=a, weights=[0.0])
    for path, x in params(tmp_path / "one").items():
        np.testing.assert_allclose(x, params(a)[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"vocab_size": 310}, r"has 310 tokens and .*; only models of one vocabulary"),
        ({"layers": 1}, r"another architecture than .*: layers is 1 and 2"),
        ({"rope_theta": 5e5}, r"rope_theta is 500000.0 and 10000.0"),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_written(folders, tmp_path, changes, said):
    save_checkpoint(tmp_path / "other", replace(CONFIG, **changes))
    with pytest.raises(ValueError, match=said):
        merge("linear", [str(folders / "a"), str(tmp_path / "other")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(folders, tmp_path):
    save_checkpoint(tmp_path / "other", CONFIG)
    train_tokenizer("bpe:300", ["what is a question, said the queen"]).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"tokenizers of .* differ: token \d+ is"):
        merge("linear", [str(folders / "a"), str(tmp_path / "other")], tmp_path / "out")


def test_the_certificate_is_json(folders, tmp_path):
    base, models = str(folders / "a"), [str(folders / "b"), str(folders / "c")]
    merge("ties", models, tmp_path / "out", base)
    source = json.loads((tmp_path / "out/certificate.json").read_text())["source"]
    assert source["density"] == 0.2 and source["weights"] == [1.0, 1.0]
    assert set(source["models"]) == {base, *models}


@pytest.mark.parametrize("method", ["dare", "slerp"])
def test_a_merge_is_made_again_and_compared(method, folders, tmp_path):
    for name in "abc":
        shutil.copytree(folders / name, tmp_path / name)
    base, model = str(tmp_path / "a"), str(tmp_path / "b")
    merge(method, [model], tmp_path / "out", base)
    assert verify_merge(tmp_path / "out")["rechecked"][1:] == [
        "hashes of the models",
        "the merge made again",
    ]
    # What was merged is something else by now, so the folder's own hashes are all there is.
    shutil.rmtree(model)
    shutil.copytree(tmp_path / "c", model)
    assert verify_merge(tmp_path / "out")["rechecked"] == ["target hashes"]
    shutil.rmtree(model)
    assert verify_merge(tmp_path / "out")["rechecked"] == ["target hashes"]


def test_what_is_no_merge_or_was_changed_is_not_as_certified(folders, tmp_path):
    with pytest.raises(ValueError, match="is no merge, but converted from .*convert --verify"):
        convert(folders / "a", tmp_path / "converted", "hf")
        verify_merge(tmp_path / "converted")
    merge("linear", [str(folders / name) for name in "ab"], tmp_path / "out")
    # A certificate of other weights, with the digest that belongs to it.
    body = read_json(tmp_path / "out" / certify.FILE)
    body.pop("sha256")
    body["source"]["weights"] = [1.0, 3.0]
    write_json(tmp_path / "out" / certify.FILE, {**body, "sha256": certify._digest(body)})
    with pytest.raises(ValueError, match="merging .* again does not give .*out; merge them anew"):
        verify_merge(tmp_path / "out")
