"""Quantizes a checkpoint and says what it costs: python -m research.quantize --checkpoint=DIR
--format=nf4 --receipt

    --format=FORMAT      one of research/weights/formats.py, or all of them, which prints a Markdown table
    --method=METHOD      rtn (to nearest), gptq, awq or smoothquant; the last three look at calibration text
    --embeddings=FORMAT  the embedding tables too
    --receipt            measure on held-out text and write receipt.json, into --target or here
    --activations        with int8 or fp8: what comes into these matrices too, as a chip with 8-bit products has it
    --target=FOLDER      save the quantized model (nf4, fp4 or int8) in the form of bitsandbytes
    --adapter=DIR        with an adapter of peft's on it: what merging it changes

The original is the checkpoint in float32, and everything is computed in float32. Text is that of
--data: its held-out documents to measure on, the others to calibrate with.
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

COLUMNS = {
    "bits": "bits a linear weight",
    "bits_whole": "of all weights",
    "perplexity": "perplexity",
    "nats": "nats a token",
    "mean_kl": "mean KL, nats",
    "kl_99": "99% of KL below",
    "flip_rate": "tokens flipped",
    "layer_error": "layer error",
}


def main(arguments: list[str]) -> int:
    """Reads the flags, quantizes, measures and saves; the exit code."""
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
            "--activations changes what --receipt measures and nothing that is saved; give both or neither"
        )
    if ADAPTER.value and METHOD.value in ("awq", "smoothquant"):
        raise ValueError(
            f"--method={METHOD.value} rescales what the adapter reads; take rtn or gptq under --adapter"
        )
    if TARGET.value and (FORMAT.value == "all" or ADAPTER.value or Path(TARGET.value).exists()):
        raise ValueError(
            f"--target={TARGET.value} must not be there yet, and holds one format without an adapter"
        )
    started = time.monotonic()
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.compress.calibration import METHODS
    from research.interop.bitsandbytes.write import QUANTIZABLE
    from research.interop.load import load
    from research.run.opened import keep_compiled_programs
    from research.weights.formats import FORMATS

    for name, value, known in (
        ("format", FORMAT.value, (*FORMATS, "all")),
        ("method", METHOD.value, ("rtn", *METHODS)),
        ("embeddings", EMBEDDINGS.value, ("", *FORMATS)),
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
    keep_compiled_programs()
    loaded = load(CHECKPOINT.value, "float32", adapter=ADAPTER.value)
    if loaded.checkpoint.codes:
        raise ValueError(
            f"{CHECKPOINT.value} is quantized already; give the model that it was made of"
        )
    texts = _texts(loaded) if RECEIPT.value or METHOD.value != "rtn" else None
    names = tuple(FORMATS) if FORMAT.value == "all" else (FORMAT.value,)
    made = {name: _quantized(loaded, name, texts) for name in names}
    receipt = {}
    if RECEIPT.value:
        receipt = {**_measure(loaded, made, texts), "seconds": round(time.monotonic() - started, 1)}
        for line in describe(receipt, markdown=FORMAT.value == "all"):
            print(line)
    if TARGET.value:
        _save(loaded, made[FORMAT.value], Path(TARGET.value), receipt)
    elif receipt:
        from research.files import write_json

        write_json("receipt.json", receipt)
    return command.DONE


def describe(receipt: Mapping[str, Any], markdown: bool = False) -> list[str]:
    """A receipt as a table, of Markdown or in columns, and lines below it for a person."""
    original = receipt["original"]
    first = {
        "bits": 32.0,
        "bits_whole": 32.0,
        "perplexity": original["perplexity"],
        "nats": original["nats"],
    }
    rows = [
        ["format", *COLUMNS.values()],
        ["float32", *(_cell(name, first.get(name)) for name in COLUMNS)],
    ]
    for name, result in receipt["results"].items():
        label = (
            name
            + " x 8" * receipt["activations"]
            + (f", {receipt['method']}" if receipt["method"] != "rtn" else "")
        )
        rows.append([label, *(_cell(column, result[column]) for column in COLUMNS)])
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        lines = ["| " + " | ".join(row) + " |" for row in rows]
    else:
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows
        ]
    text = receipt["text"]
    where = f"{text['tokens']:,} held-out tokens of {text['source']} in windows of {text['window']}"
    lines += ["", f"{where}, computed in float32; {receipt['seconds']:.0f} s"]
    for name, drift in receipt["merge_drift"].items():
        moved = f"{drift['mean']:.3g} on average and {drift['largest']:.3g} at most"
        lines.append(f"merging the adapter into {name} moves logits by {moved}")
    return lines


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column in ("flip_rate", "layer_error"):
        return f"{value:.2%}"
    return f"{value:.2f}" if column.startswith("bits") or column == "perplexity" else f"{value:.4f}"


def _texts(loaded: Any) -> dict[str, Any]:
    """Ids to calibrate with and ids to measure on, and where they are from."""
    import numpy as np

    from research.data.sources import open_source
    from research.downloads.cache import cache_directory

    if loaded.tokenizer is None:
        raise ValueError(
            f"{CHECKPOINT.value} has no tokenizer; put its tokenizer.json into the folder"
        )
    source = open_source(DATA.value, cache_directory())

    def ids(documents: Any, count: int) -> Any:
        tokenizer, found = loaded.tokenizer, []
        for index in range(len(documents)):
            found.append(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
            # A token has fewer characters than this; the rest of a long document need not be split.
            found += tokenizer.encode(documents[index]["text"][: 16 * count])
            if len(found) >= count:
                return np.array(found[:count], np.int32)
        raise ValueError(
            f"--data={DATA.value} has {len(found)} tokens, wanted {count}; give more text or ask for fewer"
        )

    return {
        "source": DATA.value,
        "fingerprint": source.fingerprint,
        "heldout": ids(source.heldout, TOKENS.value + 1),
        "calibration": ids(source.train, CALIBRATION_TOKENS.value)
        if METHOD.value != "rtn"
        else None,
    }


def _quantized(loaded: Any, format: str, texts: Mapping[str, Any] | None) -> Any:
    """The model's parameters without an adapter, quantized."""
    from research import tree
    from research.compress.calibration import calibrate, windows
    from research.weights import rules
    from research.weights.matrices import LINEAR

    specs, (params, _) = loaded.model.specs(), rules.detach(loaded.params)
    for path in sorted(tree.paths(params, rules.is_leaf).keys() ^ tree.paths(specs).keys()):
        raise ValueError(
            f"--adapter={ADAPTER.value} adds {path}, which is on no weight and cannot be merged into one"
        )
    if EMBEDDINGS.value:
        params = rules.quantize(
            params, specs, [("(embed|head)/table", EMBEDDINGS.value), (".*", None)]
        )
    chosen = [(LINEAR, format), (".*", None)]
    if METHOD.value == "rtn":
        return rules.quantize(params, specs, chosen, GROUP.value)
    batches = windows(texts["calibration"], _window(loaded), 4)
    return calibrate(loaded.model, params, chosen, batches, METHOD.value, GROUP.value)


