"""What sounds become in the row of a decoder: Whisper's encoder (arXiv:2212.04356, section 2.2),
and a projector over states that stand side by side (SLAM-ASR, arXiv:2402.08846, section 2.1).

Letters: I sounds, F log-mel frames, m bands, S states, E width of the encoder, P soft tokens of a
sound, D width of the decoder.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from research.models import layers, projector
from research.models.block import layer_specs
from research.models.config import Execution, ModelConfig
from research.models.context import make_context
from research.models.initial import initial
from research.models.sound import heard, sound_specs
from research.models.sound_config import SoundConfig
from research.models.stack import run
from research.models.vit import rows_of
from research.parallel.placement import merge_axes, split_axis
from research.scopes import scope
from research.tree import Tree


def tower(c: SoundConfig) -> ModelConfig:
    """The layers of Whisper's encoder as those of a model."""
    return ModelConfig(
        kind="encoder",
        vocab_size=1,
        layers=c.layers,
        d_model=c.d_model,
        heads=c.heads,
        kv_heads=c.heads,
        head_size=c.d_model // c.heads,
        d_ff=c.d_ff,
        max_length=c.frames // 2,
        position="learned",  # none of its own in the layers: `heard` adds sinusoids
        norm="layer",
        activation="gelu",
        gated=False,
        attention_bias="no_key",
        mlp_bias=True,
        init="plain",
    )


def sound_tokens_specs(c: SoundConfig, d_model: int) -> Tree:
    """`sound`, the two convolutions, the stacked layers, `final_norm` and `projector`: what an
    encoder-decoder has below "encoder", and the layers to the decoder's width."""
    of = tower(c)
    return {
        "sound": sound_specs(c.mels, c.d_model),
        "layers": layer_specs(of, initial(of), c.layers, cross=False),
        "final_norm": layers.norm_specs(of),
        "projector": projector.layers_specs(
            c.d_model * c.stack, d_model, hidden=c.projector == "mlp"
        ),
    }


@scope("encoder")
def encode(
    p: Tree, mel_IFm: jax.Array, c: SoundConfig, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """States [I, F / 2, E] behind the last norm, of log-mel frames as of
    `research.data.media.mel`."""
    of = tower(c)
    x_ISE = heard(p["sound"], mel_IFm, dtype)
    # Whisper's windows are one text whole, with the silence at their end.
    places_1S = jnp.arange(x_ISE.shape[1], dtype=jnp.int32)[None]
    context = make_context(of, rows_of(places_1S, x_ISE), None, causal=False)
    # A kernel that is named serves the texts; sounds take the fastest that serves them.
    how = replace(execution, attention="auto")
    x_ISE, _, _ = run(p["layers"], x_ISE, of, how, context)
    return layers.norm(p["final_norm"], x_ISE, of)


@scope("encoder")
def sound_tokens(
    p: Tree, mel_IFm: jax.Array, c: SoundConfig, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """Soft tokens [I, P, D]: `stack` states side by side through the projector."""
    states_ISE = encode(p, mel_IFm, c, execution, dtype)
    stacked_IPE = merge_axes(split_axis(states_ISE, 1, c.tokens), 2)
    return projector.through(p["projector"], stacked_IPE)
