"""What a compiled train step must not hold: an array of all pairs of a row's tokens, or the dense
weights of more than one layer beside quantized ones.

Small models of every family at 4,096 tokens go through the compilers of TPU and GPU, in a process
of their own, this file's. A fusion's inner arrays are never in memory and do not count.
"""

import json
import math
import re
from collections.abc import Iterator

import pytest

from research.ops.chunked import SHORT
from tests.fit.processes import in_a_process, need_compiler

TOKENS, LAYERS, WIDTH, FEED, HEADS = 4096, 3, 256, 640, 2
TARGETS = ("v5e:1x1", "h100:1", "a100-80")
SIZES = {
    "model.layers": LAYERS,
    "model.d_model": WIDTH,
    "model.heads": HEADS,
    "model.head_size": 128,
    "model.d_ff": FEED,
    "model.vocab_size": 1024,
    "model.max_length": TOKENS,
    "data.sequence_length": TOKENS,
    "data.batch_size": 1,
    "data.batch_size_per_device": 0,
    "mesh": "",
}
FAMILIES = {
    "gpt2": {"model.kv_heads": 2},
    "llama3_8b": {"model.kv_heads": 1},
    "mistral_7b": {"model.kv_heads": 1, "model.window": 1024},
    "mixtral_8x7b": {"model.kv_heads": 1},
    "gemma2_2b": {"model.kv_heads": 1, "model.window": 1024},
    "gemma3_1b": {"model.kv_heads": 1, "model.window": 512},
    "bert_base": {"model.kv_heads": 2},
    "transformer_base": {"model.kv_heads": 2, "model.encoder_layers": 2},
    "t5_small": {"model.kv_heads": 2, "model.encoder_layers": 2},
}
METHODS = ("lora", "qlora", "int8", "adapter", "prefix", "prompt")
CASES = [*FAMILIES, *METHODS]


def step(case: str, target: str):
    """Of a family, or of LLaMA 3 tuned by a method: the compiled train step as a module, and the
    lengths of its texts."""
    from research.fit.compile import abstract_batch, compile_program, plan
    from research.fit.hlo.text import parse
    from research.fit.targets import parse_target
    from tests.configs import experiment

    if case in FAMILIES:
        e = experiment("pretrain", f"model={case}", **{**SIZES, **FAMILIES[case]})
    else:
        changes = {**SIZES, **FAMILIES["llama3_8b"]}
        e = experiment("finetune", f"model=llama3_8b,method={case}", **changes)
    program = plan(e, parse_target(target))
    lengths = {row.shape[1] for row in abstract_batch(program).values()}
    compiled = compile_program(program, parse_target(target))
    return parse(compiled.as_text()), lengths


def arrays(module) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(type, dimensions, opcode and name) of every array that an operation puts into memory."""
    for _, op, _ in module.run():
        if op.opcode not in ("parameter", "tuple", "get-tuple-element", "bitcast", "while"):
            for array in op.arrays:
                yield array.dtype, array.dims, f"{op.opcode} {op.op_name}"


def offences(case: str, target: str) -> list[str]:
    """Arrays that must not be there, at most ten."""
    module, lengths = step(case, target)
    found, dense = [], case in ("lora", "qlora", "int8")
    for dtype, shape, what in arrays(module):
        pairs = math.prod(size for size in shape if size in lengths)
        square = sum(size in lengths for size in shape) > 1 and pairs > SHORT
        # Or all pairs in blocks.
        square = square or math.prod(shape) >= TOKENS**2 // 2
        weights = math.prod(shape) // (WIDTH * FEED) if {WIDTH, FEED} <= set(shape) else 0
        many = dense and weights > 1 and TOKENS not in shape and re.match("bf16|f16|f32", dtype)
        if square or many:
            found.append(f"{dtype}{list(shape)} {what}")
    return sorted(set(found))[:10]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_holds_no_square_of_its_length_and_one_dense_layer(case, target):
    need_compiler(target)
    done = in_a_process(__file__, case, target)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {case: []}


if __name__ == "__main__":
    import sys

    *cases, target = sys.argv[1:]
    for one in cases:
        print(json.dumps({one: offences(one, target)}), flush=True)
