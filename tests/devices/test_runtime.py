"""The first cell of a notebook says what the runtime is and what will be slow on it."""

import pytest

from research.devices.runtime import describe


def machine(folder, files=(), card=""):
    """A root of a file system with these device files, and the driver's file of a card."""
    for name in files:
        (folder / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "dev" / name).touch()
    if card:
        place = folder / "proc/driver/nvidia/gpus/0000:00:04.0"
        place.mkdir(parents=True)
        (place / "information").write_text(f"Model: \t\t {card}\nIRQ:   \t\t 33\n")
    return folder


CARD = ["nvidia0", "nvidiactl"]
# The runtimes that Colab offers: what is named, and what will and will not be slow there.
RUNTIMES = {
    "cpu": ([], "", {}, "CPU, ", ["training and long generations"], ["compiles first"]),
    "t4": (
        CARD, "Tesla T4", {}, "Tesla T4, 14.6 GiB",
        ["config.precision.compute=float32", "at most 160 tokens/s", "over long rows", "1.0B"], [],
    ),
    "l4": (
        CARD, "NVIDIA L4", {}, "NVIDIA L4, 22.0 GiB",
        ["at most 150 tokens/s", "1.5B"], ["bfloat16", "over long rows"],
    ),
    "a100": (
        CARD, "NVIDIA A100-SXM4-40GB", {}, "NVIDIA A100-SXM4-40GB, 39.4 GiB",
        ["compiles first", "2.6B"], ["tokens/s", "bfloat16"],
    ),
    "tpu v5e": (
        ["vfio/0"], "", {"TPU_ACCELERATOR_TYPE": "v5litepod-1"}, "TPU v5litepod-1, 15.8 GiB",
        ["each length compiles anew", "1.1B"], ["bfloat16"],
    ),
    "tpu unknown": (["accel0"], "", {}, "a TPU, of which", ["each length"], ["does not fit"]),
    "asked for the CPU": (CARD, "Tesla T4", {"JAX_PLATFORMS": "cpu"}, "CPU, ", [], ["T4"]),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_says_what_it_is_and_what_is_slow_there(name, tmp_path):
    files, card, environment, named, slow, fast = RUNTIMES[name]
    first, *rest = describe(machine(tmp_path, files, card), environment).splitlines()
    assert first.startswith(f"this runtime has {named}")
    assert rest and all(line.startswith("  slow: ") for line in rest)
    for words in slow:
        assert any(words in line for line in rest), words
    for words in fast:
        assert not any(words in line for line in [first, *rest]), words


def test_a_card_without_a_file_of_the_driver_is_named_by_nvidia_smi(tmp_path):
    program = tmp_path / "smi"
    program.write_text('#!/bin/sh\n[ "$1" = --query-gpu=name ] && echo "NVIDIA L4"\n')
    program.chmod(0o755)
    root = machine(tmp_path, CARD)
    assert "NVIDIA L4, 22.0 GiB" in describe(root, {}, str(program))
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "a card of NVIDIA's, of which" in describe(root, {}, str(program))
    assert "a card of NVIDIA's, of which" in describe(root, {}, str(tmp_path / "missing"))