def _measure(loaded: Any, made: Mapping[str, Any], texts: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt: what the model loses in each format, and what merging an adapter changes."""
    from research.compress.calibration import layer_errors, windows
    from research.evals.receipt import compare, round_inputs, size_of
    from research.weights import rules

    model, window = loaded.model, _window(loaded)
    base, adapters = rules.detach(loaded.params)
    changed = {name: rules.attach(params, adapters) for name, params in made.items()}
    if ACTIVATIONS.value:
        changed = {name: round_inputs(params) for name, params in changed.items()}
    score, compared = compare(model, loaded.params, changed, texts["heldout"], window)
    errors = layer_errors(
        model, loaded.params, changed, windows(texts["heldout"][:window], window, 1)
    )
    results = {}
    for name in changed:
        c, size = compared[name], size_of(made[name], base)
        results[name] = {
            "bits": size.linear,
            "bits_whole": size.whole,
            "perplexity": c.score.perplexity,
            "nats": c.score.nll_per_token,
            "mean_kl": c.mean_kl,
            "kl_99": c.kl_99,
            "flip_rate": c.flip_rate,
            "layer_error": float(errors[name].mean()),
            "layer_errors": errors[name].tolist(),
        }
    drift = {}
    for name, params in {"float32": loaded.params, **changed}.items() if adapters else ():
        _, merged = compare(
            model,
            params,
            {"merged": rules.merge(params)},
            texts["heldout"][: 2 * window + 1],
            window,
        )
        drift[name] = {
            "mean": merged["merged"].mean_difference,
            "largest": merged["merged"].largest_difference,
        }
    text = {name: texts[name] for name in ("source", "fingerprint")} | {
        "tokens": score.tokens,
        "window": window,
    }
    return {
        "checkpoint": CHECKPOINT.value,
        "adapter": ADAPTER.value,
        "method": METHOD.value,
        "group": GROUP.value,
        "embeddings": EMBEDDINGS.value,
        "activations": ACTIVATIONS.value,
        "text": text,
        "original": {
            "dtype": "float32",
            "perplexity": score.perplexity,
            "nats": score.nll_per_token,
        },
        "results": results,
        "merge_drift": drift,
    }


def _window(loaded: Any) -> int:
    return min(WINDOW.value, loaded.window)


def _save(loaded: Any, params: Any, target: Path, receipt: Mapping[str, Any]) -> None:
    """Writes the quantized model with its tokenizer, and the receipt, as a new folder."""
    from research.files import building, write_json
    from research.interop.bitsandbytes.write import write_bitsandbytes

    with building(target) as folder:
        write_bitsandbytes(loaded.checkpoint, folder, params)
        for name, content in loaded.checkpoint.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(
                content if isinstance(content, bytes) else content.read_bytes()
            )
        if receipt:
            write_json(folder / "receipt.json", receipt)
    print(f"wrote {target}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
