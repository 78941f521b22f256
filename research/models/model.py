"""A transformer as pure functions on its parameter tree, for every kind: decoder, encoder,
encoder-decoder."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from research.models import adapters, embedding, layers
from research.models.cache import Cache, make_cache
from research.models.config import Execution, ModelConfig
from research.models.initial import initial
from research.models.spec import Spec, zeros
from research.models.stack import Surroundings, each, layer_specs, run
from research.ops.attention import Visibility
from research.ops.einsum import add_bias, einsum
from research.ops.rope import frequencies, rotation
from research.parallel.axes import RULES, AxisRules
from research.parallel.placement import whole
from research.precision import Precision
from research.tree import Tree

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Model:
    """What to compute (`config`), in which types (`precision`), how (`execution`), and which mesh
    axes split which logical axis (`rules`). Holds no arrays."""

    config: ModelConfig
    precision: Precision = Precision(compute="float32")
    execution: Execution = Execution()
    # A dict has no hash, and two models that differ in nothing else may share one.
    rules: AxisRules = field(default_factory=lambda: RULES, hash=False)

    def specs(self) -> Tree:
        """The parameter tree, as specs."""
        c, start = self.config, initial(self.config)
        two = c.kind == "encoder_decoder"
        specs = {
            "embed": embedding.embed_specs(c, start),
            "layers": layer_specs(c, start, c.layers, cross=two),
        }
        if two:
            specs["encoder"] = {"layers": layer_specs(c, start, c.encoder_layers, cross=False)}
        for stack in (specs, *([specs["encoder"]] if two else [])):
            if c.position == "relative":
                stack["relative"] = embedding.relative_specs(c, start)
            if not c.norm_after:
                stack["final_norm"] = layers.norm_specs(c)
        if c.pooler:
            specs["pooler"] = {
                "kernel": Spec((c.d_model, c.d_model), ("embed", "vector"), start.head),
                "bias": Spec((c.d_model,), ("vector",), zeros),
            }
        if c.labels:
            specs["classifier"] = {
                "kernel": Spec((c.d_model, c.labels), ("embed", "label"), start.head),
                "bias": Spec((c.labels,), ("label",), zeros),
            }
        head = embedding.head_specs(c, start)
        return {**specs, "head": head} if head else specs

    def hidden(
        self, params: Tree, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Last states [B, T, D] of `batch["inputs"]` and the load-balancing loss; dropout where a
        key is given."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        memory = (
            self.encode(params, batch, keys[0]) if self.config.kind == "encoder_decoder" else None
        )
        x_BTD, _, balance = self._decode(params, batch, memory, None, keys[1])
        return x_BTD, balance

    def logits(self, params: Tree, hidden_BTD: jax.Array) -> jax.Array:
        """Logits float32 [B, T, V] of last states."""
        states_BTD, table_VD, bias_V = self.head(params, hidden_BTD)
        logits_BTV = einsum("BTD,VD->BTV", states_BTD, table_VD).astype(jnp.float32)
        return logits_BTV if bias_V is None else add_bias(logits_BTV, bias_V)

    def head(self, params: Tree, hidden_BTD: jax.Array) -> tuple[jax.Array, Any, jax.Array | None]:
        """What the logits are made of: states [B, T, D], table [V, D] as stored, and a bias [V] or
        None."""
        p_head = params.get("head", {})
        table_VD = params["embed"]["table"] if self.config.tied else p_head["table"]
        return (
            embedding.head_states(p_head, hidden_BTD, self.config),
            table_VD,
            p_head.get("output_bias"),
        )

    def pooled(self, params: Tree, hidden_BTD: jax.Array) -> jax.Array:
        """BERT's summary of a text, tanh of a layer over its first token, [B, 1, D]."""
        first_B1D = whole(hidden_BTD, axis=1)[:, :1]
        p = params["pooler"]
        return jnp.tanh(add_bias(einsum("BTD,DM->BTM", first_B1D, p["kernel"]), p["bias"]))

    def class_logits(
        self, params: Tree, hidden_BTD: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [B, 1, V] of the model's V labels; dropout before the layer where a key is
        given."""
        pooled_BTD = layers.dropout(self.pooled(params, hidden_BTD), self.config.dropout, key)
        p = params["classifier"]
        return add_bias(einsum("BTD,DV->BTV", pooled_BTD, p["kernel"]), p["bias"]).astype(
            jnp.float32
        )

    def encode(
        self, params: Tree, batch: Batch, key: jax.Array | None = None
    ) -> tuple[tuple, Batch]:
        """The memory of an encoder-decoder: keys and values of every decoder layer, and the
        encoder's batch fields."""
        c = self.config
        inputs = {name: batch[f"encoder_{name}"] for name in ("inputs", "segments", "positions")}
        states_BSD, _, _ = self._stack(
            params["embed"], params["encoder"], inputs, None, None, key, causal=False
        )
        keys_values = each(
            lambda p: layers.keys_values(p["cross"], states_BSD, c, None), params["layers"]
        )
        return keys_values, inputs

    def decode(
        self, params: Tree, batch: Batch, cache: Cache, memory: tuple[tuple, Batch] | None = None
    ) -> tuple[jax.Array, Cache]:
        """Last states of the next tokens after those in the cache, and the cache with them."""
        x_BTD, cache, _ = self._decode(params, batch, memory, cache, None)
        return x_BTD, cache

    def make_cache(self, batch: int, length: int, chunk: int) -> Cache:
        """An empty cache for texts of up to `length` tokens, written at most `chunk` at a time."""
        c = self.config
        return make_cache(
            c.layers,
            batch,
            length,
            c.kv_heads,
            c.head_size,
            self.precision.compute_dtype,
            c.window,
            chunk,
            self.rules,
        )

    def prompted(self, params: Tree, key: jax.Array | None = None) -> Tree:
        """The parameters with a prompt's tokens as a prefix, read once for all texts; without a
        prompt as they are.

        No token of a decoder sees what follows it, so to a text a prompt is the keys and values
        that every layer has of it. Documents of a packed row share them, and decoding, given these
        parameters, reads no prompt at all.
        """
        if "prompt" not in params:
            return params
        adapters.check_prompt(self.config, params)
        rest = {name: p for name, p in params.items() if name != "prompt"}
        n = adapters.virtual_tokens(params)
        ids_1T = jnp.arange(n, dtype=jnp.int32)[None]
        batch = {"inputs": ids_1T, "positions": ids_1T, "segments": jnp.ones_like(ids_1T)}
        rows = {**params["embed"], **params["prompt"]}  # its table in place of the tokens'
        _, cache, _ = self._stack(
            rows, rest, batch, None, self.make_cache(1, n, n), key, causal=True
        )
        keys_LSKH, values_LSKH = (
            jnp.swapaxes(kv[:, 0], 1, 2) for kv in (cache.key_LBKSH, cache.value_LBKSH)
        )
        return adapters.add_prefix(rest, keys_LSKH, values_LSKH)

    def _decode(self, params, batch, memory, cache, key):
        causal = self.config.kind != "encoder"
        if "prompt" in params:
            own = None if key is None else jax.random.fold_in(key, 0)
            params = self.prompted(params, own)
        return self._stack(params["embed"], params, batch, memory, cache, key, causal=causal)

    def _stack(self, p_embed, p_stack, batch, memory, cache, key, *, causal):
        """Embeds `batch["inputs"]`, runs a stack over it and normalises what comes out."""
        c = self.config
        positions_BT, segments_BT = batch["positions"], batch["segments"]
        virtual = adapters.virtual_tokens(p_stack)
        if virtual:
            positions_BT = self._behind(virtual, positions_BT, cache)
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        x_BTD = embedding.embed(
            p_embed,
            batch["inputs"],
            positions_BT,
            c,
            self.precision.compute_dtype,
            batch.get("token_types"),
            keys[0],
        )
        bias_BNTS = None
        if c.position == "relative":
            seen = (
                positions_BT
                if cache is None
                else cache.claim(positions_BT, segments_BT).positions_BS
            )
            seen = adapters.in_front(jnp.arange(virtual), seen) if virtual else seen
            bias_BNTS = embedding.relative_bias(
                p_stack["relative"], positions_BT, seen, causal=causal
            )
        shared = Surroundings(
            visibility=Visibility(
                positions_BT,
                positions_BT,
                segments_BT,
                segments_BT,
                causal,
                c.window,
                packed=cache is None,
            ),
            counted_BT=(segments_BT > 0).astype(jnp.float32),
            rotation=rotation(positions_BT, frequencies(c.head_size, c.rope_theta, c.rope_scaling))
            if c.position == "rope"
            else None,
            bias_BNTS=bias_BNTS,
            key=keys[1],
        )
        if memory is not None:
            shared = _with_memory(shared, memory)
        x_BTD, cache, balance = run(p_stack["layers"], x_BTD, c, self.execution, shared, cache)
        if not c.norm_after:
            x_BTD = layers.norm(p_stack["final_norm"], x_BTD, c)
        return (
            layers.dropout(x_BTD, c.dropout if c.position == "relative" else 0.0, keys[0]),
            cache,
            balance,
        )

    def _behind(self, virtual: int, positions_BT: jax.Array, cache: Cache | None) -> jax.Array:
        """Positions behind so many virtual tokens. ValueError where a position table may end before
        them."""
        c, T = self.config, positions_BT.shape[1]
        if c.position == "learned" and cache is None and T + virtual > c.max_length:
            raise ValueError(
                f"{virtual} virtual tokens and {T} of a text are over the {c.max_length} positions of the model; "
                "set config.data.sequence_length lower"
            )
        return positions_BT + virtual


def _with_memory(shared: Surroundings, memory: tuple[tuple, Batch]) -> Surroundings:
    keys_values, inputs = memory
    seen = shared.visibility
    visibility = Visibility(
        seen.q_positions_BT,
        inputs["positions"],
        seen.q_segments_BT,
        inputs["segments"],
        causal=False,
    )
    return replace(shared, memory_LBSKH=keys_values, memory_visibility=visibility)


def forward(model: Model, params: Tree, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Logits float32 [B, T, V] of a batch."""
    hidden_BTD, _ = model.hidden(params, batch, key)
    return model.logits(params, hidden_BTD)
