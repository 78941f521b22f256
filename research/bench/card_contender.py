"""A contender's process: python -m research.bench.card_contender WORK WHO ROUNDS [FOLDER]. It
prints one line of JSON: seconds of each call, tokens of one, device, peak_bytes. With a folder it
leaves a profile of one call there."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from research.bench import card_peers, card_profile
from research.bench.card_works import FEW, OURS, WORKS, Work
from research.devices.backend import platform
from research.models.config import ModelConfig
from research.models.presets import PRESETS

RANK = 16  # of the adapters on all linear layers
NEW = 128  # tokens of a continuation
# Every work in seconds on a CPU, to show that it runs; two heads a key keep grouped queries.
SMALL = dict(
    layers=1, vocab_size=256, d_model=64, d_ff=128, heads=4, kv_heads=2, head_size=16,
    max_length=64, window=16,
)  # fmt: skip
Run = Callable[[], Any]


def main() -> None:
    """Prepares the work, does it, and prints what came out."""
    name, who, rounds, *folder = sys.argv[1:]
    # A card's sizes would take a CPU hours.
    small = platform() == "cpu"
    work, config = sized(WORKS[name], small)
    new = min(NEW, work.tokens // 2) if work.kind == "decode" else 1
    run = made(work, config, who, new)
    run()  # compiles, and fills caches
    seconds = []
    for _ in range(1 if small else int(rounds)):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    if folder:
        card_profile.record(run, Path(folder[0]))
    # A continuation is rated by what is written; its prompt is part of the time.
    tokens = work.rows * (new if work.kind == "decode" else work.tokens)
    print(json.dumps({"seconds": seconds, "tokens": tokens, **device(who)}))


def made(work: Work, config: ModelConfig, who: str, new: int) -> Run:
    """The work as a contender does it: "graft", one of its variants as in "graft:mosaic", or a
    peer."""
    name, _, variant = who.partition(":")
    # A peer is imported by the function that runs it, so our process never imports torch.
    if name != OURS:
        return getattr(card_peers, f"{name}_{work.kind}")(work, config, new)
    from research.bench import card_decode, card_kernels

    if variant == FEW:
        take_the_kernel_for_few_rows()
    if work.kind == "train":
        return train(work, config)
    if work.kind in ("decode", "prefill"):
        length = work.tokens - (new if work.kind == "decode" else 0)
        return card_decode.decode(work, config, texts(work, config, length), new)
    kernels = {
        "product": card_kernels.product,
        "grouped": card_kernels.grouped_product,
        "attention": card_kernels.attention,
    }
    return kernels[work.kind](work, config, variant)


def take_the_kernel_for_few_rows() -> None:
    """Lets this process take the kernel that no card has timed, as if it had won."""
    from research.ops.kernels import quantized_matvec_gpu as few

    few.FASTEST.update(dict.fromkeys(("8 bits", "4 bits", "book"), (1, few.MOST)))


def sized(work: Work, small: bool) -> tuple[Work, ModelConfig]:
    """The work and the shape of its model, for this machine."""
    config = PRESETS[work.preset]
    if not small:
        return work, replace(config, layers=work.layers)
    # A window of Mistral's stays one; other shapes must not get one.
    window = SMALL["window"] if config.window else 0
    window_of_work = min(work.window, SMALL["window"])
    work = replace(work, tokens=32, window=window_of_work, documents=min(work.documents, 8))
    return work, replace(config, **{**SMALL, "window": window})


def device(who: str) -> dict[str, Any]:
    """The device's name, and the peak of its memory or, on a CPU, of this process."""
    import resource

    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if who.partition(":")[0] != OURS:
        import torch

        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            return {"device": name, "peak_bytes": torch.cuda.max_memory_allocated()}
        return {"device": "cpu", "peak_bytes": peak}
    import jax

    here = jax.local_devices()[0]
    # A CPU's backend keeps no statistics.
    told = here.memory_stats() or {}
    return {"device": here.device_kind, "peak_bytes": told.get("peak_bytes_in_use", peak)}


def texts(work: Work, config: ModelConfig, length: int) -> np.ndarray:
    """Fixed random ids [rows, length]."""
    return (
        np.random.default_rng(0)
        .integers(0, config.vocab_size, (work.rows, length))
        .astype(np.int32)
    )


def train(work: Work, config: ModelConfig) -> Run:
    """The step of `research.train`: all parameters with AdamW, or adapters on quantized weights."""
    from research.bench.contender import step_of
    from research.models.config import Execution
    from research.precision import Precision
    from research.tuning.lora_specs import LoraConfig
    from research.tuning.method import QuantizeConfig, TuneConfig

    # A small card's choice for adapters, and the usual one for all parameters.
    sections: dict[str, Any] = {"execution": Execution(remat="full")}
    if work.format:
        tuned = dict(tune=TuneConfig("lora"), lora=LoraConfig(RANK))
        sections = {**tuned, "quantize": QuantizeConfig(work.format)}
        sections["execution"] = Execution(remat="offload")
    # One id more than inputs: each is the target of the one before.
    rows = texts(work, config, work.tokens + 1)
    return step_of(config, rows, precision=Precision(compute="bfloat16"), **sections)


if __name__ == "__main__":
    main()
