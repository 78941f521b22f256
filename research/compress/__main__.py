"""Makes a checkpoint smaller or sparser, exports it, and measures the export:

    python -m research.compress --checkpoint=DIR --recipe=wanda:0.5 --target=FOLDER --receipt

    --recipe=magnitude:0.5    the least half of each matrix of the layers becomes 0; also wanda, ria
             sparsegpt:2:4    and sparsegpt; N:M keeps N of M neighbouring inputs; :int4 behind it
                              rounds the rest (sparsegpt: in the same pass)
             depth:4          without the 4 layers that change their input least
             width:0.75       three quarters of feed-forward channels and of groups of heads
             gptq:int4        also awq, smoothquant and rtn, and formats of weights/formats.py
    --calibration=SOURCE      what the recipe looks at: the training part of a source
    --data=SOURCE             its held-out part is measured on; text of the other is refused
    --receipt                 measure the reloaded export against the original, in float32
    --to, --dtype             format and type of the export, as of research.convert

Pruning zeroes numbers: the files are as large as before and no faster to run; depth and width make
both smaller. The codes of a format are exported as the numbers that they stand for, and "bits" are
those of the codes; research.quantize writes nf4, fp4 and int8 as codes. configs/compress.py heals
what the recipe has cost.

SmolLM2-135M with --recipe=magnitude:0.5 --receipt --tokens=1024: perplexity 341.4, of the original
29.5; mean KL 2.52 nats; the likeliest token is the same for 26.0%. The other recipes have not been
measured on it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from research import command

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a checkpoint folder, GGUF file or package")
RECIPE = flags.DEFINE_string("recipe", None, "METHOD:AMOUNT, such as wanda:0.5; see above")
CALIBRATION = flags.DEFINE_string(
    "calibration", "", "a data source to calibrate with; by default that of --data"
)
DATA = flags.DEFINE_string(
    "data", "shakespeare", "where held-out text comes from: shakespeare, stdlib (offline) or files"
)
TARGET = flags.DEFINE_string("target", None, "the folder to make; it must not be there")
RECEIPT = flags.DEFINE_bool("receipt", False, "measure the reloaded export")
JSON = flags.DEFINE_bool("json", False, "print the receipt as one JSON value")
TO = flags.DEFINE_string("to", "hf", "format of the export: native, hf or gguf")
DTYPE = flags.DEFINE_string("dtype", "", "type of its numbers; by default the checkpoint's")
GROUP = flags.DEFINE_integer(
    "group", None, "values that share a scale; by default the format's own", lower_bound=1
)
TOKENS = flags.DEFINE_integer("tokens", 2048, "held-out tokens to measure on", lower_bound=1)
CALIBRATION_TOKENS = flags.DEFINE_integer(
    "calibration_tokens", 8192, "tokens to calibrate with", lower_bound=1
)
WINDOW = flags.DEFINE_integer("window", 512, "tokens seen at once", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "draws the texts to calibrate with", lower_bound=0)


def main(arguments: list[str]) -> int:
    """Reads the flags, compresses, exports and measures; returns the exit code."""
    _check_flags(arguments)
    from research.compress.recipe import parse  # here: a wrong flag is answered before JAX loads

    recipe = parse(RECIPE.value)
    if GROUP.value and not recipe.rounds:
        raise ValueError(
            f"--group is of a format and --recipe={RECIPE.value} has none; leave it out"
        )
    if CALIBRATION.value and not recipe.calibrated:
        raise ValueError(
            f"--recipe={RECIPE.value} looks at no text; leave --calibration={CALIBRATION.value} out"
        )
    from research.interop.formats import check_target
    from research.run.opened import keep_compiled_programs

    check_target(TO.value, DTYPE.value)
    keep_compiled_programs()
    if TARGET.value:
        return _compress(recipe, Path(TARGET.value))
    # An export of its own to measure, which nobody asked to keep.
    with tempfile.TemporaryDirectory() as folder:
        return _compress(recipe, Path(folder) / "export")


def _check_flags(arguments: list[str]) -> None:
    """ValueError for unexpected arguments and flags that contradict each other."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; name the model with --checkpoint=DIR"
        )
    if not CHECKPOINT.value or not RECIPE.value:
        raise ValueError("give --checkpoint=DIR and --recipe=METHOD:AMOUNT, such as wanda:0.5")
    if not RECEIPT.value and not TARGET.value:
        raise ValueError("give --receipt to measure, --target=FOLDER to save, or both")
    if TARGET.value and Path(TARGET.value).exists():
        raise ValueError(f"--target={TARGET.value} is there already; name a new folder")
    if JSON.value and not RECEIPT.value:
        raise ValueError("--json prints the receipt; give --receipt too")


