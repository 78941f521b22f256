"""`Model`: a decoder, encoder or encoder-decoder as pure functions of its parameter tree."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.models import adapters, embedding, heads, layers, media, pipeline, sound
from research.models.block import block
from research.models.cache import StackedCache, make_cache
from research.models.config import Execution, LayerLosses, ModelConfig, dense_config
from research.models.context import LayerContext, Memory, make_context, row_lengths
from research.models.kinds import longest_window
from research.models.kv import KVCache
from research.models.latent import cached_size
from research.models.parameters import parameter_specs
from research.models.stack import each
from research.ops.einsum import add_bias, einsum
from research.ops.elementwise import soft_cap
from research.parallel.axes import RULES, AxisRules
from research.precision import Precision
from research.scopes import scope
from research.tree import Tree

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Model:
    """A transformer without its parameters: what it computes (`config`), in which types
    (`precision`), how it runs (`execution`), and which mesh axes split its logical axes (`rules`).

        model = Model(PRESETS["gpt2"])
        params = spec.initialize(jax.random.key(0), model.specs(), jnp.float32)
        logits_BTV = forward(model, params, batch)  # "inputs", "positions", "segments" [B, T]
    """

    config: ModelConfig
    precision: Precision = Precision(compute="float32")
    execution: Execution = Execution()
    # Left out of the hash, since a dict has none; equality still compares it.
    rules: AxisRules = field(default_factory=lambda: RULES, hash=False)

    def specs(self) -> Tree:
        """The parameter tree, with a `Spec` for each parameter."""
        return parameter_specs(self.config)

    def hidden(
        self, params: Tree, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, LayerLosses]:
        """Last states [B, T, D] of `batch["inputs"]` and the layers' losses by name; dropout where
        a key is given."""
        batch = self.soften(params, batch)
        encoder_key, key = (None, None) if key is None else tuple(jax.random.split(key))
        memory = None
        if self.config.kind == "encoder_decoder":
            memory = self.encode(params, batch, encoder_key)
        states_BTD = self.states(params, batch, key)
        hidden_BTD, _, losses = self.run(params, states_BTD, batch, memory=memory, key=key)
        return hidden_BTD, losses

    def soften(self, params: Tree, batch: Batch) -> Batch:
        """The batch with "images" [B, M, h, w, 3] and "sounds" [B, M, F, mels] encoded: in their
        place are the soft tokens that `states` and `run` read (`research.models.soft`)."""
        dtype = self.precision.compute_dtype
        return media.soften(params, batch, self.config, self.execution, dtype)

    def states(self, params: Tree, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Input states [B, T, D] of `batch["inputs"]`, what `run` takes: embeddings of tokens, or
        the soft tokens in their place, and, where the model has them, of positions and token
        types; dropout where a key is given."""
        virtual = adapters.virtual_tokens(params)
        embedding.check_positions(self.config, virtual, batch["inputs"].shape[1])
        return self._embed(params, virtual, batch, key)

    def run(
        self,
        params: Tree,
        states_BTD: jax.Array,
        batch: Batch,
        *,
        memory: Memory | None = None,
        cache: KVCache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None, LayerLosses]:
        """Runs the stack over input states: (last states [B, T, D], the cache with these tokens,
        the layers' losses by name). The input is what `states` returns, or other states of that
        shape and type.

        `batch` has their "positions" and "segments" [B, T], and "blocks" where soft tokens see
        themselves whole: what `soften` returned for images. Where it has a "shared",
        all segments see the tokens of `research.ops.attention.EVERYONE`. `memory` is what `encode`
        gives for an encoder-decoder. With dropout `key` must be that which `states` was given.
        """
        if "prompt" in params:
            # Folded rather than split, which would change the keys of the text below.
            prompt_key = None if key is None else jax.random.fold_in(key, 0)
            params = self.prompted(params, prompt_key)
        causal = self.config.kind != "encoder"
        return self._run(params, states_BTD, batch, causal, memory, cache, key)

    def layer(self, p_layer: Tree, states_BTD: jax.Array, batch: Batch, kind: str) -> jax.Array:
        """The states [B, T, D] after one layer of a decoder, given its parameters and its input
        states, without dropout. `kind` is `kinds.layer_kind(config, index)`."""
        causal = self.config.kind != "encoder"
        context = make_context(self.config, batch["positions"], batch["segments"], causal=causal)
        return block(p_layer, states_BTD, self.config, self.execution, context, kind=kind)[0]

    def logits(self, params: Tree, hidden_BTD: jax.Array) -> jax.Array:
        """Logits float32 [B, T, V] of last states."""
        # In the compute dtype, then float32: soft cap, sampling and losses need its precision.
        states_BTD, table_VD, bias_V = self.head(params, hidden_BTD)
        with scope("head"):
            logits_BTV = einsum("BTD,VD->BTV", states_BTD, table_VD).astype(jnp.float32)
            logits_BTV = logits_BTV if bias_V is None else add_bias(logits_BTV, bias_V)
            return soft_cap(logits_BTV, self.config.logit_softcap)

    def head(self, params: Tree, hidden_BTD: jax.Array) -> tuple[jax.Array, Any, jax.Array | None]:
        """(states [B, T, D], table [V, D] as stored, bias [V] or None), from which logits are
        computed: states table^T + bias, then the soft cap."""
        if self.config.scores_texts:
            raise ValueError(
                "the model scores texts (model.labels) and predicts no words; python -m "
                "research.evaluate --pairs=FILE compares answers by it"
            )
        p_head = params.get("head", {})
        table_VD = params["embed"]["table"] if self.config.tied else p_head["table"]
        states_BTD = heads.head_states(p_head, hidden_BTD, self.config)
        return states_BTD, table_VD, p_head.get("output_bias")

    def pooled(
        self, params: Tree, hidden_BTD: jax.Array, segments_BT: jax.Array | None = None
    ) -> jax.Array:
        """The summary of each row's text, [B, 1, D], as in BERT a layer over its first token, and
        of a decoder the state of the last. None for the segments says that no row has padding."""
        return heads.pooled(params, hidden_BTD, self.config, segments_BT)

    @scope("head")
    def class_logits(
        self,
        params: Tree,
        hidden_BTD: jax.Array,
        key: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 of the model's V labels, [B, 1, V] of whole texts or [B, T, V] of tokens;
        dropout before the layer where a key is given. `segments_BT` as for `pooled`."""
        states_BTD = heads.labelled(params, hidden_BTD, self.config, segments_BT)
        return heads.class_logits(params, layers.dropout(states_BTD, self.config.dropout, key))

    @scope("encoder")
    def encode(self, params: Tree, batch: Batch, key: jax.Array | None = None) -> Memory:
        """What a decoder reads: (keys and values [L, B, S, K, H] for the cross-attention of its L
        layers, fields of their text). The text is the batch's "encoder_inputs", "_segments" and
        "_positions" [B, S], or its sound "mel" [B, F, mels], with S = F / 2."""
        p_encoder, c = params["encoder"], self.config
        if c.mels:
            states_BSD, inputs = sound.states(p_encoder, batch, c, self.precision, key)
        else:
            inputs = embedding.encoder_text(batch)
            virtual = adapters.virtual_tokens(p_encoder)
            embedding.check_positions(c, virtual, inputs["inputs"].shape[1])
            p_embed = {"embed": embedding.of_encoder(params["embed"])}
            states_BSD = self._embed(p_embed, virtual, inputs, key)
        hidden_BSD, _, _ = self._run(p_encoder, states_BSD, inputs, False, None, None, key)
        # Once here and not in every layer's cross-attention: decoding reads them for every token.
        return each(
            lambda p: layers.keys_values(p["cross"], hidden_BSD, c, None), params["layers"]
        ), inputs

    def decode(
        self, params: Tree, batch: Batch, cache: KVCache, memory: Memory | None = None
    ) -> tuple[jax.Array, KVCache]:
        """(last states [B, T, D], cache with the new tokens) for tokens that continue the texts in
        `cache`."""
        states_BTD = self._embed(params, adapters.virtual_tokens(params), batch, None)
        hidden_BTD, cache, _ = self.run(params, states_BTD, batch, memory=memory, cache=cache)
        return hidden_BTD, cache

    def make_cache(self, batch: int, length: int, chunk: int) -> StackedCache:
        """An empty cache for texts of up to `length` tokens, written at most `chunk` at a time."""
        c = self.config
        return make_cache(
            c.layers,
            batch,
            length,
            1 if c.kv_latent else c.kv_heads,
            cached_size(c) if c.kv_latent else c.head_size,
            self.precision.compute_dtype,
            # All layers have the same slots, so one global layer makes them as many as the text.
            longest_window(c),
            chunk,
            self.rules,
            values=not c.kv_latent,
        )

    def prompted(self, params: Tree, key: jax.Array | None = None) -> Tree:
        """`params` with their prompt replaced by the prefix that it amounts to; unchanged without a
        prompt.

        In a decoder no token sees later ones, so all that a text sees of a prompt are its keys and
        values in each layer. They are computed once here, and serve every document of a packed row
        and every step of decoding.
        """
        if "prompt" not in params:
            return params
        adapters.check_prompt(self.config, params)
        rest = {name: p for name, p in params.items() if name != "prompt"}
        n = adapters.virtual_tokens(params)
        ids_1T = jnp.arange(n, dtype=jnp.int32)[None]
        batch = {"inputs": ids_1T, "positions": ids_1T, "segments": jnp.ones_like(ids_1T)}
        # The prompt replaces the token table; token id i is its row i.
        p_prompt = {"embed": {**params["embed"], **params["prompt"]}}
        states_1TD = self._embed(p_prompt, 0, batch, key)
        # A cache of exactly n slots holds the keys and values of every layer, token i in slot i.
        cache = self.make_cache(1, n, n)
        _, cache, _ = self._run(rest, states_1TD, batch, True, None, cache, key)
        return adapters.add_prefix(rest, *cache.first_row())

    def _embed(self, params: Tree, virtual: int, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Input states of tokens whose positions follow those of `virtual` virtual tokens."""
        positions_BT = batch["positions"] + virtual if virtual else batch["positions"]
        return embedding.embed(
            params["embed"],
            batch["inputs"],
            positions_BT,
            self.config,
            self.precision.compute_dtype,
            batch.get("token_types"),
            None if key is None else jax.random.split(key)[0],
            batch.get("segments"),
            (batch["soft"], batch["soft_at"]) if "soft" in batch else None,
        )

    def _run(
        self,
        p_stack: Tree,
        x_BTD: jax.Array,
        batch: Batch,
        causal: bool,
        memory: Memory | None,
        cache: KVCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None, LayerLosses]:
        """`run` for the stack `p_stack`, the decoder's or the encoder's, with its final norm."""
        c, segments_BT, blocks_BT = self.config, batch.get("segments"), batch.get("blocks")
        virtual = adapters.virtual_tokens(p_stack)
        positions_BT = batch["positions"] + virtual if virtual else batch["positions"]
        # `_embed` splits the same key and takes the first half.
        layer_key = None if key is None else jax.random.split(key)[1]
        if cache is not None:
            cache = cache.enter(positions_BT, segments_BT)
        # All layers of a stack add the same bias to the scores; T5 has no positions in its states.
        bias = None
        if c.has_offsets:
            seen_BS = positions_BT if cache is None else cache.key_positions()
            seen_BS = adapters.in_front(jnp.arange(virtual), seen_BS) if virtual else seen_BS
            near = dict(causal=causal, adjacent=cache is None and not virtual)
            bias = embedding.relative_bias(p_stack["relative"], positions_BT, seen_BS, **near)
        # Branches behind a prefix that they share all begin at its end: no rising positions.
        seen = dict(causal=causal, documents=self.execution.documents, shared="shared" in batch)
        seen |= dict(packed=cache is None and not seen["shared"])
        beside = dict(bias=bias, memory=memory, key=layer_key)
        lengths_B = None if cache is None else row_lengths(batch, cache.key_positions())
        tokens = dict(positions_BT=positions_BT, segments_BT=segments_BT, blocks_BT=blocks_BT)
        tokens["spans_BT2"] = batch["spans"] + virtual if "spans" in batch else None
        context = make_context(c, **tokens, **seen, **beside, lengths_B=lengths_B)
        if c.dense_layers:
            x_BTD, cache = self._run_dense(p_stack, x_BTD, context, cache)
        # A pipeline makes the context of each micro-batch, without what is of the whole batch.
        fields = tokens if bias is None and memory is None else None
        how = (context, cache, c.dense_layers, partial(make_context, c, **seen), fields)
        x_BTD, cache, losses = pipeline.run(p_stack["layers"], x_BTD, c, self.execution, *how)
        # Where norms follow the sums, that of the last layer is the final one.
        if not c.norm_after:
            x_BTD = layers.norm(p_stack["final_norm"], x_BTD, c)
        if c.final_dropout:
            # A third key, beside those of `_embed` and of the layers.
            final_key = None if key is None else jax.random.fold_in(key, 2)
            x_BTD = layers.dropout(x_BTD, c.dropout, final_key)
        return x_BTD, cache, losses

    def _run_dense(
        self, p_stack: Tree, x_BTD: jax.Array, context: LayerContext, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        """(states, cache) after the first layers, which have no experts."""
        # A cache with an array for each layer takes no traced number of one.
        apart = isinstance(p_stack["layers"], tuple)
        execution = replace(self.execution, unroll=0) if apart else self.execution
        dense, p_dense = dense_config(self.config), p_stack["dense"]["layers"]
        return pipeline.run(p_dense, x_BTD, dense, execution, context, cache)[:2]


def forward(model: Model, params: Tree, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Logits float32 [B, T, V] of a batch."""
    hidden_BTD, _ = model.hidden(params, batch, key)
    return model.logits(params, hidden_BTD)
