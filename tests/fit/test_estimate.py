"""Closed forms beside the compilers: memory of a device within a tenth.

The table holds what the compilers said (libtpu 0.0.42.1, CUDA plugin 0.10.2), which does not move
with the machine. Where the CUDA plugin is installed some of it is compiled again.
"""

import math

import pytest

from research.fit.estimate import estimate
from research.fit.search import changes, estimates, front
from research.fit.targets import parse_target
from research.run.override import change, flags
from research.run.resolve import from_config
from tests.configs import load_config
from tests.fit.processes import fit, need_compiler

GIB = 2**30
PRETRAIN, FINETUNE = "pretrain", "finetune"
SHORT = {"data.sequence_length": 2048}
SHORT_ROWS = {"data.sequence_length": 512}
TWO_ROWS = {"data.batch_size": 2}
FULL_REMAT = {"execution.remat": "full"}
IN_FLOAT32 = {"precision.compute": "float32"}

# What a run would choose by its device's memory is set here as it was when this was compiled.
KEPT = {"execution.head_tokens": 512}
RECIPES = {PRETRAIN: {**KEPT, **FULL_REMAT}, FINETUNE: KEPT, "quickstart": KEPT}

# Config, argument, target, changes, GiB of a device as compiled.
TABLE = [
    (PRETRAIN, "model=llama3_8b", "h100:8", {}, 24.55),
    (PRETRAIN, "model=llama3_8b", "h100:8", {"data.batch_size_per_device": 2}, 27.64),
    (PRETRAIN, "model=llama3_8b", "h100:8", {"execution.remat": "dots"}, 43.19),
    (PRETRAIN, "model=llama3_8b", "h100:8", {"execution.remat": "none"}, 56.03),
    (PRETRAIN, "model=llama3_8b", "h100:8", {"execution.remat": "offload"}, 22.17),
    (PRETRAIN, "model=llama3_8b", "h100:8", {**SHORT, "data.batch_size_per_device": 4}, 24.55),
    (PRETRAIN, "model=llama3_8b", "h100:8", {"mesh": "fsdp:2,tensor:4"}, 27.60),
    (PRETRAIN, "model=llama3_8b", "h100:8", {"mesh": "tensor:8"}, 35.63),
    (
        PRETRAIN,
        "model=llama2_7b",
        "h100:8",
        {"data.sequence_length": 4096, "data.batch_size_per_device": 2},
        18.67,
    ),
    (PRETRAIN, "model=gpt2", "h100:1", {"data.batch_size_per_device": 16}, 2.80),
    (
        PRETRAIN,
        "model=gpt2",
        "h100:1",
        {"data.batch_size_per_device": 16, "execution.remat": "none"},
        7.43,
    ),
    (
        PRETRAIN,
        "model=gpt2",
        "h100:1",
        {"data.batch_size_per_device": 16, "execution.remat": "dots"},
        4.94,
    ),
    (PRETRAIN, "model=smollm2_135m", "h100:1", {**SHORT, "data.batch_size_per_device": 8}, 2.94),
    (FINETUNE, "model=llama3_8b,method=lora", "h100:1", {**SHORT, "data.batch_size": 1}, 25.03),
    (
        FINETUNE,
        "model=llama3_8b,method=lora",
        "h100:1",
        {"data.sequence_length": 8192, "data.batch_size": 2},
        98.73,
    ),
    (
        FINETUNE,
        "model=llama3_8b,method=qlora",
        "h100:1",
        {"data.sequence_length": 8192, "data.batch_size": 1},
        6.88,
    ),
    (FINETUNE, "model=llama3_8b,method=int8", "h100:1", {**SHORT, "data.batch_size": 4}, 46.49),
    (
        FINETUNE,
        "model=llama3_8b,method=full",
        "h100:8",
        {**SHORT, "data.batch_size": 8, "mesh": "fsdp:-1"},
        28.73,
    ),
    (FINETUNE, "model=smollm2_135m,method=full", "h100:1", {**SHORT, "data.batch_size": 8}, 10.54),
    (PRETRAIN, "model=bert_base", "h100:1", {"data.batch_size_per_device": 32}, 2.96),
    (PRETRAIN, "model=bert_large", "h100:1", {"data.batch_size_per_device": 16}, 6.11),
    (PRETRAIN, "model=transformer_base", "h100:1", {"data.batch_size_per_device": 8}, 1.38),
    (PRETRAIN, "model=t5_small", "h100:1", {"data.batch_size_per_device": 32}, 2.53),
    (PRETRAIN, "model=t5_base", "h100:1", {"data.batch_size_per_device": 8}, 2.72),
    (FINETUNE, "model=llama3_8b,method=qlora", "v5e:1x1", {**SHORT, "data.batch_size": 1}, 5.84),
    (FINETUNE, "model=llama3_8b,method=lora", "v5p:1x1x1", {**SHORT, "data.batch_size": 4}, 54.79),
    (FINETUNE, "model=smollm2_135m,method=full", "v5e:1x1", {**SHORT, "data.batch_size": 4}, 7.71),
    (PRETRAIN, "model=gpt2", "v5e:1x1", {"data.batch_size_per_device": 16}, 3.37),
    (PRETRAIN, "model=llama3_70b", "v5p:8x8x8", {}, 29.85),
    (PRETRAIN, "model=llama3_405b", "v5p:8x16x16", {}, 75.99),
    (PRETRAIN, "model=llama3_8b", "v6e:16x16", {}, 9.14),
    (PRETRAIN, "model=llama3_8b", "v5p:4x4x4", {}, 10.40),
    (PRETRAIN, "model=llama3_8b", "v5e:16x16", {}, 10.12),
    # jaxlib 0.10.2: float32 activations, attention's probabilities, nothing offloaded.
    (FINETUNE, "model=smollm2_135m,method=full", "cpu", {}, 17.71),
    (FINETUNE, "model=smollm2_135m,method=full", "cpu", {"train.accumulate": 4}, 6.70),
    (FINETUNE, "model=smollm2_135m,method=full", "cpu", TWO_ROWS, 6.04),
    (FINETUNE, "model=smollm2_135m,method=full", "cpu", {**TWO_ROWS, **FULL_REMAT}, 2.50),
    (FINETUNE, "model=smollm2_135m,method=full", "cpu", {**TWO_ROWS, **IN_FLOAT32}, 5.98),
    (FINETUNE, "model=smollm2_135m,method=lora", "cpu", TWO_ROWS, 4.89),
    (PRETRAIN, "model=gpt2", "cpu", {**SHORT_ROWS, "data.batch_size_per_device": 2}, 2.30),
    ("quickstart", "", "cpu", {}, 0.52),
]
# Of these the CUDA compiler takes a few seconds.
QUICK = [row for row in TABLE if row[2] == "h100:1" and "smollm2" in row[1]]


