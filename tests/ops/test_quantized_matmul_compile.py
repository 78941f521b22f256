"""Quantized products compile for chips that are not here: kernels without dense weights where they
are faster, one dense matrix at a time elsewhere, 8-bit products where there are.

Those of a weight of an 8B model's feed-forward layer, forward and backward, go through the real
compilers of TPU and GPU. They run in a process of their own, this file's, which prints what came
out as JSON.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.ops.test_attention_compile import need_compiler  # noqa: E402

D, F = 4096, 14336
# A GPU takes the kernels for few tokens and XLA's form for more.
TOKENS = {"kernels": {"tpu": 256, "gpu": 16}, "dense": {"gpu": 256}, "few": {"gpu": 8}}
DENSE = 2 * D * F  # bytes of the weight in bfloat16
TARGETS = {"tpu": ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "cuda": ["h100:1"]}
FEW = ["h100:1", "a100-40", "rtx4090"]  # cards whose kernel for few rows is compiled too
CASES = [("int8", 0), ("int4", 64), ("nf4", 64), ("nf4", 0)]
XLA = ("nf4", 64)  # what XLA's form is compiled for too, which takes several times as long
# With quantized activations: the type of the sums, which says what the chip multiplies. Without
# integer products it is the weight alone that is quantized, and goes through the kernel.
SUMS = {
    "tpu": [
        ("v5e:2x2", "int8", "s32"),
        ("tpu7x:2x2x1", "int8", None),
        ("tpu7x:2x2x1", "fp8_e4m3", "f32"),
    ],
    "cuda": [("h100:1", "int8", "s32"), ("h100:1", "fp8_e4m3", "f32")],
}


def compiled(target: str) -> list[dict]:
    """For each chip and format bytes of temporaries, the number of kernels, and the types of XLA's
    products."""
    call = {"tpu": '"tpu_custom_call"', "cuda": '"__gpu$xla.gpu.triton"'}[target]
    chips = TARGETS[target]
    rows = [row(call, chip, "kernels", *case) for chip in chips for case in CASES]
    rows.append(row(call, chips[0], "xla", *XLA))
    if target == "cuda":
        rows += [row(call, chip, "dense", *case) for chip in chips for case in CASES]
        rows += [row(call, chip, "few", *case) for chip in FEW for case in CASES]
    return rows + [row(call, chip, "dynamic", format, 0) for chip, format, _ in SUMS[target]]


def row(call: str, chip: str, form: str, format: str, group: int) -> dict:
    """One product compiled for a chip; kernels are custom calls to `call`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from research.fit.targets import parse_target
    from research.parallel.mesh import make_mesh
    from research.weights.formats import FORMATS

    chosen = parse_target(chip)
    mesh = make_mesh("fsdp:-1", chosen.devices()[:1])
    G = group or D
    rows = G // 2 if FORMATS[format].bits == 4 else G

    def shaped(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    tokens = TOKENS.get(form, {}).get(chosen.platform, 256)
    x, dy = (shaped((1, tokens, size), jnp.bfloat16) for size in (D, F))
    codes = shaped((D // G, rows, F), FORMATS[format].storage)
    scale = shaped((D // G, 1, F), jnp.float32)
    with jax.set_mesh(mesh):
        lowered = jax.jit(products(form, format)).lower(x, dy, codes, scale)
        program = lowered.compile(chosen.compiler_options)
    text = program.as_text()
    return {
        "chip": chip,
        "form": form,
        "format": format,
        "group": group,
        "calls": text.count(call),
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "sums": re.findall(r"= (\w+)\[[\d,]*\]\S* (?:convolution|dot)\(", text),
    }


def products(form: str, format: str):
    """The product of a form and its pullback, or its product alone for "dynamic" and for the
    kernels of a GPU; "dense" is what a model calls on a GPU with many tokens."""
    import jax
    from jax.sharding import PartitionSpec

    from research.devices.backend import platform
    from research.ops.kernels import quantized_matmul, quantized_matvec_gpu
    from research.weights.dynamic import DynamicQuantized
    from research.weights.formats import FORMATS
    from research.weights.quantized import Quantized

    book = FORMATS[format].book

    def kernels(x, dy, codes, scale):
        y = quantized_matmul.product("BTD,DF->BTF", x, codes, scale, book)
        if platform() == "gpu":
            return y
        return y, quantized_matmul.pullback("BTD,DF->BTF", dy, codes, scale, (D,), book)

    def few(x, dy, codes, scale):
        table = None if book is None else tuple(map(float, book))
        return jax.shard_map(
            lambda *operands: quantized_matvec_gpu.matmul(*operands, book=table),
            in_specs=(PartitionSpec(),) * 3,
            out_specs=PartitionSpec(),
            check_vma=False,
        )(x[0], codes, scale)

    def xla(x, dy, codes, scale):
        dx = quantized_matmul.reference(dy[0], codes, scale, book, transposed=True)
        return quantized_matmul.reference(x[0], codes, scale, book), dx

    def dense(x, dy, codes, scale):
        w = Quantized(codes, scale, None, format, (D,), 1)
        y, pull = jax.vjp(lambda x: w.einsum("BTD,DF->BTF", x), x)
        return y, pull(dy)

    def dynamic(x, dy, codes, scale):
        w = DynamicQuantized(Quantized(codes, scale, None, format, (D,), 1))
        return w.einsum("BTD,DF->BTF", x)

    forms = dict(kernels=kernels, few=few, xla=xla, dense=dense, dynamic=dynamic)
    return forms[form]


@pytest.mark.parametrize("target", TARGETS)
def test_chips_that_are_not_here_multiply_what_they_can(target):
    need_compiler(target)
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, target],
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    weights, activations = rows[: -len(SUMS[target])], rows[-len(SUMS[target]) :]
    chips = len(TARGETS[target])
    chips += len(FEW) + chips if target == "cuda" else 0
    assert len(weights) == chips * len(CASES) + 1
    for row in weights:
        if row["form"] in ("kernels", "few"):
            # The products run through kernels and make no dense weight.
            calls = 2 if target == "tpu" else 1
            assert row["calls"] == calls and row["temp_bytes"] < 0.1 * DENSE, row
        else:
            # XLA's form says that the bound means something: it makes the weight dense, once.
            assert row["calls"] == 0 and row["temp_bytes"] >= DENSE, row
        if row["form"] == "dense":
            assert row["temp_bytes"] < 1.1 * DENSE, row
    for row, (_, _, sums) in zip(activations, SUMS[target]):
        if sums is None:
            assert row["calls"] == 1 and not row["sums"], row
        else:
            assert sums in row["sums"] and not ({"s32", "f32"} - {sums}) & set(row["sums"]), row


if __name__ == "__main__":
    print(json.dumps(compiled(sys.argv[1])))
