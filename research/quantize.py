"""Quantizes a checkpoint, measures the loss in quality, and saves the result:

    python -m research.quantize --checkpoint=DIR --format=nf4 --receipt

    --format=FORMAT      one of research/weights/formats.py, or all, which prints a Markdown table
    --method=METHOD      rtn (round to nearest), or gptq, awq, smoothquant with calibration text
    --embeddings=FORMAT  quantize the embedding tables too
    --receipt            measure on held-out text and write receipt.json, into --target or here
    --activations        with int8 or fp8: quantize the matrices' inputs too, as chips with 8-bit
                         products do
    --target=FOLDER      save the quantized model (nf4, fp4 or int8) in bitsandbytes' format
    --adapter=DIR        put a peft adapter on the model, and measure what merging it changes

The checkpoint in float32 is the reference, and everything is computed in float32. --data names the
text: held-out documents are measured on, the others calibrate.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from research import command

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a checkpoint folder, GGUF file or package")
FORMAT = flags.DEFINE_string("format", None, "the format of the matrices of layers, or all")
METHOD = flags.DEFINE_string("method", "rtn", "rtn, gptq, awq or smoothquant")
GROUP = flags.DEFINE_integer(
    "group", None, "values that share a scale; by default the format's own", lower_bound=1
)
EMBEDDINGS = flags.DEFINE_string(
    "embeddings", "", "the format of the embedding tables; by default as they are"
)
ACTIVATIONS = flags.DEFINE_bool(
    "activations", False, "quantize activations too, to 8 bits as they come"
)
RECEIPT = flags.DEFINE_bool("receipt", False, "measure, and write receipt.json")
TARGET = flags.DEFINE_string("target", None, "the folder to make; it must not be there")
ADAPTER = flags.DEFINE_string("adapter", "", "a folder of peft's, put on the model")
DATA = flags.DEFINE_string(
    "data", "shakespeare", "where text comes from: shakespeare, stdlib (offline) or files"
)
TOKENS = flags.DEFINE_integer("tokens", 2048, "held-out tokens to measure on", lower_bound=1)
CALIBRATION_TOKENS = flags.DEFINE_integer(
    "calibration_tokens", 4096, "tokens to calibrate with", lower_bound=1
)
WINDOW = flags.DEFINE_integer("window", 512, "tokens seen at once", lower_bound=2)


def main(arguments: list[str]) -> int:
    """Reads the flags, quantizes, measures and saves; returns the exit code."""
    _check_flags(arguments)
    started = time.monotonic()
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.compress.measure import Settings, measure, quantize_loaded, read_texts
    from research.compress.receipt_table import describe
    from research.interop.load import load
    from research.run.opened import keep_compiled_programs
    from research.weights.formats import FORMATS

    _check_choices(FORMATS)
    keep_compiled_programs()
    loaded = load(CHECKPOINT.value, "float32", adapter=ADAPTER.value)
    if loaded.checkpoint.codes:
        raise ValueError(
            f"{CHECKPOINT.value} is quantized already; give the model that it was made of"
        )
    settings = Settings(
        CHECKPOINT.value,
        ADAPTER.value,
        METHOD.value,
        GROUP.value,
        EMBEDDINGS.value,
        ACTIVATIONS.value,
        DATA.value,
        TOKENS.value,
        CALIBRATION_TOKENS.value,
        WINDOW.value,
    )
    texts = read_texts(loaded, settings) if RECEIPT.value or METHOD.value != "rtn" else None
    names = tuple(FORMATS) if FORMAT.value == "all" else (FORMAT.value,)
    quantized = {name: quantize_loaded(loaded, name, settings, texts) for name in names}
    receipt = {}
    if texts is not None and RECEIPT.value:
        receipt = measure(loaded, quantized, settings, texts)
        receipt["seconds"] = round(time.monotonic() - started, 1)
        for line in describe(receipt, markdown=FORMAT.value == "all"):
            print(line)
    _save(loaded, quantized, receipt)
    return command.DONE


def _check_flags(arguments: list[str]) -> None:
    """ValueError for unexpected arguments and flags that contradict each other."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; name the model with --checkpoint=DIR"
        )
    if not CHECKPOINT.value or not FORMAT.value:
        raise ValueError("give --checkpoint=DIR and --format=FORMAT, such as --format=nf4")
    if not RECEIPT.value and not TARGET.value:
        raise ValueError("give --receipt to measure, --target=FOLDER to save, or both")
    if ACTIVATIONS.value and not RECEIPT.value:
        raise ValueError(
            "--activations changes what --receipt measures and nothing that is saved; give both or "
            "neither"
        )
    if ADAPTER.value and METHOD.value in ("awq", "smoothquant"):
        raise ValueError(
            f"--method={METHOD.value} rescales what the adapter reads; take rtn or gptq under "
            "--adapter"
        )
    if TARGET.value and ADAPTER.value:
        raise ValueError(
            "--target holds one model without an adapter; merge it first: python -m "
            f"research.convert --source={CHECKPOINT.value} --adapter={ADAPTER.value} "
            "--target=MERGED --to=hf, then --checkpoint=MERGED"
        )
    if TARGET.value and (FORMAT.value == "all" or Path(TARGET.value).exists()):
        raise ValueError(f"--target={TARGET.value} must not be there yet, and holds one format")


def _check_choices(formats: Mapping[str, Any]) -> None:
    """ValueError for an unknown format or method, and for one that --target cannot store."""
    from research.compress.methods import METHODS
    from research.interop.bitsandbytes.write import QUANTIZABLE

    for name, value, known in (
        ("format", FORMAT.value, (*formats, "all")),
        ("method", METHOD.value, ("rtn", *METHODS)),
        ("embeddings", EMBEDDINGS.value, ("", *formats)),
    ):
        if value not in known:
            raise ValueError(f"--{name}={value} is none of {', '.join(filter(None, known))}")
    if TARGET.value and FORMAT.value not in QUANTIZABLE:
        raise ValueError(
            f"--target holds {', '.join(QUANTIZABLE)}; measure {FORMAT.value} with --receipt alone"
        )
    if TARGET.value and EMBEDDINGS.value not in ("", FORMAT.value):
        raise ValueError(
            f"--target holds one format; set --embeddings={FORMAT.value} or leave it out"
        )


def _save(loaded: Any, quantized: Mapping[str, Any], receipt: Mapping[str, Any]) -> None:
    """Writes the quantized model with its tokenizer and the receipt as the folder --target; without
    that the receipt alone, here."""
    from research.compress.rounding import describe_rounding
    from research.files import building, write_json
    from research.interop.bitsandbytes.write import write_bitsandbytes
    from research.interop.formats import write_companions

    if not TARGET.value:
        write_json("receipt.json", receipt)
        return
    with building(Path(TARGET.value)) as folder:
        write_bitsandbytes(loaded.checkpoint, folder, quantized[FORMAT.value])
        write_companions(loaded.checkpoint, folder)
        if receipt:
            write_json(folder / "receipt.json", receipt)
    asked = f"{FORMAT.value} by {METHOD.value}" if METHOD.value != "rtn" else FORMAT.value
    print(f"wrote {TARGET.value}", file=sys.stderr)
    print(describe_rounding(loaded.params, quantized[FORMAT.value], asked), file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
