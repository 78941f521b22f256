"""Smoke forms of recipes: the same architecture in sizes that run in seconds on a CPU."""

from ml_collections import ConfigDict

from research.models.config import ModelConfig


def shrink_model(config: ConfigDict, family: ModelConfig) -> None:
    """Sets the sizes in `config.model` to two layers of width 64; everything else that makes the
    family, such as its norms and activations, stays."""
    m = config.model
    m.vocab_size, m.layers, m.d_model, m.d_ff = 512, 2, 64, 128
    # Multiples of 8, so that a mesh of 8 devices can split these dimensions.
    m.heads = m.kv_heads = 8
    m.head_size, m.max_length = 8, 64
    # The features below stay on wherever the family has them, at the least size that uses them.
    if family.kv_heads != family.heads:
        m.kv_heads = 4
    if family.encoder_layers:
        m.encoder_layers = 2
    if family.window:
        m.window = 16
    if family.global_every:
        m.global_every = 2  # one layer of each kind
    if family.unrotated_every:
        m.unrotated_every = 2
    if family.layer_kinds:
        m.layer_kinds = family.layer_kinds[-1], family.layer_kinds[0]
    if family.rotary_size:
        m.rotary_size = 4
    if family.rope_scaling.short_factors:
        pairs = (m.rotary_size or m.head_size) // 2
        m.rope_scaling.short_factors = family.rope_scaling.short_factors[:pairs]
        m.rope_scaling.long_factors = family.rope_scaling.long_factors[-pairs:]
    if family.kv_latent:
        m.kv_latent, m.value_size = 32, 8
    if family.query_latent:
        m.query_latent = 16
    if family.experts:
        m.experts = 8
    if family.dense_layers:
        m.dense_layers, m.dense_d_ff = 1, 128
    if family.route_groups > 1:
        m.experts_per_token, m.route_groups, m.groups_per_token = 2, 4, 2
    if family.shared_d_ff:
        m.shared_d_ff = 64
    # Both scales depend on the width, which has changed.
    if family.head_scale != 1.0:
        m.head_scale = m.d_model**-0.5
    if family.embedding_scale != 1.0:
        m.embedding_scale = m.d_model**0.5
