"""The attention kernels compile for devices that are not here, and need far less memory than the
reference there.

A small attention layer of LLaMA's kind, forward and backward at 8,192 tokens, goes through the real
compilers of TPU and GPU on this machine's CPU. They run in a process of their own, this file's,
which prints what came out as JSON.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
TOKENS, HEADS = 8192, 2
QUADRATIC = (
    HEADS * TOKENS**2
)  # half the scores of a row at 2 bytes, the least that keeping the scores takes
# Each head size of a preset on each kind of card, and a window where a card has a kernel for it.
CARDS = ("h100:1", "a100-40", "rtx4090")
HEAD_SIZES = (64, 80, 96, 128, 256)
FEWER = 2048  # tokens of these
TARGETS = {"tpu": "v5e:2x2", "cuda": "h100:1"}
CALLS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu")
# As `research.fit` tells them; with the extra [kernels] there is Mosaic's kernel for the card.
KERNELS = {
    "tpu": ["splash_mha_dkv", "splash_mha_dq", "splash_mha_fwd"],
    "cuda": ["mha", "mha_backward", "mha_forward", "mha_preprocess_backward"],
    "mosaic": ["flash_attention_sm90", "mosaic_gpu_v2"],
}


def square(text: str, tokens: int) -> str | None:
    """The shape of an array of T x T in a program's text, if there is one."""
    found = re.search(rf"\[(\d+,)*{tokens},{tokens}(,\d+)*\]", text)
    return found and found[0]


def every_head_size() -> list[dict]:
    """The layer of each head size as "auto" compiles it for each card."""
    cases = [(card, size, 0) for card in CARDS for size in HEAD_SIZES]
    cases += [(CARDS[0], 128, 512)] if importlib.util.find_spec("tokamax") else []
    rows = []
    for card, size, window in cases:
        made = compiled(card, "auto", FEWER, size, window)
        # Layers have projections [D, N H], which may be as long as wide for some other length.
        rows.append(
            {"case": (card, size, window), "square": square(made.pop("text"), FEWER), **made}
        )
    return rows


def compiled(
    target: str, implementation: str, tokens: int = TOKENS, head_size: int = 128, window: int = 0
) -> dict:
    """Bytes of temporaries a device, and the text, of the layer's gradient compiled for four TPU
    chips or one GPU."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from research.fit.hlo.kernels import kernels
    from research.fit.hlo.text import parse
    from research.fit.targets import parse_target
    from research.models import layers
    from research.models.config import ModelConfig
    from research.models.context import LayerKind
    from research.models.initial import initial
    from research.models.spec import abstract
    from research.ops import chunked
    from research.ops.attention import Visibility
    from research.ops.rope import frequencies, rotation
    from research.parallel.axes import RULES, partition
    from research.parallel.mesh import make_mesh

    if implementation == "saving":  # XLA's form that saves what it computes, as on a CPU
        implementation, chunked.SHORT = "xla", TOKENS**2
    chosen = parse_target(TARGETS.get(target, target))
    devices = chosen.devices()
    mesh = make_mesh("fsdp:-1", devices)
    c = ModelConfig(d_model=256, heads=HEADS, kv_heads=1, head_size=head_size)

    def loss(p, x_BTD, positions_BT, segments_BT):
        of_tokens = positions_BT, positions_BT, segments_BT, segments_BT
        visibility = Visibility(*of_tokens, causal=True, window=window, packed=True)
        turned = rotation(positions_BT, frequencies(c.head_size, c.rope_theta, c.rope_scaling))
        kind = LayerKind(visibility, turned)
        y_BTD, _ = layers.attention(p, x_BTD, c, kind, implementation=implementation)
        return jnp.sum(jnp.square(y_BTD.astype(jnp.float32)))

    def shaped(axes, shape, dtype):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, partition(axes, shape, mesh, RULES))
        )

    B = len(devices)
    with jax.set_mesh(mesh):
        p = abstract(layers.attention_specs(c, initial(c)), jnp.float32, mesh, RULES)
        x_BTD = shaped(("batch", "length", "vector"), (B, tokens, c.d_model), jnp.bfloat16)
        tokens_BT = shaped(("batch", "length"), (B, tokens), jnp.int32)
        program = (
            jax.jit(jax.grad(loss, argnums=(0, 1)))
            .lower(p, x_BTD, tokens_BT, tokens_BT)
            .compile(chosen.compiler_options)
        )
    text = program.as_text()
    return {
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "kernels": kernels(parse(text)),
        "text": text,
    }


def in_a_process(*arguments: str) -> Any:
    """`compiled`, or without arguments `every_head_size`, where the environment suits compilers
    without their devices."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def need_compiler(target: str) -> None:
    """Skips where the target's compiler is not installed; setup.cfg's extra "fit" brings both."""
    package = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}[target]
    if importlib.util.find_spec(package) is None:
        pytest.skip(
            f"the compiler for {target} is in the package {package}, which is not installed"
        )


@pytest.mark.parametrize("target", ["tpu", "cuda"])
def test_the_layer_runs_through_the_kernel_and_needs_little_memory(target):
    need_compiler(target)
    layer = in_a_process(target, "auto")
    mosaic = target == "cuda" and importlib.util.find_spec("tokamax") is not None
    wanted = KERNELS["mosaic" if mosaic else target]
    assert all(any(name.startswith(one) for one in wanted) for name in layer["kernels"]), layer
    assert len(layer["kernels"]) >= 2
    assert layer["temp_bytes"] < QUADRATIC / 2
    assert not square(layer["text"], TOKENS)


@pytest.mark.slow
def test_no_card_makes_an_array_of_scores_for_any_head_size():
    need_compiler("cuda")
    rows = in_a_process()
    assert len(rows) >= len(CARDS) * len(HEAD_SIZES)
    for row in rows:
        assert len(row["kernels"]) >= 2 and row["square"] is None, row


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu", "cuda"])
def test_the_layer_without_the_kernel_goes_by_blocks(target):
    need_compiler(target)
    layer, saving = in_a_process(target, "xla"), in_a_process(target, "saving")
    assert not any(call in layer["text"] for call in CALLS)
    assert layer["temp_bytes"] < QUADRATIC / 2 and not square(layer["text"], TOKENS)
    # So that the bound says something.
    assert saving["temp_bytes"] > QUADRATIC


if __name__ == "__main__":
    print(json.dumps(compiled(*sys.argv[1:]) if sys.argv[1:] else every_head_size()))
