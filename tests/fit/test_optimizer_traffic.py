"""How often the compiled optimizer passes over memory, by the card's own compiler."""

import json
from math import prod

import pytest

from tests.fit.processes import in_a_process, need_compiler

# Compiled in a process of its own: tests have eight fake CPU devices, and compilers may crash.
COMPILE = """
import json, sys
from research.fit.compile import compile_step
from research.fit.hlo.text import parse
from tests.configs import experiment
from tests.fit.test_optimizer_traffic import SIZES, passes
e = experiment("pretrain", "model=llama3_8b", **SIZES, **{"optimizer.name": sys.argv[1]})
print(json.dumps(passes(parse(compile_step(e, "h100:1").as_text()))))
"""
SIZES = {
    **{"model.layers": 2, "model.d_model": 256, "model.d_ff": 1024, "model.vocab_size": 4096},
    **{"model.heads": 2, "model.kv_heads": 2, "model.head_size": 128},
    **{"data.sequence_length": 256, "mesh": "", "execution.remat": "none"},
    **{"execution.attention": "xla"},
}
LARGE = 2 * 256 * 1024  # elements of the feed-forward matrices, two layers of them


def passes(module) -> list[int]:
    """(arrays read, arrays written), in units of all feed-forward matrices, by the optimizer's
    operations over arrays of their shape."""
    from research.scopes import parts_of

    read = written = 0
    entry = module.computations[module.entry]
    for op in entry.instructions.values():
        if op.opcode == "fusion" and "optimizer" in parts_of(op.op_name):
            written += sum(_large(array) for array in op.arrays)
            read += sum(_large(a) for one in entry.operands(op) for a in one.arrays)
    return [read, written]


def _large(array) -> bool:
    return prod(array.dims) == LARGE and len(array.dims) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read", "written"), [("adamw", 5, 3), ("lion", 4, 2)])
def test_a_step_reads_and_writes_state_once_and_the_gradient_twice(name, read, written):
    need_compiler("h100:1")
    done = in_a_process("-c", COMPILE, name)
    assert done.returncode == 0, done.stderr[-2000:]
    # Three matrices: gate, up and down. The norm reads the gradient, and then the update reads it
    # with the parameter and the moments, and writes these: clipping needs the norm first.
    assert json.loads(done.stdout.splitlines()[-1]) == [3 * read, 3 * written]
