"""Fine-tuning as shipped, compiled for hardware that is not here: what it takes of a device, and
through which kernels.

The figures are the compilers', so they do not move with the machine. Each compile runs in a process
of its own.
"""

import json
import sys

import pytest

from tests.configs import ROOT
from tests.fit.processes import fit, in_a_process, need_compiler

GIB = 2**30
CALLS = {"h": "__gpu$xla.gpu.triton", "v": "tpu_custom_call"}


# Model, tokens, rank, target, GiB to stay within: QLoRA with AdamW at batch 1 on all linear layers.
# The contexts are those of Unsloth's own table for cards of 80, 24 and 8 GB (decimal).
BARS = [
    ("llama3_8b", 2048, 16, "h100:1", 6.0),
    ("llama3_70b", 2048, 16, "h100:1", 41.0),
    ("llama3_8b", 2972, 32, "h100:1", 8e9 / GIB),
    ("llama3_8b", 78475, 32, "h100:1", 24e9 / GIB),
    ("llama3_8b", 342733, 32, "h100:1", 80e9 / GIB),
    ("llama3_70b", 2048, 16, "v5p:1x1x1", 43.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tokens", "rank", "target", "gib"), BARS)
def test_qlora_fits(model, tokens, rank, target, gib):
    need_compiler(target)
    sizes = (
        f"--config.data.sequence_length={tokens}",
        "--config.data.batch_size=1",
        f"--config.lora.rank={rank}",
    )
    code, answer = fit(
        "finetune", f"model={model},method=qlora", target, *sizes, f"--capacity_gib={gib}"
    )
    held = answer["device_bytes"]
    assert code == 0 and answer["fits"] and held["total"] <= gib * GIB
    parts = ("params", "frozen", "optimizer", "gradients", "temporaries")
    assert (
        held["total"] == sum(held[part] for part in parts) and min(held[part] for part in parts) > 0
    )
    assert answer["host_bytes"] > 0  # the layers' inputs wait there


def test_what_does_not_fit_says_so():
    need_compiler("h100:1")
    code, answer = fit(
        "finetune", "model=smollm2_135m,method=lora,smoke", "h100:1", "--capacity_gib=0.1"
    )
    assert code == 3 and not answer["fits"]


@pytest.mark.slow
def test_a_card_that_triton_makes_no_code_for_trains_by_xlas_forms():
    need_compiler("t4")
    code, answer = fit("finetune", "model=smollm2_135m,method=qlora,smoke", "t4")
    assert code == 0 and answer["target"] == "t4" and answer["fits"]


@pytest.mark.parametrize("target", ["h100:1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
def test_the_train_step_goes_through_the_kernels(target):
    need_compiler(target)
    done = in_a_process(__file__, target)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    # Seven matrices of a layer: each a product, that again for the backward pass (but for the last
    # one, whose result nobody asks for there), and its pullback. The layers are one loop. A GPU
    # makes the matrices dense for so many tokens.
    assert answer["calls"] == (0 if target[0] == "h" else 7 + 6 + 7)


def compiled(target: str) -> dict:
    """How many custom calls the QLoRA step of a small LLaMA has whose attention is no kernel."""
    from research.fit import compile_step
    from tests.configs import load_config

    sizes = {
        "layers": 2,
        "d_model": 512,
        "d_ff": 1024,
        "heads": 4,
        "kv_heads": 4,
        "head_size": 128,
        "vocab_size": 1024,
    }
    changes = {f"model.{name}": value for name, value in sizes.items()}
    config = load_config(
        "finetune",
        "model=llama3_8b,method=qlora",
        **changes,
        **{
            "data.sequence_length": 256,
            "data.batch_size": 1,
            "execution.attention": "xla",
        },
    )
    return {
        "calls": compile_step(config, target)
        .as_text()
        .count(f'custom_call_target="{CALLS[target[0]]}"')
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(compiled(sys.argv[1])))
