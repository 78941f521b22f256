"""Parts of `research.models.config.Shape`: heads beside the plain one, and what models of
DeepSeek's kind use, attention over latents and the choice of experts."""

from dataclasses import dataclass

from research.models.config_checks import (
    DENSE_FIRST,
    ENCODERS,
    EXPERTS,
    GROUPED,
    LABELLED,
    LATENT,
    OF_TEXTS,
    PLAIN_HEAD,
    POOLED,
    SHARED,
    SPARSEMIXER,
    setting,
)


@dataclass(frozen=True)
class Latent:
    """Latent attention (arXiv:2405.04434, section 2.1), see `research.models.latent`: the first
    `rotary_size` elements of a head are rotated and shared by all heads of keys, the others are
    made of latents."""

    # Elements of the latent that a token's keys and values are made of, which is what a cache
    # keeps; 0: keys and values are made of the states themselves.
    kv_latent: int = 0
    query_latent: int = setting(0, LATENT)  # of the latent that queries are made of; 0: none
    value_size: int = setting(0, LATENT)  # elements of a head of values; 0: `head_size`


@dataclass(frozen=True)
class Routing:
    """Which layers have experts, which experts a token visits, and what it visits beside them."""

    dense_layers: int = setting(0, EXPERTS)  # first layers, which have no experts
    dense_d_ff: int = setting(0, DENSE_FIRST)  # their width
    # What a router makes of its logits: shares of a softmax; sigmoids, to which a bias of each
    # expert is added for the choice alone (arXiv:2412.19437, equation 16); or shares of a softmax
    # over the few experts whose logits are nearly the best (arXiv:2409.12136).
    router: str = setting("softmax", EXPERTS, choices=("softmax", "sigmoid", "sparsemixer"))
    # Of the last: experts whose logits are further below the best than twice this are left out.
    router_jitter: float = setting(0.01, SPARSEMIXER)
    # Experts lie in so many groups, of which a token visits `groups_per_token`: those with the
    # best expert (arXiv:2405.04434, section 2.2.2), or under sigmoids the best pair of experts.
    route_groups: int = setting(1, EXPERTS, positive=True)
    groups_per_token: int = setting(1, GROUPED, positive=True)
    route_scale: float = setting(1.0, EXPERTS, positive=True)  # multiplies the mixing weights
    # A switch in 0..1, decided by the token, multiplies the shared expert's output (Qwen 2).
    shared_gate: bool = setting(True, SHARED)


@dataclass(frozen=True)
class Heads:
    """Parameters that read the last states beside a plain head. The same body serves with and
    without them."""

    # A layer over the pooled text, as in BERT.
    pooler: bool = setting(False, ENCODERS, OF_TEXTS)
    # What a pooler reads and does; kept by encoders without one, for fine-tuning may add it.
    pooling: str = setting("first", ENCODERS, choices=("first", "mean"))  # of a text's tokens
    # Its activation, or "head": the masked-LM head's transform is the pooler (ModernBERT).
    pooler_layer: str = setting("tanh", ENCODERS, choices=("tanh", "relu", "gelu", "head"))
    # BERT's transform and norm before the tied head, with an output bias.
    mlm_head: bool = setting(False, ENCODERS)
    transform_bias: bool = setting(True, ENCODERS)  # of the transform's layer
    head_bias: bool = setting(False, PLAIN_HEAD)  # a bias of the logits
    # Classes of a layer over the pooled text, of a decoder over its last token's state and in place
    # of the head for words; 1: a score, as of a reward model; 0: no classifier.
    labels: int = setting(0, POOLED)
    # What has one of these labels: a whole text, or each of its "tokens". For "spans" there are two
    # scores of a token: that an answer begins with it, and that one ends with it.
    labels_over: str = setting("text", ENCODERS, LABELLED, choices=("text", "tokens", "spans"))