def as_compiled(name: str, arg: str, settings: dict) -> dict:
    """The settings with those of `RECIPES`; QLoRA's recipe has its own."""
    return settings if "qlora" in arg else {**RECIPES[name], **settings}


def ids(row) -> str:
    return f"{row[1]}-{row[2]}-{'-'.join(map(str, row[3].values()))}"


@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_the_estimate_is_within_a_tenth_of_the_compiler(row):
    name, arg, target, settings, compiled = row
    settings = as_compiled(name, arg, settings)
    guess = estimate(from_config(load_config(name, arg, **settings)), parse_target(target))
    assert math.isclose(guess.total / GIB, compiled, rel_tol=0.1)  # the bar


@pytest.mark.parametrize("row", QUICK, ids=ids)
def test_the_table_is_what_the_compiler_says(row):
    name, arg, target, settings, compiled = row
    need_compiler(target)
    settings = as_compiled(name, arg, settings)
    code, answer = fit(
        name, arg, target, *(f"--config.{path}={value}" for path, value in settings.items())
    )
    assert code == 0
    # Another version of the compiler may lay out a few buffers otherwise.
    assert math.isclose(answer["device_bytes"]["total"] / GIB, compiled, rel_tol=0.02)


def test_what_is_held_is_exact_and_the_host_has_what_is_offloaded():
    experiment = from_config(
        load_config(PRETRAIN, "model=llama3_8b", **{"execution.remat": "offload"})
    )
    guess = estimate(experiment, parse_target("h100:8"))
    # Parameters and two moments over eight cards, vectors whole on each; the moments are taken to
    # be split just as they are.
    assert (
        math.isclose(guess.state, 4016062464 + 8032124936, rel_tol=1e-6)
        and guess.gradients == 4016062464
    )
    assert guess.host_bytes == 32 * 8192 * 4096 * 2


def test_more_is_never_less():
    base = from_config(load_config(PRETRAIN, "model=llama3_8b"))
    target = parse_target("h100:8")

    def total(**settings):
        return estimate(change(base, **settings), target).total

    remats = [total(execution__remat=remat) for remat in ("none", "dots", "full", "offload")]
    assert remats == sorted(remats, reverse=True)
    lengths = [total(data__sequence_length=length) for length in (1024, 8192, 65536)]
    assert lengths == sorted(lengths) and total(data__batch_size_per_device=4) > total()
    assert total(optimizer__name="adamw8bit") < total()


def test_the_adviser_looks_at_everything_and_keeps_what_nothing_beats():
    experiment, target = (
        from_config(load_config(FINETUNE, "model=llama3_8b,method=lora")),
        parse_target("rtx4090"),
    )
    rows = list(estimates(experiment, target))
    tried = {path for settings, _ in rows for path in settings}
    assert tried == {
        "execution__remat",
        "optimizer__name",
        "quantize__format",
        "data__batch_size",
    }  # one device has one mesh
    best = front(rows, lambda one: (one.tokens_per_second, one.total))
    for settings, row in best:
        assert not any(
            o.tokens_per_second >= row.tokens_per_second and o.total < row.total for _, o in rows
        ), flags(settings)
    trained = from_config(load_config(PRETRAIN, "model=llama3_8b"))
    meshes = {settings.get("mesh") for settings, _ in estimates(trained, parse_target("h100:8"))}
    assert meshes == {None, "fsdp:4,tensor:2", "fsdp:2,tensor:4", "tensor:8"}


def test_changes_go_from_what_costs_time_to_what_changes_the_training():
    experiment = from_config(load_config(FINETUNE, "model=llama3_8b,method=lora"))
    paths = [next(iter(settings)) for settings, _ in changes(experiment, parse_target("rtx4090"))]
    order = [
        "execution__remat",
        "train__accumulate",
        "optimizer__name",
        "quantize__format",
        "data__batch_size",
        "data__sequence_length",
    ]
    assert list(dict.fromkeys(paths)) == order


def test_the_flags_are_those_of_the_command_line():
    assert (
        flags({"data__batch_size": 8, "mesh": "fsdp:8"})
        == "--config.data.batch_size=8 --config.mesh=fsdp:8"
    )
    assert flags({}) == ""
