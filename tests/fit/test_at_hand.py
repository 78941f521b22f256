"""Before its first step a run says what it needs and what is free, on any device and in any
container."""

from types import SimpleNamespace

import pytest

from research.fit import at_hand
from research.fit.at_hand import free_bytes, predict
from research.run.settled import Prediction
from tests.configs import experiment

GIB = 2**30
CPU = SimpleNamespace(platform="cpu", device_kind="cpu", process_index=0)
TUNED = "model=smollm2_135m"


def card(free_gib: float) -> SimpleNamespace:
    """A card of 24 GiB with this much of it free."""
    stats = {"bytes_limit": 24 * GIB, "bytes_in_use": int((24 - free_gib) * GIB)}
    return SimpleNamespace(
        platform="gpu", device_kind="NVIDIA L4", process_index=0, memory_stats=lambda: stats
    )


# Free GiB, the recipe with its changes, and what the line says.
KEEPS_ALL = {"execution.remat": "none"}
CASES = {
    "it fits": (22, TUNED, KEEPS_ALL, "about 20.2 GiB of this machine, 22.0 GiB are free"),
    "a layer's products kept": (12, TUNED, KEEPS_ALL, "set --config.execution.remat=dots (about "),
    "a layer's input kept": (7, TUNED, KEEPS_ALL, "set --config.execution.remat=full (about "),
    "smaller batches": (
        6,
        TUNED,
        {"execution.remat": "full", "data.batch_size": 64},
        "set --config.train.accumulate=",
    ),
    "nothing but adapters": (2, TUNED, {}, "train adapters (method=lora), or "),
    "no adapters for adapters": (0.5, f"{TUNED},method=qlora", {}, "fit: take a smaller model"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_told_with_what_would(case, monkeypatch):
    free, arg, changes, words = CASES[case]
    monkeypatch.setattr(at_hand, "free_bytes", lambda device: free * GIB)
    said = predict(experiment("finetune", arg, **changes), [CPU])
    assert words in said.line and "\n" not in said.line
    assert said.fits == (case == "it fits") == (not said.line.startswith("WARNING: "))


def test_a_card_counts_what_others_hold_of_it():
    recipe = experiment("finetune", TUNED, **KEEPS_ALL)
    said = predict(recipe, [card(free_gib=24)])
    assert said.fits and said.line.endswith("GiB of each NVIDIA L4, 24.0 GiB are free")
    said = predict(recipe, [card(free_gib=4)])
    assert not said.fits and "4.0 GiB are free" in said.line
    assert "--config.execution.remat=" in said.line


# Free GiB of a card: what is chosen where the policies need 6.2, 4.8, 2.7 and 2.5 by estimate, and
# a tenth more by its margin.
CHOICES = {24: "none", 6.5: "dots", 5.5: "dots", 4: "full", 1: "offload"}


@pytest.mark.parametrize("free", CHOICES)
def test_the_lightest_policy_that_fits_is_chosen(free):
    chosen = predict(experiment("finetune", TUNED), [card(free)]).experiment.execution
    assert chosen.remat == CHOICES[free]
    # What is set stays.
    given = experiment("finetune", TUNED, **{"execution.remat": "full"})
    assert predict(given, [card(free)]).experiment.execution.remat == "full"


def test_the_head_takes_what_the_layers_leave_and_a_cpu_keeps_its_order_of_sums(monkeypatch):
    def head_tokens(devices, **settings):
        e = experiment("finetune", TUNED, **settings)
        return predict(e, devices).experiment.execution.head_tokens

    # 4,096 tokens of 49,152 words have 1.5 GiB of logits and gradients, 512 have 0.2.
    assert (head_tokens([card(24)]), head_tokens([card(7.2)])) == (4096, 1024)
    assert head_tokens([card(24)], **{"execution.head_tokens": 100}) == 100
    monkeypatch.setattr(at_hand, "free_bytes", lambda device: 100 * GIB)
    assert head_tokens([CPU]) == 512


@pytest.mark.parametrize(("free", "remat"), [(100, "none"), (12, "dots"), (2, "none")])
def test_a_cpu_keeps_everything_unless_something_else_fits(free, remat, monkeypatch):
    monkeypatch.setattr(at_hand, "free_bytes", lambda device: free * GIB)
    assert predict(experiment("finetune", TUNED), [CPU]).experiment.execution.remat == remat


def test_devices_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(at_hand, "free_bytes", lambda device: 100 * GIB)
    recipe = experiment("finetune", TUNED, mesh="data:-1")
    # The batch is split, and every device has all parameters.
    needs = [float(predict(recipe, [CPU] * n).line.split()[2]) for n in (1, 8)]
    assert needs[0] < needs[1] < 8 * needs[0]


@pytest.mark.parametrize("device", [SimpleNamespace(platform="gpu", memory_stats=lambda: None)])
def test_a_device_that_does_not_tell_is_not_judged(device):
    device.device_kind, device.process_index = "a card", 0
    assert free_bytes(device) is None
    said = predict(experiment("quickstart"), [device])
    assert (said.line, said.fits, said.experiment.execution.remat) == ("", True, "none")


def test_what_the_run_itself_refuses_is_left_to_it():
    recipe = experiment("quickstart", mesh="data:-1", **{"data.batch_size": 12})
    assert predict(recipe, [CPU] * 8) == Prediction(recipe)


# Files of control groups below /sys/fs/cgroup, the lines of /proc/self/cgroup, and GiB that are
# left where the machine has 8 GiB.
GROUPS = {
    "no container": ({}, "0::/", 8),
    "version 2, its own root": (
        {"memory.max": 4 * GIB, "memory.current": 3 * GIB, "memory.stat": "inactive_file 0"},
        "0::/",
        1,
    ),
    "file caches can go": (
        {
            "memory.max": 4 * GIB,
            "memory.current": 3 * GIB,
            "memory.stat": f"anon 5\ninactive_file {2 * GIB}",
        },
        "0::/",
        3,
    ),
    "a limit of the parent": (
        {
            "job/memory.max": 2 * GIB,
            "job/memory.current": GIB // 2,
            "job/memory.stat": "",
            "job/step_0/memory.max": "max",
            "job/step_0/memory.current": 0,
            "job/step_0/memory.stat": "",
        },
        "0::/job/step_0",
        1.5,
    ),
    "version 1": (
        {
            "memory/docker/a/memory.limit_in_bytes": 6 * GIB,
            "memory/docker/a/memory.usage_in_bytes": GIB,
            "memory/docker/a/memory.stat": "",
        },
        "3:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/",
        5,
    ),
    "version 1 without a limit": (
        {
            "memory/memory.limit_in_bytes": 2**63 - 4096,
            "memory/memory.usage_in_bytes": GIB,
            "memory/memory.stat": "",
        },
        "4:memory:/",
        8,
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_a_container_has_what_its_groups_leave(case, tmp_path, monkeypatch):
    files, lines, gib = GROUPS[case]
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(f"{lines}\n")
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * 2**20} kB\n")
    for name, value in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{value}\n")
    monkeypatch.setattr(at_hand, "PROC", proc)
    monkeypatch.setattr(at_hand, "CGROUPS", groups)
    assert free_bytes(CPU) == gib * GIB


def test_another_system_is_not_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(at_hand, "PROC", tmp_path)
    assert free_bytes(CPU) is None
