"""Parameter counts of the presets against the published ones, from abstract shapes."""

import jax
import jax.numpy as jnp
import pytest

from research import tree
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.presets import PRESETS
from research.models.spec import abstract

# The exact counts of the released checkpoints.
EXACT = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama_7b": 6_738_415_616,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
    "mistral_7b": 7_241_732_096,
    "llava1.5_7b": 7_063_427_072,
    "smolvlm_256m": 256_484_928,
    "smolvlm_500m": 507_482_304,
    "paligemma_3b": 2_923_466_480,
    "gemma3_4b_images": 4_300_079_472,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_630_071_296,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_7b": 7_615_616_512,
    "qwen3_0.6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "qwen1.5_moe_a2.7b": 14_315_784_192,
    "qwen2_57b_a14b": 57_408_658_944,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "olmoe_1b_7b": 6_919_161_856,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
    "deepseek_v2_lite": 15_706_484_224,
    "deepseek_v2": 235_741_434_880,
    # With the biases of 58 routers, which its class does not count as parameters.
    "deepseek_v3": 671_026_404_352 + 58 * 256,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "phi3_mini": 3_821_079_552,
    "phi3_medium": 13_960_238_080,
    "phi3.5_moe": 41_873_153_344,
    "phi4": 14_659_507_200,
    "phi4_mini": 3_836_021_760,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "smollm3_3b": 3_075_098_624,
    "ministral_8b": 8_019_808_256,
    "granite3_2b": 2_533_531_648,
    "granite3_8b": 8_170_848_256,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1.4b": 1_414_647_808,
    "pythia_2.8b": 2_775_208_960,
    "pythia_6.9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
    "gpt_neox_20b": 20_554_567_680,
    "opt_125m": 125_239_296,
    "opt_1.3b": 1_315_758_080,
    "opt_2.7b": 2_651_596_800,
    "opt_6.7b": 6_658_473_984,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    # Without the sinusoids, which transformers' class counts.
    "whisper_tiny": 37_760_640 - 1500 * 384,
    "whisper_tiny.en": 37_760_256 - 1500 * 384,
    "whisper_base": 72_593_920 - 1500 * 512,
    "whisper_small": 241_734_912 - 1500 * 768,
    "whisper_medium": 763_857_920 - 1500 * 1024,
    "whisper_large_v3": 1_543_490_560 - 1500 * 1280,
    "whisper_large_v3_turbo": 808_878_080 - 1500 * 1280,
    # With the masked-LM head.
    "roberta_base": 124_697_433,
    "roberta_large": 355_412_057,
    "xlm_roberta_base": 278_295_186,
    "xlm_roberta_large": 560_142_482,
    "mpnet_base": 109_518_527,
    "distilbert_base": 66_985_530,
    "electra_base": 108_891_648,
    "electra_large": 334_092_288,
}
# The digits of the papers: LLaMA's table 2, GPT-3's table 2.1.
ROUNDED = {
    "olmo2_32b": "32.2e9",
    "olmo3_7b": "7.3e9",
    "olmo3_32b": "32.2e9",
    "opt_13b": "12.9e9",
    "opt_66b": "66e9",
    "llama_13b": "13.0e9",
    "llama_33b": "32.5e9",
    "llama_65b": "65.3e9",
    "gpt3_125m": "125e6",
    "gpt3_760m": "760e6",
    "gpt3_1.3b": "1.3e9",
    "gpt3_2.7b": "2.7e9",
    "gpt3_6.7b": "6.7e9",
    "gpt3_13b": "13e9",
    "gpt3_175b": "175e9",
}


def count(config: ModelConfig) -> int:
    """Parameters of a model, nothing allocated."""
    return tree.count(abstract(Model(config).specs(), jnp.float32))


@pytest.mark.parametrize("name", EXACT)
def test_count_is_the_published_one(name):
    assert count(PRESETS[name]) == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_count_rounds_to_the_published_digits(name):
    digits, exponent = ROUNDED[name].split("e")
    decimals = len(digits.partition(".")[2])
    assert round(count(PRESETS[name]) / 10 ** int(exponent), decimals) == float(digits)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gemma3_1b", 698), ("gemma3_4b", 3209), ("gemma3_12b", 10759), ("gemma3_27b", 25600)],
)
def test_gemma_without_its_table_is_the_published_count(name, millions):
    # arXiv:2503.19786, table 1, non-embedding parameters of the text model.
    c = PRESETS[name]
    assert round((count(c) - c.vocab_size * c.d_model) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "body"), [("bert_base", 109_482_240), ("bert_large", 335_141_888)]
)
def test_bert_body_with_pooler_is_the_published_count(name, body):
    specs = Model(PRESETS[name]).specs()
    assert tree.count({part: node for part, node in specs.items() if part != "head"}) == body


@pytest.mark.parametrize(
    ("name", "body"), [("transformer_base", 44_101_632), ("transformer_big", 176_283_648)]
)
def test_transformer_body_is_that_of_the_paper(name, body):
    # By hand from table 3: encoder layers 4 d^2 + 2 d f, decoder layers 8 d^2 + 2 d f, f + d biases
    # of each feed-forward, 2 d of each norm (2 in an encoder layer, 3 in a decoder layer).
    c = PRESETS[name]
    d, f = c.d_model, c.d_ff
    by_hand = 6 * (4 * d * d + 2 * d * f + f + d + 4 * d) + 6 * (
        8 * d * d + 2 * d * f + f + d + 6 * d
    )
    assert by_hand == body == count(c) - c.vocab_size * d


@pytest.mark.parametrize(
    ("name", "without_bias"),
    [
        ("bart_base", 139_420_416),
        ("bart_large", 406_291_456),
        ("mbart_large", 610_851_840),
        # Its class counts the sinusoids of both stacks as parameters.
        ("pegasus_large", 570_797_056 - 2 * 1024 * 1024),
    ],
)
def test_bart_without_the_bias_of_its_logits_is_the_published_count(name, without_bias):
    assert count(PRESETS[name]) - PRESETS[name].vocab_size == without_bias


@pytest.mark.parametrize(
    ("name", "published"), [("modernbert_base", 149_655_232), ("modernbert_large", 395_881_664)]
)
def test_modernbert_but_for_the_scale_without_use_is_the_published_count(name, published):
    assert count(PRESETS[name]) - PRESETS[name].d_model == published


def test_every_spec_names_each_of_its_dimensions():
    for config in PRESETS.values():
        for path, spec in tree.paths(Model(config).specs()).items():
            assert len(spec.axes) == len(spec.shape), path


def test_counting_the_largest_model_allocates_nothing():
    before = len(jax.live_arrays())
    count(PRESETS["llama3_405b"])
    assert len(jax.live_arrays()) == before
