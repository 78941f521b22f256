"""MODEL_CARD.md of a run: what is known of its model, from the files of its directory, with the
metadata in front that Hugging Face's hub reads. What nobody knows is said to be unknown."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.downloads import hub
from research.evals.card_facts import cost, energy, run_seconds
from research.evals.choose import EVALUATIONS
from research.evals.licences import UNKNOWN, licence
from research.evals.ready import READY
from research.files import read_json
from research.training.events import read_events
from research.training.metrics import read_rows
from research.training.report_evals import read_summaries

# What a reader should look for, and what is said where it was not measured.
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "bias": ("crows_pairs", "stereoset", "bbq", "winobias", "winogender", "bold", "honest"),
    "truth": ("truthfulness", "snowball", "selfcheck", "semantic_entropy", "grounded"),
    "calibration": ("calibration",),
    "safety": ("refusal", "toxicity"),
    "privacy": ("memorisation", "pii"),
}


def model_card(
    workdir: str | Path,
    license: str = "",
    languages: Sequence[str] = (),
    price_per_hour: float | None = None,
) -> str:
    """The text of the card. ValueError for a directory that has no config of a run."""
    folder = Path(workdir)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; pass the --workdir of a training run")
    config = read_json(folder / "config.json")
    provenance = _read(folder / "provenance.json")
    summaries = {
        one: {"settings": config.get("evals", {}).get(one, {}), **summary}
        for one, summary in read_summaries(folder).items()
    }
    name = folder.resolve().name
    parts = [
        front_matter(name, config, summaries, license, languages),
        f"# {name}\n",
        _model(config, provenance, license, languages),
        _data(config, provenance),
        _evaluations(summaries),
        _limits(summaries),
        _resources(folder, config, provenance, price_per_hour),
        _again(provenance),
    ]
    return "\n".join(parts)


def front_matter(
    name: str,
    config: Mapping[str, Any],
    summaries: Mapping[str, Mapping[str, Any]],
    license: str = "",
    languages: Sequence[str] = (),
) -> str:
    """The metadata as YAML, each value as JSON, which YAML contains. A field that is not known is
    left out, but for the licence, for which the hub has the word "unknown"."""
    kind = config.get("model", {}).get("kind", "decoder")
    values: dict[str, Any] = {"license": license or UNKNOWN, "library_name": "graft"}
    if languages:
        values["language"] = list(languages)
    parent = str(config.get("init") or "")
    if parent.startswith(hub.PREFIX):  # any other parent has no name on the hub
        values["base_model"] = parent.removeprefix(hub.PREFIX).partition("@")[0]
    values["tags"] = ["graft", str(config.get("objective", {}).get("name", "causal_lm"))]
    # The hub has a word for what a decoder does; of other models the job is not known here.
    task = "text-generation" if kind == "decoder" else None
    if task and not config.get("model", {}).get("labels"):
        values["pipeline_tag"] = task
    results = [_result(one, summary, task) for one, summary in summaries.items()]
    if any(results):
        values["model-index"] = [{"name": name, "results": [one for one in results if one]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---", ""])


def _result(name: str, summary: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """An entry of the hub's model-index: its metrics that have a value."""
    metrics = [
        {"type": metric, "name": metric, "value": one["value"]}
        for metric, one in summary["metrics"].items()
        if one.get("value") is not None
    ]
    if not metrics:
        return {}
    return {
        "task": {"type": task or "other", "name": name},
        "dataset": {"type": name, "name": _source(name, summary)},
        "metrics": metrics,
    }


def _source(name: str, summary: Mapping[str, Any]) -> str:
    """The data of an evaluation: as it was set, else as its kind has them by default."""
    settings = {"kind": name, **summary.get("settings", {})}
    settings = {**READY.get(str(settings["kind"]), {}), **settings}
    kind = EVALUATIONS.get(str(settings["kind"]))
    default = getattr(kind.config, "data", "") if kind is not None else ""
    return str(settings.get("data") or default or name)


def _model(
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    license: str,
    languages: Sequence[str],
) -> str:
    model = config.get("model", {})
    parent, parameters = config.get("init"), provenance.get("parameters")
    shape = ", ".join(
        f"{name} {model[name]}"
        for name in ("layers", "d_model", "heads", "kv_heads", "d_ff", "vocab_size", "max_length")
        if model.get(name) is not None
    )
    facts = {
        "kind": model.get("kind", UNKNOWN),
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else UNKNOWN,
        "shape": shape or UNKNOWN,
        "starts from": f"`{parent}`, whose licence and limits hold on" if parent else "no model",
        "tuned by": config.get("tune", {}).get("method") or UNKNOWN,
        "objective": config.get("objective", {}).get("name", UNKNOWN),
        "licence": license or f"{UNKNOWN}: give --license",
        "languages": ", ".join(languages) or f"{UNKNOWN}: give --language",
        "intended use": f"{UNKNOWN}: nobody has said it",
        "people responsible": f"{UNKNOWN}: nobody has said it",
    }
    return f"## Model\n\n{_list(facts)}"