def _compress(recipe: Any, target: Path) -> int:
    """Writes the compressed model to `target`, and prints its receipt if one is asked for."""
    from research.compress import compressed
    from research.compress.calibration import windows
    from research.compress.texts import read_compression_texts
    from research.files import write_json
    from research.interop.load import load

    started = time.monotonic()
    loaded = load(CHECKPOINT.value, "float32")
    if loaded.checkpoint.codes:
        raise ValueError(
            f"{CHECKPOINT.value} is quantized already; give the model that it was made of"
        )
    if loaded.tokenizer is None:
        raise ValueError(
            f"{CHECKPOINT.value} has no tokenizer; put its tokenizer.json into the folder"
        )
    window = min(WINDOW.value, loaded.window)
    calibration_tokens = CALIBRATION_TOKENS.value if recipe.calibrated else 0
    texts = read_compression_texts(
        loaded.tokenizer,
        DATA.value,
        CALIBRATION.value or DATA.value,
        TOKENS.value,
        calibration_tokens,
        SEED.value,
    )
    batches = [] if texts.calibration is None else windows(texts.calibration, window, 4)
    config, params = compressed.apply_recipe(loaded, recipe, batches, GROUP.value)
    made_of = {"checkpoint": CHECKPOINT.value, "recipe": RECIPE.value, **texts.sources}
    compressed.export(loaded.checkpoint, config, params, target, TO.value, DTYPE.value, made_of)
    if TARGET.value:
        print(f"wrote {target}", file=sys.stderr)
    if not RECEIPT.value:
        return command.DONE
    receipt = made_of | _receipt(loaded, params, target, texts.heldout, window)
    receipt["seconds"] = round(time.monotonic() - started, 1)
    if TARGET.value:
        write_json(target / "receipt.json", receipt)
    _show(receipt)
    return command.DONE


def _receipt(loaded: Any, params: Any, target: Path, heldout: Any, window: int) -> dict[str, Any]:
    """The receipt of the export in `target`, of JSON values."""
    from research.compress import compressed

    score, export, reloaded = compressed.measure_export(loaded, target, heldout, window)
    compressed.check_zeros(params, reloaded.params)
    dtype = compressed.stored_type(loaded.checkpoint, DTYPE.value)
    own = compressed.stored_type(loaded.checkpoint, "")
    return {
        "perplexity": export.score.perplexity,
        "nats": export.score.nll_per_token,
        "kl_mean": export.mean_kl,
        "kl_max": export.largest_kl,
        "kl_p999": export.kl_999,
        "kl_p99": export.kl_99,
        "kl_p95": export.kl_95,
        "kl_p50": export.kl_50,
        "same_top": 1 - export.flip_rate,
        "rms_change": export.rms_change,
        **compressed.counts(reloaded.params),
        "bits": compressed.bits_of(params, dtype),
        "bytes": sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        "tokens": score.tokens,
        "window": window,
        "original": {
            "perplexity": score.perplexity,
            "nats": score.nll_per_token,
            "kl_mean": 0.0,
            "kl_p99": 0.0,
            "same_top": 1.0,
            **compressed.counts(loaded.params),
            "bits": compressed.bits_of(loaded.params, own),
        },
    }


def _show(receipt: dict[str, Any]) -> None:
    if JSON.value:
        print(json.dumps(receipt))
        return
    before = receipt["original"]
    print(
        f"perplexity {receipt['perplexity']:.2f} (original {before['perplexity']:.2f}), mean KL "
        f"{receipt['kl_mean']:.4f} nats, 99% below {receipt['kl_p99']:.3f}, most "
        f"{receipt['kl_max']:.3f}; same top token {receipt['same_top']:.1%}"
    )
    print(
        f"{receipt['parameters']:,} parameters (original {before['parameters']:,}), "
        f"{receipt['nonzero']:,} not zero, {receipt['bits']:.2f} bits a weight of the layers; "
        f"{receipt['tokens']:,} held-out tokens of {receipt['data']['source']} in windows of "
        f"{receipt['window']}; {receipt['seconds']:.0f} s"
    )


if __name__ == "__main__":
    command.run(main)
