"""Soft tokens: what sees what, exactly, and that packing, caches, meshes and remat change nothing.

A row has two documents with three images between words; the model has a local and a global layer.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.config import Execution, ModelConfig
from research.models.image_config import ImageConfig
from research.models.model import Model, forward
from research.models.soft import check_images, soft_index
from research.models.spec import initialize, shardings
from research.ops.kernels.notes import CannotServe
from research.parallel.mesh import batch_sharding, make_mesh

PLACE, K, WINDOW = 5, 4, 3
IMAGE = ImageConfig(
    **{"layers": 1, "size": 4, "patch": 2, "d_model": 8, "heads": 2, "d_ff": 12, "token": PLACE},
)
DECODER = ModelConfig(
    **{"vocab_size": 32, "layers": 2, "d_model": 16, "heads": 2, "kv_heads": 1, "head_size": 8},
    **{"d_ff": 24, "max_length": 32, "window": WINDOW, "global_every": 2, "image": IMAGE},
)
# Words are 7; the second document ends in an image's neighbour and two words.
ROW = [7, *[PLACE] * K, 7, 7] + [7, *[PLACE] * K, *[PLACE] * K, 7, 7]
CUT, T = 7, len(ROW)


def model(attention: str, **image) -> Model:
    return Model(replace(DECODER, image=replace(IMAGE, attention=attention, **image)))


@cache
def parameters():
    return initialize(jax.random.key(0), Model(DECODER).specs(), jnp.float32)


def batch(attention: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    # Words differ, so that none stands for another.
    ids = np.array(ROW)
    ids[ids == 7] = 10 + np.arange(np.sum(ids == 7))
    fields = {
        "inputs": ids,
        "positions": np.concatenate([np.arange(CUT), np.arange(T - CUT)]),
        "segments": np.where(np.arange(T) < CUT, 1, 2),
    }
    if attention == "prefix":  # the last word of each document is its answer
        fields["blocks"] = ~np.isin(np.arange(T), (CUT - 1, T - 1))
    rows = {name: np.asarray(x, np.int32)[None] for name, x in fields.items()}
    return rows | {"images": rng.integers(0, 256, (1, 3, 4, 4, 3), dtype=np.uint8)}


def may_see(attention: str, window: int) -> np.ndarray:
    """True where the token of a row may see that of a column in one layer, pair by pair."""
    rows, seen = {k: v[0] for k, v in batch(attention).items()}, np.zeros((T, T), bool)
    image = np.cumsum(rows["inputs"] == PLACE) - 1  # counts places
    for q in range(T):
        for k in range(T):
            past = k <= q and (not window or q - k < window)
            one = rows["inputs"][q] == rows["inputs"][k] == PLACE and image[q] // K == image[k] // K
            whole = {"causal": False, "block": one}.get(attention)
            if whole is None:
                whole = bool(rows["blocks"][q] and rows["blocks"][k])
            seen[q, k] = (past or whole) and rows["segments"][q] == rows["segments"][k]
    return seen


@pytest.mark.parametrize("attention", ["causal", "block", "prefix"])
def test_gradients_reach_what_the_mask_allows_and_nothing_else(attention):
    m, params = model(attention), parameters()
    given = m.soften(params, batch(attention))

    def last(states_BTD, soft_BSD):
        soft_there = m.states(params, {**given, "soft": soft_BSD}) + states_BTD
        hidden_BTD, _, _ = m.run(params, soft_there, given)
        return jnp.sum(jnp.sin(hidden_BTD[0]), axis=-1)  # [T]; a plain sum would be constant

    zeros = jnp.zeros((1, T, DECODER.d_model))
    by_state, by_soft = jax.jit(jax.jacrev(last, argnums=(0, 1)))(zeros, given["soft"])
    # Two layers, one after the other.
    wanted = (may_see(attention, 0).astype(int) @ may_see(attention, WINDOW).astype(int)) > 0
    np.testing.assert_array_equal(np.any(by_state[:, 0] != 0, axis=-1), wanted)
    places = np.flatnonzero(batch(attention)["inputs"][0] == PLACE)
    # The same sums in the same order.
    np.testing.assert_array_equal(by_soft[:, 0], by_state[:, 0, places])


@cache
def logits(attention: str) -> np.ndarray:
    return np.asarray(jax.jit(partial(forward, model(attention)))(parameters(), batch(attention)))


# Sums of the same float32 products in another order; logits are of the order of 1.
close = partial(np.testing.assert_allclose, rtol=0, atol=2e-5)


# Prefixes are blocks with other numbers.
BLOCKS = ["block", pytest.param("prefix", marks=pytest.mark.slow)]


@pytest.mark.parametrize("attention", BLOCKS)
def test_packed_is_alone(attention):
    packed = batch(attention)
    for part, images in ((slice(0, CUT), slice(0, 1)), (slice(CUT, T), slice(1, 3))):
        alone = {k: v[:, images if k == "images" else part] for k, v in packed.items()}
        got = jax.jit(partial(forward, model(attention)))(parameters(), alone)
        close(got, logits(attention)[:, part])


@pytest.mark.parametrize("attention", BLOCKS)
def test_a_cache_fed_whole_images_changes_nothing(attention):
    m, params = model(attention), parameters()

    @jax.jit
    def decoded(fields):
        fields = m.soften(params, fields)
        length = fields["inputs"].shape[1]
        cache, states = m.make_cache(1, length, length - 1), []
        for part in (slice(0, length - 1), slice(length - 1, length)):
            cut = {k: v if k == "soft" else v[:, part] for k, v in fields.items()}
            hidden_BTD, cache = m.decode(params, cut, cache)
            states.append(hidden_BTD)
        return m.logits(params, jnp.concatenate(states, axis=1))

    # One document: positions of a cache rise.
    second = {k: v[:, slice(1, 3)] if k == "images" else v for k, v in batch(attention).items()}
    second = {k: v if k == "images" else v[:, CUT:] for k, v in second.items()}
    close(decoded(second), logits(attention)[:, CUT:])


@pytest.mark.slow
def test_remat_changes_no_gradient():
    def loss(m, params):
        return jnp.sum(jnp.sin(forward(m, params, batch("block"))))

    one = model("block")
    other = replace(one, execution=Execution(remat="full", unroll=0))
    first, second = (jax.jit(jax.grad(partial(loss, m)))(parameters()) for m in (one, other))
    jax.tree.map(partial(close, atol=2e-4), first, second)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(first["image"]["projector"]))


@pytest.mark.parametrize(
    "mesh", ["data:2,context:2", pytest.param("fsdp:2,tensor:2", marks=pytest.mark.slow)]
)
def test_a_mesh_changes_nothing(mesh):
    devices, m = make_mesh(mesh, jax.devices()[:4]), model("block")
    with jax.set_mesh(devices):
        params = jax.device_put(parameters(), shardings(m.specs(), devices, m.rules))
        rows = {k: np.concatenate([v, v]) for k, v in batch("block").items()}
        place = lambda v: jax.device_put(v, batch_sharding(v.shape, devices, m.rules))
        rows = {name: place(v) for name, v in rows.items()}

        def total(params):
            logits_BTV = forward(m, params, rows)
            return jnp.sum(logits_BTV**2), logits_BTV

        grads, got = jax.jit(jax.grad(total, has_aux=True))(params)
    close(np.asarray(got)[1:], logits("block"))
    assert np.any(np.asarray(grads["image"]["patch"]["kernel"]) != 0)


def test_places_count_from_the_left_of_a_row():
    at = soft_index(jnp.asarray([[5, 1, 5, 5], [1, 1, 1, 5]]), 5)
    np.testing.assert_array_equal(at, [[0, -1, 1, 2], [-1, -1, -1, 0]])


def test_frames_are_averaged_into_one_image():
    m = model("causal", frames=3)
    fields = batch("causal")
    softened = m.soften(parameters(), fields)["soft"]
    alone = model("causal").soften(parameters(), fields)["soft"]
    close(softened[0], np.mean(np.asarray(alone[0]).reshape(3, K, -1), axis=0))


def test_kernels_refuse_blocks_by_name_and_pages_too():
    m = replace(model("block"), execution=Execution(attention="splash"))
    with pytest.raises(CannotServe, match="soft tokens see their block whole"):
        forward(m, parameters(), batch("block"))


def test_prefixes_are_the_texts_to_say():
    fields = {k: v for k, v in batch("prefix").items() if k != "blocks"}
    with pytest.raises(ValueError, match='give it "blocks"'):
        forward(model("prefix"), parameters(), fields)


@pytest.mark.parametrize(
    ("images", "tokens", "line"),
    [
        ((1, 3, 4, 5, 3), ROW, r"wanted \[rows, images of a row, 4, 4, 3\]"),
        ((1, 2, 4, 4, 3), ROW, "row 0 has 12 places of soft tokens and 2 images, which make 8"),
        ((1, 3, 4, 4, 3), ROW[:-3], "row 0 has 11 places"),
        (None, ROW, "12 places of soft tokens .* no images"),
    ],
)
def test_texts_and_images_that_do_not_fit_are_refused(images, tokens, line):
    given = None if images is None else np.zeros(images, np.uint8)
    with pytest.raises(ValueError, match=line):
        check_images(DECODER, np.array([tokens]), given)
