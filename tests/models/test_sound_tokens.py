"""Sounds as soft tokens: the encoder is Whisper's, a text sees those before it and no other, and
beside images each kind stands in its own places."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models import sound
from research.models.config import Execution, ModelConfig
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.soft import check_sounds, with_media
from research.models.sound_config import SoundConfig
from research.models.sound_tokens import encode
from research.models.spec import initialize
from research.precision import Precision
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, split_specs

HEARD, SEEN, P = 40, 41, 2
SOUND = SoundConfig(
    **{"layers": 1, "mels": 3, "frames": 12, "d_model": 8, "heads": 2, "d_ff": 12, "stack": 3},
    token=HEARD,
)
DECODER = ModelConfig(
    **{"vocab_size": 32, "layers": 1, "d_model": 16, "heads": 2, "kv_heads": 1, "head_size": 8},
    **{"d_ff": 24, "max_length": 32, "sound": SOUND},
)
# A document with one sound, another with two, of which the first begins the document.
ROW = [7, HEARD, HEARD, 8, 9] + [HEARD, HEARD, 7, HEARD, HEARD, 6]
CUT, T = 5, len(ROW)


@cache
def parameters():
    return initialize(jax.random.key(0), Model(DECODER).specs(), jnp.float32)


def batch() -> dict[str, np.ndarray]:
    fields = {
        "inputs": np.array(ROW),
        "positions": np.concatenate([np.arange(CUT), np.arange(T - CUT)]),
        "segments": np.where(np.arange(T) < CUT, 1, 2),
    }
    rows = {name: np.asarray(x, np.int32)[None] for name, x in fields.items()}
    return rows | {"sounds": np.random.default_rng(0).normal(size=(1, 3, 12, 3)).astype("f")}


def test_the_encoder_is_that_of_an_encoder_decoder_of_sound():
    whisper = ModelConfig(
        **{"kind": "encoder_decoder", "encoder_layers": 1, "layers": 1, "d_model": 8, "heads": 2},
        **{"kv_heads": 2, "head_size": 4, "d_ff": 12, "vocab_size": 16, "max_length": 8},
        **{"mels": 3, "frames": 12, "position": "learned", "norm": "layer", "gated": False},
        **{"activation": "gelu", "attention_bias": "no_key", "mlp_bias": True},
    )
    model, mel = Model(whisper), batch()["sounds"][0]
    p = {**initialize(jax.random.key(1), model.specs(), jnp.float32)["encoder"]}

    @jax.jit
    def both(p):
        x_BSD, inputs = sound.states(p, {"mel": mel}, whisper, Precision(compute="float32"))
        wanted = model._run(p, x_BSD, inputs, False, None, None, None)[0]
        return encode(p, mel, SOUND, Execution(), jnp.float32), wanted

    got, wanted = both(p)
    # The same float32 sums, in an order of the compiler's choice.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert {*tree.paths(p)} == {
        path.removeprefix("sound/")
        for path in tree.paths(parameters())
        if path.startswith("sound/") and "projector" not in path
    }


def test_a_token_hears_what_stands_before_it_in_its_document_and_nothing_else():
    model, params, given = Model(DECODER), parameters(), batch()

    def last(mel):
        hidden_BTD, _ = model.hidden(params, {**given, "sounds": mel})
        return jnp.sum(jnp.sin(hidden_BTD[0]), axis=-1)  # [T]; a plain sum would be constant

    moved_TMFm = np.asarray(jax.jit(jax.jacrev(last))(given["sounds"]))[:, 0]
    wanted = np.zeros((T, 3), bool)
    for number, first in enumerate((1, 5, 8)):  # the first place of each sound
        document = slice(0, CUT) if number == 0 else slice(CUT, T)
        wanted[document, number] = np.arange(T)[document] >= first
    np.testing.assert_array_equal(np.any(moved_TMFm != 0, axis=(2, 3)), wanted)


def test_the_first_stage_has_gradients_of_the_projector_alone():
    part = TuneConfig(method="part", also="sound/projector/.*")
    specs = Model(DECODER).specs()
    trained, frozen = split_specs(specs, DECODER, part, LoraConfig(), QuantizeConfig())
    names = {"up", "up_bias", "down", "down_bias"}
    assert set(tree.paths(trained)) == {f"sound/projector/{name}" for name in names}
    assert {**tree.paths(trained), **tree.paths(frozen)}.keys() == tree.paths(specs).keys()


def test_images_and_sounds_of_a_row_stand_in_their_own_places():
    image = ImageConfig(layers=1, size=4, patch=2, d_model=8, heads=2, d_ff=12, token=SEEN)
    model = Model(replace(DECODER, image=image))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    given = {**batch(), "images": np.ones((1, 1, 4, 4, 3), np.uint8)}
    given["inputs"] = np.array([[7, HEARD, HEARD, *[SEEN] * 4, HEARD, HEARD, HEARD, HEARD]])
    soft = jax.jit(model.soften)(params, given)
    assert soft["soft_at"].tolist() == [[-1, 4, 5, 0, 1, 2, 3, 6, 7, 8, 9]]
    alone = jax.jit(Model(DECODER).soften)({**params}, batch())
    np.testing.assert_allclose(soft["soft"][:, 4:], alone["soft"], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="both 40"):
        replace(DECODER, image=replace(image, token=HEARD))


@pytest.mark.parametrize(
    ("sounds", "tokens", "line"),
    [
        ((1, 3, 10, 3), ROW, r"wanted \[rows, sounds of a row, 12, 3\]"),
        ((1, 2, 12, 3), ROW, "row 0 has 6 places of soft tokens and 2 sounds, which make 4"),
        ((1, 3, 12, 3), ROW[:-2], "row 0 has 5 places"),
        ((2, 3, 12, 3), ROW, "sounds are of 2 rows, the texts are 1"),
        (None, ROW, "6 places of soft tokens .* no sounds"),
    ],
)
def test_texts_and_sounds_that_do_not_fit_are_refused(sounds, tokens, line):
    given = None if sounds is None else np.zeros(sounds, np.float32)
    with pytest.raises(ValueError, match=line):
        check_sounds(DECODER, np.array([tokens]), given)


def test_a_model_without_ears_refuses_sounds():
    deaf = replace(DECODER, sound=SoundConfig())
    text = {"inputs": np.array([[1, 2]])}
    with pytest.raises(ValueError, match="the model reads no sounds"):
        with_media(deaf, text, None, np.zeros((1, 1, 12, 3), np.float32))
    assert with_media(deaf, text, None) == text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"frames": 14}, "model.sound.frames=14 must be a multiple of twice model.sound.stack=3"),
        ({"heads": 3}, "model.sound.d_model=8 must be an even multiple"),
        ({"layers": 0}, "changes nothing in a model without an encoder of sounds"),
        ({"stack": 0}, "model.sound.stack=0 must be positive"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        replace(SOUND, **changes)