def _data(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    data = provenance.get("dataset", {})
    source = str(data.get("source") or config.get("data", {}).get("source") or UNKNOWN)
    facts = {
        "source": f"`{source}`",
        "licence": licence(source),
        "documents": _number(data.get("train_documents")),
        "held out": _number(data.get("heldout_documents")),
        "fingerprint": data.get("fingerprint") or UNKNOWN,
        "personal data": f"{UNKNOWN}, unless the evaluation `pii` of its texts is below",
    }
    return f"## Training data\n\n{_list(facts)}"


def _evaluations(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["## Evaluations\n"]
    if not summaries:
        lines.append("None was run: `python -m research.evaluate --workdir=RUN --evals=NAME`.\n")
    for name, summary in summaries.items():
        step = f", step {summary['step']:,}" if summary.get("step") is not None else ""
        data = _source(name, summary)
        lines.append(f"### {name}\n\nData: `{data}` (licence: {licence(data)}){step}.\n")
        lines += [f"{note[:1].upper()}{note[1:]}.\n" for note in summary.get("notes", ())]
        lines += ["| metric | value | 95% interval | n |", "|---|---|---|---|"]
        lines += [_row(metric, one) for metric, one in summary["metrics"].items()]
        main = summary.get("main")
        for column, groups in summary.get("slices", {}).items():
            rows = [_row(group, one[main]) for group, one in groups.items() if main in one]
            if rows:
                lines += ["", f"{main} by {column}:\n", f"| {column} | value | 95% interval | n |"]
                lines += ["|---|---|---|---|", *rows]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, one: Mapping[str, Any]) -> str:
    value, low, high = (one.get(key) for key in ("value", "low", "high"))
    interval = "none" if low is None or high is None else f"{low:.4g} to {high:.4g}"
    cells = (name.replace("|", "\\|"), "none" if value is None else f"{value:.4g}", interval)
    return f"| {' | '.join(cells)} | {one.get('n', 0):,} |"


def _limits(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    kinds = {str(one.get("settings", {}).get("kind", name)) for name, one in summaries.items()}
    missing = {
        family: [name for name in names if name not in kinds]
        for family, names in _FAMILIES.items()
        if kinds.isdisjoint(names)
    }
    lines = ["## Limits\n"]
    for family, names in missing.items():
        lines.append(f"- {family} was not measured (`--evals={','.join(names)}`)")
    lines.append(
        "- intervals say what other items of the kind would have given, and nothing of another "
        "seed of training"
    )
    return "\n".join([*lines, ""])


def _resources(
    folder: Path,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    price_per_hour: float | None,
) -> str:
    events, rows = read_events(folder), read_rows(folder / "metrics.jsonl")
    devices = provenance.get("devices", {})
    seconds = run_seconds(events, rows)
    steps = config.get("train", {}).get("steps")
    facts = {
        "devices": f"{devices.get('count', UNKNOWN)} x {devices.get('kind', UNKNOWN)}",
        "time": f"{seconds / 3600:.4g} h" if seconds else UNKNOWN,
        "energy": energy(events, seconds, devices, _read(folder / "fit.json"), steps),
        "cost": cost(seconds, devices, price_per_hour),
        "carbon": f"{UNKNOWN}: nothing is known of where the power came from",
    }
    return f"## Energy and cost of training\n\n{_list(facts)}"


def _again(provenance: Mapping[str, Any]) -> str:
    git = provenance.get("git", {})
    changed = {True: ", with changes that were not committed", None: ", changes unknown"}
    commit = git.get("commit") or UNKNOWN
    facts = {
        "git commit": commit + (changed.get(git.get("dirty"), "") if git.get("commit") else ""),
        "seed": _number(provenance.get("seed")),
        "started": provenance.get("started", UNKNOWN),
        "command": f"`{shlex.join(map(str, provenance['command']))}`"
        if provenance.get("command")
        else UNKNOWN,
    }
    return f"## To make it again\n\n{_list(facts)}"


def _list(facts: Mapping[str, Any]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else UNKNOWN


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
